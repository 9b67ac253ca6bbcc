# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on a seed, a name and an index alone.

A counter-based generator: number ``c`` of item ``i`` is a hash of ``(seed, name, i, c)``. An item's
numbers are the same in any batch, on any device and for any number of threads, and a whole batch is
drawn without a loop. The hash is Chris Wellons' ``lowbias32`` (https://nullprogram.com, 2018).

Axes: ``B`` items.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FIRST_FACTOR, _SECOND_FACTOR = 0x7FEB352D, 0x846CA68B
_UNIT_BITS = 24
"""Bits of a float32's mantissa: all numbers in [0, 1) are equally likely and exact."""


def mix_bits(x: Tensor) -> Tensor:
    """Hash int64 tensors of values in [0, 2^32) onto the same range."""
    x = ((x ^ (x >> 16)) * _FIRST_FACTOR) & _MASK
    x = ((x ^ (x >> 15)) * _SECOND_FACTOR) & _MASK
    return x ^ (x >> 16)


class Draws:
    """A stream of random numbers for each item of a batch.

    Args:
        seed: Any non-negative integer.
        name: Of the stream; streams of other names are independent.
        indices: Which items, ``[B]`` int64, non-negative. Numbers come to life on its device.
    """

    def __init__(self, seed: int, name: str, indices: Tensor) -> None:
        stream = torch.tensor((zlib.crc32(name.encode()) ^ seed) & _MASK, device=indices.device)
        stream = mix_bits(mix_bits(stream) ^ (seed >> 32 & _MASK))
        self._keys = mix_bits(stream ^ mix_bits(indices.to(torch.int64) & _MASK))
        self._counter = 0

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers in [low, high), float32 ``[B, *shape]``."""
        count = math.prod(shape)
        counters = torch.arange(self._counter, self._counter + count, device=self._keys.device)
        self._counter += count
        bits = mix_bits((self._keys[:, None] + mix_bits(counters)) & _MASK)
        unit = (bits >> (32 - _UNIT_BITS)).float() * 2.0**-_UNIT_BITS
        return (low + (high - low) * unit).reshape(-1, *shape)

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Return numbers whose logarithm is uniform, ``[B, *shape]``."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, ``[B, *shape]``, by Box and Muller's transform."""
        radius = (-2.0 * (1.0 - self.uniform(*shape)).log()).sqrt()
        return radius * (2.0 * math.pi * self.uniform(*shape)).cos()

    def integers(self, *shape: int, high: int) -> Tensor:
        """Return integers in [0, high), int64 ``[B, *shape]``."""
        return (self.uniform(*shape) * high).long().clamp_(max=high - 1)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Return truth values, bool ``[B, *shape]``."""
        return self.uniform(*shape) < probability
