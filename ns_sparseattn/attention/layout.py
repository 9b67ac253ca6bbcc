# SPDX-License-Identifier: Apache-2.0
"""How a model's tokens lie, and the order in which block-sparse attention sees them.

A model keeps its tokens frame by frame, with special tokens (camera, registers) before or after the
patches of each frame, and perhaps some after all frames. Block sparsity wants them otherwise: all
patches, padded to whole query blocks, then all special tokens in blocks of their own. Then no
special token can share a block that selection may drop, which in the published code happens to
those of the reference frame.

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
    """A model's token order: its frames, one after the other, then tokens that have no frame.

    A frame is its special tokens, then its patches row by row, or the other way round.
    """

    num_frames: int
    num_special: int
    """Special tokens of each frame."""
    grid_height: int
    """Patches in a column of a frame."""
    grid_width: int
    """Patches in a row of a frame."""
    is_special_last: bool = False
    """Whether the special tokens of a frame follow its patches."""
    num_trailing: int = 0
    """Special tokens after the last frame, such as MapAnything's scale token."""

    def __post_init__(self) -> None:
        if min(self.num_frames, self.grid_height, self.grid_width) < 1:
            raise ValueError(f"A token layout needs at least one frame and one patch, got {self}.")
        if min(self.num_special, self.num_trailing) < 0:
            raise ValueError(f"A token layout cannot have fewer than no special token, got {self}.")

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
        """Tokens of all frames, and those after them."""
        return self.num_frames * self.tokens_per_frame + self.num_trailing

    def patch_ids(self, device: torch.device | None = None) -> Tensor:
        """Return where the patches are among the tokens, ``[num_frames, num_patches]`` int64."""
        start = 0 if self.is_special_last else self.num_special
        return self._frame_ids(device)[:, start : start + self.num_patches]

    def special_ids(self, device: torch.device | None = None) -> Tensor:
        """Return where the special tokens are, frame by frame, then those without a frame.

        Returns:
            ``[num_frames * num_special + num_trailing]`` int64.
        """
        start = self.num_patches if self.is_special_last else 0
        of_frames = self._frame_ids(device)[:, start : start + self.num_special]
        trailing = torch.arange(self.num_tokens - self.num_trailing, self.num_tokens, device=device)
        return torch.cat([of_frames.flatten(), trailing])

    def _frame_ids(self, device: torch.device | None) -> Tensor:
        ids = torch.arange(self.num_frames * self.tokens_per_frame, device=device)
        return ids.reshape(self.num_frames, self.tokens_per_frame)


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
        patches = tokens.patch_ids(device).flatten()
        specials = tokens.special_ids(device)
        num_padding = -len(patches) % BLOCK_Q
        gather_index = torch.cat([patches, patches.new_zeros(num_padding), specials])
        exists = torch.ones(len(gather_index), dtype=torch.bool, device=device)
        exists[len(patches) : len(patches) + num_padding] = False
        places = torch.arange(len(gather_index), device=device)
        scatter_index = torch.empty(tokens.num_tokens, dtype=torch.int64, device=device)
        scatter_index[gather_index[exists]] = places[exists]
        return cls(
            gather_index=gather_index,
            scatter_index=scatter_index,
            key_mask=exists[None],
            num_full_q_blocks=-(-len(specials) // BLOCK_Q),
            num_sink_k_blocks=-(-len(specials) // BLOCK_K),
        )
