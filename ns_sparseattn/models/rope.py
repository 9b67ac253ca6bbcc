# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding in two dimensions.

The first half of a head's channels turns with the row of a token, the second half with its column.
Within a half of ``d`` channels, channel ``j`` is paired with channel ``j + d / 2`` and both turn by
``position * base^(-2 j / d)``.

Axes: ``B`` any batch, ``T`` tokens, ``D`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTable:
    """Cosines and signed sines of one frame's tokens, made once and used by every layer."""

    cos: Tensor  # [T, D]
    signed_sin: Tensor  # [T, D]
    """Negative in the first channel of each pair."""


def grid_positions(
    grid_height: int, grid_width: int, num_special: int, *, device: torch.device | None = None
) -> Tensor:
    """Return the (row, column) of every token of a frame, special tokens first.

    Patches count from one; special tokens sit at (0, 0), where the rotation is the identity.

    Returns:
        Integer positions, ``[num_special + grid_height * grid_width, 2]``.
    """
    rows, columns = torch.meshgrid(
        torch.arange(1, grid_height + 1, device=device),
        torch.arange(1, grid_width + 1, device=device),
        indexing="ij",
    )
    patches = torch.stack([rows, columns], dim=-1).reshape(-1, 2)
    return torch.cat([patches.new_zeros(num_special, 2), patches])


def rope_table(
    positions: Tensor,  # [T, 2]
    head_size: int,
    *,
    base: float = 100.0,
    dtype: torch.dtype = torch.float32,
) -> RopeTable:
    """Tabulate the rotation of each token.

    Args:
        positions: Integer (row, column) of each token, ``[T, 2]``.
        head_size: Channels of a head, a multiple of four.
        base: Ratio that sets the slowest frequency.
        dtype: Type of the table. Angles are rounded to it before the cosine is taken, as the
            published models do.

    Returns:
        The table, on the device of ``positions``.
    """
    if head_size % 4:
        raise ValueError(f"`head_size` must be a multiple of 4, got {head_size}.")
    half = head_size // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float64, device=positions.device) / half
    angles = positions.to(torch.float64).unsqueeze(-1) * base**-exponents  # [T, 2, D / 4]
    angles = angles.to(dtype)
    cos, sin = angles.cos(), angles.sin()
    # Both members of a pair turn by the same angle, so each half repeats its frequencies.
    return RopeTable(
        torch.cat([cos, cos], dim=-1).flatten(1), torch.cat([-sin, sin], dim=-1).flatten(1)
    )


def apply_rope(
    x: Tensor,  # [B, T, D]
    table: RopeTable,
) -> Tensor:
    """Rotate the channels of queries or keys; any batch axes may stand before ``[T, D]``."""
    partner = x.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return torch.addcmul(x * table.cos, partner, table.signed_sin)
