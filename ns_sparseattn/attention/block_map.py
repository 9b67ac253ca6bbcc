# SPDX-License-Identifier: Apache-2.0
"""Which key blocks each query block attends to, as compressed rows.

Axes: ``B`` batch, ``H`` heads, ``R`` listed query blocks, ``C`` listed key blocks, ``NQ``/``NK``
all blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import check_tensor

_ENTRIES_AT_ONCE = 1 << 24
"""List entries looked at together when pairs are counted."""


@dataclass(frozen=True, kw_only=True)
class BlockMap:
    """A block-sparse attention pattern: compressed rows plus two ranges that need no list.

    Query blocks come in two kinds. The first ``R = num_q_blocks - num_full_q_blocks`` have a list
    each; the last `num_full_q_blocks` attend to everything. Key blocks likewise: the last
    `num_sink_k_blocks` are attended to by every query block and are never listed. Special tokens
    use both ranges, so no list can ever drop them.

    Rows are numbered batch-major, then head, then query block. Column ids ascend within a row.
    """

    num_batch: int
    num_heads: int
    num_q_blocks: int
    num_k_blocks: int
    block_q: int
    """Tokens of a query block."""
    block_k: int
    """Tokens of a key block."""
    row_offsets: Tensor  # [B * H * R + 1] int64
    columns: Tensor  # [row_offsets[-1]] int32
    num_full_q_blocks: int = 0
    num_sink_k_blocks: int = 0

    def __post_init__(self) -> None:
        if min(self.num_batch, self.num_heads, self.num_q_blocks, self.num_k_blocks) < 1:
            raise ValueError(
                "A block map needs at least one batch slot, head, query block and key block, got "
                f"{self.num_batch}, {self.num_heads}, {self.num_q_blocks}, {self.num_k_blocks}."
            )
        if not 0 <= self.num_full_q_blocks <= self.num_q_blocks:
            raise ValueError(
                f"`num_full_q_blocks` must be 0 to {self.num_q_blocks}, "
                f"got {self.num_full_q_blocks}."
            )
        if not 0 <= self.num_sink_k_blocks <= self.num_k_blocks:
            raise ValueError(
                f"`num_sink_k_blocks` must be 0 to {self.num_k_blocks}, "
                f"got {self.num_sink_k_blocks}."
            )
        rows = self.num_batch * self.num_heads * self.num_listed_q_blocks
        check_tensor("row_offsets", self.row_offsets, (rows + 1,), is_floating=False)
        check_tensor("columns", self.columns, ("nnz",), is_floating=False)
        if int(self.row_offsets[-1]) != self.columns.shape[0]:
            raise ValueError(
                f"`row_offsets` must end with the number of columns {self.columns.shape[0]}, "
                f"got {int(self.row_offsets[-1])}."
            )

    @property
    def num_listed_q_blocks(self) -> int:
        """Query blocks that have a list."""
        return self.num_q_blocks - self.num_full_q_blocks

    @property
    def num_listed_k_blocks(self) -> int:
        """Key blocks that lists may name."""
        return self.num_k_blocks - self.num_sink_k_blocks

    @property
    def counts(self) -> Tensor:
        """Number of listed key blocks of each row, ``[B, H, R]`` int64; sinks are not counted."""
        return self.row_offsets.diff().reshape(
            self.num_batch, self.num_heads, self.num_listed_q_blocks
        )

    @classmethod
    def from_mask(
        cls,
        mask: Tensor,  # [B, H, NQ, NK] bool
        block_q: int = 128,
        block_k: int = 64,
        *,
        num_full_q_blocks: int = 0,
        num_sink_k_blocks: int = 0,
    ) -> BlockMap:
        """Build a map from a boolean mask over blocks.

        Args:
            mask: ``[B, H, NQ, NK]``, true where a block pair is computed. Entries of the full rows
                and the sink columns are not read: they count as true.
            block_q: Tokens of a query block.
            block_k: Tokens of a key block.
            num_full_q_blocks: Trailing query blocks that attend to everything.
            num_sink_k_blocks: Trailing key blocks that everyone attends to.

        Returns:
            The map, on the mask's device.

        Raises:
            TypeError: If the mask is not boolean.
            ValueError: If it has another number of axes or an empty one.

        Example:
            >>> import torch
            >>> mask = torch.tensor([[[[True, False], [True, True]]]])
            >>> BlockMap.from_mask(mask).columns.tolist()
            [0, 0, 1]
        """
        check_tensor("mask", mask, ("B", "H", "NQ", "NK"))
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask` must be boolean, got {mask.dtype}.")
        batch, heads, num_q, num_k = mask.shape
        num_rows = batch * heads * (num_q - num_full_q_blocks)
        num_listed = num_k - num_sink_k_blocks
        listed = mask[:, :, : num_q - num_full_q_blocks, :num_listed].reshape(num_rows, num_listed)
        row_offsets = torch.zeros(listed.shape[0] + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(listed.sum(-1), 0, out=row_offsets[1:])
        return cls(
            num_batch=batch,
            num_heads=heads,
            num_q_blocks=num_q,
            num_k_blocks=num_k,
            block_q=block_q,
            block_k=block_k,
            row_offsets=row_offsets,
            columns=listed.nonzero()[:, 1].to(torch.int32),
            num_full_q_blocks=num_full_q_blocks,
            num_sink_k_blocks=num_sink_k_blocks,
        )

    def to_mask(self) -> Tensor:
        """Expand to ``[B, H, NQ, NK]`` booleans, full rows and sinks included."""
        rows = self.num_batch * self.num_heads * self.num_listed_q_blocks
        listed = torch.zeros(
            rows, self.num_listed_k_blocks, dtype=torch.bool, device=self.columns.device
        )
        row_ids = torch.repeat_interleave(
            torch.arange(rows, device=self.columns.device), self.row_offsets.diff()
        )
        listed[row_ids, self.columns.long()] = True
        mask = listed.new_ones(self.num_batch, self.num_heads, self.num_q_blocks, self.num_k_blocks)
        mask[:, :, : self.num_listed_q_blocks, : self.num_listed_k_blocks] = listed.reshape(
            self.num_batch, self.num_heads, self.num_listed_q_blocks, self.num_listed_k_blocks
        )
        return mask

    def check_fits(self, q: Tensor, k: Tensor) -> None:
        """Raise ``ValueError`` unless the map fits ``q [B, H, Nq, D]`` and ``k [B, H, Nk, D]``."""
        expected = (
            q.shape[0],
            q.shape[1],
            math.ceil(q.shape[2] / self.block_q),
            math.ceil(k.shape[2] / self.block_k),
        )
        actual = (self.num_batch, self.num_heads, self.num_q_blocks, self.num_k_blocks)
        if actual != expected:
            raise ValueError(
                f"`block_map` must cover [B, H, NQ, NK] = {list(expected)} for these q and k in "
                f"blocks of {self.block_q} queries and {self.block_k} keys, got {list(actual)}."
            )
        if self.columns.device != q.device:
            raise ValueError(
                f"`block_map` must be on {q.device} like `q`, got {self.columns.device}."
            )
        if self.columns.numel():
            low, high = int(self.columns.min()), int(self.columns.max())
            if low < 0 or high >= self.num_listed_k_blocks:
                raise ValueError(
                    f"`block_map.columns` must be 0 to {self.num_listed_k_blocks - 1}, "
                    f"got {low} to {high}."
                )

    def density(
        self,
        num_q: int,
        num_k: int,
        key_mask: Tensor | None = None,  # [B, Nk] bool
        query_mask: Tensor | None = None,  # [B, Nq] bool
    ) -> float:
        """Return the share of (query, key) token pairs that the map computes.

        Args:
            num_q: Query tokens.
            num_k: Key tokens.
            key_mask: True where a key exists. Keys that do not exist count in neither numerator nor
                denominator.
            query_mask: True where a query exists, likewise.

        Returns:
            A number in [0, 1]; 1 if there is no pair at all.
        """
        q_sizes = self._block_sizes(num_q, self.block_q, self.num_q_blocks, query_mask)  # [B, NQ]
        k_sizes = self._block_sizes(num_k, self.block_k, self.num_k_blocks, key_mask)  # [B, NK]
        listed_q = q_sizes[:, : self.num_listed_q_blocks].sum(-1)  # [B]
        all_q, all_k = q_sizes.sum(-1), k_sizes.sum(-1)
        sink_k = k_sizes[:, self.num_listed_k_blocks :].sum(-1)
        pairs = (listed_q * sink_k + (all_q - listed_q) * all_k).sum() * self.num_heads
        pairs = pairs + self._listed_pairs(q_sizes, k_sizes)
        total = (all_q * all_k).sum() * self.num_heads
        return float(pairs / total) if bool(total) else 1.0

    def _listed_pairs(self, q_sizes: Tensor, k_sizes: Tensor) -> Tensor:
        """Sum the token pairs of all lists."""
        pairs = self._listed_pairs_of_whole_blocks(q_sizes, k_sizes)
        return self._listed_pairs_entry_by_entry(q_sizes, k_sizes) if pairs is None else pairs

    def _listed_pairs_of_whole_blocks(self, q_sizes: Tensor, k_sizes: Tensor) -> Tensor | None:
        """Sum the token pairs from the lengths of the lists alone, which may be far fewer.

        Returns:
            The sum; none if blocks other than the last that holds keys lack some, or blocks
            without keys are listed.
        """
        if self.columns.numel() == 0:
            return q_sizes.new_zeros(())
        sizes = k_sizes[:, : self.num_listed_k_blocks]  # [B, C]
        ids = torch.arange(sizes.shape[1], device=sizes.device)
        last = torch.where(sizes > 0, ids, -1).amax(-1)  # [B]
        is_whole = (sizes == self.block_k) | (ids >= last[:, None])
        # The ids of a list ascend.
        ends = self.columns[(self.row_offsets[1:] - 1).clamp_min(0)].long()
        ends = ends.reshape(self.counts.shape).masked_fill(self.counts == 0, -1)  # [B, H, R]
        last = last[:, None, None]
        if not bool(is_whole.all() & (ends <= last).all()):
            return None
        missing = self.block_k - sizes.gather(1, last[:, :, 0].clamp_min(0))[..., None]  # [B, 1, 1]
        keys = self.counts * self.block_k - (ends == last) * (self.counts > 0) * missing
        return (q_sizes[:, None, : self.num_listed_q_blocks] * keys).sum()

    def _listed_pairs_entry_by_entry(self, q_sizes: Tensor, k_sizes: Tensor) -> Tensor:
        """Sum the token pairs of all lists, in pieces: lists may fill much of the memory."""
        pairs = torch.zeros((), dtype=torch.float64, device=self.columns.device)
        rows_of_batch = self.num_heads * self.num_listed_q_blocks
        for start in range(0, self.columns.numel(), _ENTRIES_AT_ONCE):
            columns = self.columns[start : start + _ENTRIES_AT_ONCE].long()
            places = torch.arange(start, start + len(columns), device=columns.device)
            rows = torch.searchsorted(self.row_offsets, places, right=True) - 1
            batch = rows // rows_of_batch
            pairs += (
                q_sizes[batch, rows % self.num_listed_q_blocks] * k_sizes[batch, columns]
            ).sum()
        return pairs

    def _block_sizes(
        self, num_tokens: int, block: int, num_blocks: int, mask: Tensor | None
    ) -> Tensor:
        """Return the number of existing tokens of each block, ``[B, num_blocks]`` float64."""
        if mask is None:
            device = self.columns.device
            mask = torch.ones(1, num_tokens, dtype=torch.bool, device=device)
        padded = F.pad(mask, (0, num_blocks * block - num_tokens))
        sizes = padded.reshape(len(mask), num_blocks, block).sum(-1)
        return sizes.to(torch.float64).expand(self.num_batch, -1)
