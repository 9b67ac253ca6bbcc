# SPDX-License-Identifier: Apache-2.0
"""How a model's tokens lie, and the order in which block-sparse attention sees them.

A model keeps its tokens frame by frame, special tokens (camera, registers) first. Block sparsity
wants them otherwise: all patches, padded to whole query blocks, then all special tokens in blocks
of their own. Then no special token can share a block that selection may drop, which in the
published code happens to those of the reference frame.

Axes: ``N`` the model's tokens, ``M`` tokens in block order, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_Q = 128
"""Tokens of a query block (arXiv 2509.07120)."""
BLOCK_K = 64
"""Tokens of a key block (arXiv 2509.07120)."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """A model's token order: ``num_frames`` times (special tokens, then patches row by row)."""

    num_frames: int
    num_special: int
    """Special tokens of each frame."""
    grid_height: int
    """Patches in a column of a frame."""
    grid_width: int
    """Patches in a row of a frame."""

    def __post_init__(self) -> None:
        if min(self.num_frames, self.grid_height, self.grid_width) < 1 or self.num_special < 0:
            raise ValueError(f"A token layout needs at least one frame and one patch, got {self}.")

    @property
    def num_patches(self) -> int:
        """Patches of a frame."""
        return self.grid_height * self.grid_width

    @property
    def tokens_per_frame(self) -> int:
        """Special tokens and patches of a frame."""
        return self.num_special + self.num_patches

    @property
    def num_tokens(self) -> int:
        """Tokens of all frames."""
        return self.num_frames * self.tokens_per_frame


@dataclass(frozen=True, kw_only=True)
class BlockOrder:
    """A re-ordering of tokens into blocks: patches, padding, special tokens."""

    gather_index: Tensor  # [M] int64
    """Token that each place holds; padding repeats token 0."""
    scatter_index: Tensor  # [N] int64
    """Place of each token."""
    key_mask: Tensor  # [1, M] bool
    """False at the padding."""
    num_full_q_blocks: int
    """Trailing query blocks, those of the special tokens, which attend to everything."""
    num_sink_k_blocks: int
    """Trailing key blocks, those of the special tokens, which everyone attends to."""

    @classmethod
    def of(cls, tokens: TokenLayout, device: torch.device) -> BlockOrder:
        """Build the order of a layout on a device; patches stay frame by frame, row by row."""
        ids = torch.arange(tokens.num_tokens, device=device).reshape(tokens.num_frames, -1)
        patches = ids[:, tokens.num_special :].flatten()
        specials = ids[:, : tokens.num_special].flatten()
        num_padding = -len(patches) % BLOCK_Q
        gather_index = torch.cat([patches, patches.new_zeros(num_padding), specials])
        exists = torch.ones(len(gather_index), dtype=torch.bool, device=device)
        exists[len(patches) : len(patches) + num_padding] = False
        places = torch.arange(len(gather_index), device=device)
        scatter_index = torch.empty_like(ids.flatten())
        scatter_index[gather_index[exists]] = places[exists]
        return cls(
            gather_index=gather_index,
            scatter_index=scatter_index,
            key_mask=exists[None],
            num_full_q_blocks=-(-len(specials) // BLOCK_Q),
            num_sink_k_blocks=-(-len(specials) // BLOCK_K),
        )
