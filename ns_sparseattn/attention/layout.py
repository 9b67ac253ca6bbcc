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
Q_PER_K = BLOCK_Q // BLOCK_K
"""A query block is as long as so many key blocks, whatever their size."""


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
    """A re-ordering of tokens into blocks: patches, padding, special tokens.

    There is one for all batch slots (``G = 1``) or one for each (``G = B``).
    """

    gather_index: Tensor  # [G, M] int64
    """Token that each place holds; padding repeats token 0."""
    scatter_index: Tensor  # [G, N] int64
    """Place of each token."""
    key_mask: Tensor  # [1, M] bool
    """False at the padding."""
    num_full_q_blocks: int
    """Trailing query blocks, those of the special tokens, which attend to everything."""
    num_sink_k_blocks: int
    """Trailing key blocks, those of the special tokens, which everyone attends to."""

    @classmethod
    def of(
        cls,
        tokens: TokenLayout,
        device: torch.device,
        patch_order: Tensor | None = None,
        *,
        block_k: int = BLOCK_K,
    ) -> BlockOrder:
        """Build the order of a layout on a device.

        Args:
            tokens: How the model's tokens lie.
            device: Where the indices will be.
            patch_order: ``[G, num_frames * num_patches]`` int64, the patches of all frames as they
                are to follow each other; none for frame by frame, row by row.
            block_k: Tokens of a key block.
        """
        block_q = Q_PER_K * block_k
        patches = tokens.patch_ids(device).reshape(1, -1)
        if patch_order is not None:
            patches = patches[0, patch_order.to(device)]
        specials = tokens.special_ids(device).expand(len(patches), -1)
        num_patches = patches.shape[1]
        num_padding = -num_patches % block_q
        padding = patches.new_zeros(len(patches), num_padding)
        gather_index = torch.cat([patches, padding, specials], dim=1)
        exists = torch.ones(gather_index.shape[1], dtype=torch.bool, device=device)
        exists[num_patches : num_patches + num_padding] = False
        places = torch.arange(len(exists), device=device)[exists].expand(len(patches), -1)
        scatter_index = torch.empty_like(places).scatter_(1, gather_index[:, exists], places)
        return cls(
            gather_index=gather_index,
            scatter_index=scatter_index,
            key_mask=exists[None],
            num_full_q_blocks=-(-specials.shape[1] // block_q),
            num_sink_k_blocks=-(-specials.shape[1] // block_k),
        )

    @property
    def has_padding(self) -> bool:
        """Whether some places hold no token."""
        return self.gather_index.shape[1] > self.scatter_index.shape[1]

    def lay_out(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Bring ``[B, H, N, D]`` from the model's order into blocks, ``[B, H, M, D]``.

        Args:
            x: Tokens.
            out: Memory for the result, for calls without autograd.
        """
        return _take(x, self.gather_index, out)

    def put_back(self, x: Tensor) -> Tensor:
        """Bring ``[B, H, M, D]`` from blocks back into the model's order, ``[B, H, N, D]``."""
        return _take(x, self.scatter_index, None)


def _take(x: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    """Index the tokens of ``x [B, H, any, D]`` with ``index [1 or B, T]``."""
    if len(index) == 1:
        return torch.index_select(x, 2, index[0], out=out)
    # One batch slot at a time: a gather would want the index repeated for each head and channel.
    slots = [one.index_select(1, ids) for one, ids in zip(x, index, strict=True)]
    return torch.stack(slots, out=out)
