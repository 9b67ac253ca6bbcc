# SPDX-License-Identifier: Apache-2.0
"""Tensors as bytes, exact or rounded to as many bytes as their purpose needs.

Axes: ``n`` numbers, ``G`` numbers of a group that share a scale.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Codec = Literal["exact", "three_bytes", "linear8", "log8"]
"""``exact`` float32. ``three_bytes``: without the eight lowest bits of the mantissa. ``linear8``:
signed bytes with a scale for each group; for values around zero whose small ones do not matter.
``log8``: bytes on a logarithmic scale from the smallest to the largest; for squares, where a small
value must not become zero."""

_GROUP = 64


def encode(tensor: Tensor, codec: Codec) -> Tensor:
    """Return a tensor's bytes, uint8 ``[n_bytes]``."""
    flat = tensor.detach().cpu().float().flatten()
    if codec == "exact":
        return flat.view(torch.uint8)
    if codec == "three_bytes":
        # Rounding to the nearest: add half of what is cut off.
        bits = (flat.view(torch.int32).long() + 0x80).clamp(max=2**31 - 1).int()
        return bits.view(torch.uint8).view(-1, 4)[:, 1:].flatten()
    if codec == "linear8":
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % _GROUP)).view(-1, _GROUP)
        scale = padded.abs().amax(1, keepdim=True) / 127.0
        levels = (padded / scale.clamp(min=1e-30)).round().clamp_(-127, 127).to(torch.int8)
        return torch.cat([scale.flatten().view(torch.uint8), levels.flatten().view(torch.uint8)])
    logs = flat.clamp(min=1e-30).log2()
    low, high = logs.aminmax()
    step = ((high - low) / 255.0).clamp(min=1e-6)
    head = torch.stack([low, step]).view(torch.uint8)
    return torch.cat([head, ((logs - low) / step).round().to(torch.uint8)])


def decode(data: Tensor, codec: Codec, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of bytes that `encode` made, float32."""
    if codec == "exact":
        return data.clone().view(torch.float32).view(shape)
    if codec == "three_bytes":
        whole = torch.zeros(len(data) // 3, 4, dtype=torch.uint8)
        whole[:, 1:] = data.view(-1, 3)
        return whole.view(torch.float32).view(shape)
    if codec == "linear8":
        count = math.prod(shape)
        groups = -(-count // _GROUP)
        scale = data[: 4 * groups].clone().view(torch.float32)[:, None]
        levels = data[4 * groups :].view(torch.int8).view(-1, _GROUP)
        return (levels.float() * scale).flatten()[:count].view(shape)
    low, step = data[:8].clone().view(torch.float32)
    return torch.exp2(low + step * data[8:].float()).view(shape)
