# SPDX-License-Identifier: Apache-2.0
"""How many key blocks a selection keeps: shares, one for all heads or one each, as numbers.

Axes: ``H`` heads, ``G`` some of them, ``R`` query blocks, ``C`` key blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_tensor
from .threshold import Wanted

Shares = float | Sequence[float] | Tensor
"""One number for all heads, or one for each."""

_SHARE_ROUNDING = 2.0**-23
"""Relative rounding of a share: 0.07 of 100 blocks are 7, though 0.07 * 100 is above 7 in float64,
and as a float32 a share may be further off."""


@dataclass(frozen=True, kw_only=True)
class KeptLimits:
    """What is kept of each head's rows, if all key blocks have keys."""

    mass: tuple[float, ...] | None  # H
    least: tuple[int, ...]  # H
    most: tuple[int, ...]  # H

    @classmethod
    def of(
        cls,
        mass: Shares | None,
        min_density: Shares,
        max_density: Shares,
        num_heads: int,
        num_columns: int,
    ) -> KeptLimits:
        """Turn shares into numbers of blocks; ``ValueError`` if they are out of range."""
        masses = None if mass is None else _each_head("mass", mass, num_heads)
        for share in masses or ():
            if not 0.0 < share <= 1.0:
                raise ValueError(f"`mass` must be in (0, 1], got {share:g}.")
        low = _each_head("min_density", min_density, num_heads)
        high = _each_head("max_density", max_density, num_heads)
        for at_least, at_most in zip(low, high, strict=True):
            if not 0.0 <= at_least <= at_most <= 1.0:
                raise ValueError(
                    "Density bounds must satisfy 0 <= min <= max <= 1, "
                    f"got {at_least:g} and {at_most:g}."
                )
        most = [max(_num_blocks(share, num_columns), 1) for share in high]
        if masses is None:
            return cls(mass=None, least=tuple(most), most=tuple(most))
        least = [max(_num_blocks(share, num_columns), 1) for share in low]
        # A sum of shares may miss 1 by rounding.
        least = [
            high if m == 1.0 else low for m, low, high in zip(masses, least, most, strict=True)
        ]
        return cls(mass=masses, least=tuple(least), most=tuple(most))

    def wanted(
        self,
        scores: Tensor,  # [G, R, C]
        weights: Tensor | None,  # [G * R, C]
        first_head: int,
    ) -> Wanted:
        """Return what rows of the heads from `first_head` on keep of the blocks that have keys."""
        heads = slice(first_head, first_head + scores.shape[0])
        num_rows, num_columns = scores.shape[1:]

        def rows_of(values: Sequence[float]) -> Tensor:
            of_heads = torch.tensor(values[heads], dtype=scores.dtype, device=scores.device)
            return of_heads.repeat_interleave(num_rows)

        mass = None
        if self.mass is not None and weights is not None:
            mass = rows_of(self.mass) * weights.sum(-1)
        return Wanted(
            least=rows_of(self.least).clamp_max(num_columns),
            most=rows_of(self.most).clamp_max(num_columns),
            mass=mass,
        )


def _each_head(name: str, share: Shares, num_heads: int) -> tuple[float, ...]:
    """Return a share for each head."""
    if isinstance(share, Tensor):
        check_tensor(name, share, (num_heads,), is_floating=True)
        return tuple(share.tolist())
    if isinstance(share, Sequence):
        if len(share) != num_heads:
            raise ValueError(
                f"`{name}` must be one number or one for each of {num_heads} heads, "
                f"got {len(share)}."
            )
        return tuple(float(value) for value in share)
    return (float(share),) * num_heads


def _num_blocks(share: float, num_columns: int) -> int:
    """Return how many blocks are this share of them, rounded up."""
    return math.ceil(share * num_columns * (1 - _SHARE_ROUNDING))
