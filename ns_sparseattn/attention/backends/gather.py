# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention in plain torch: gather the listed key blocks, then dense products.

Correct on every device and dtype, and the one backend with a gradient; the work is proportional to
the blocks kept. Rows are handled in order of their list length, so that a batch of rows wastes
little on padding. Products and softmax run in float32 for 16-bit inputs as well: torch's products
of bfloat16 on a CPU round the scores to bfloat16, which alone makes a relative error of 4e-3. Where
the CPU multiplies bfloat16, its inputs are still multiplied as such (`fast_products`).

Axes: ``B`` batch, ``H`` heads, ``R`` rows (query blocks) of a batch, ``L`` list entries, ``M``
queries of a block, ``T`` keys of a block, ``C`` blocks of pooled keys, ``D`` head size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap
from ..threads import map_in_threads
from .cpu_products import fast_products
from .inputs import AttentionInputs

_SCORES_PER_BATCH = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Scores held at once: 1 MiB in float32, a core's cache, on a CPU; 64 MiB on a GPU, where no
other size was tried."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run; it always can."""
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it."""
    q, block_map = inputs.q, inputs.block_map
    batch, heads, num_q, head_size = q.shape
    q_blocks = _to_blocks(q, block_map.num_q_blocks, block_map.block_q)  # [B, H, NQ, M, D]
    k_blocks = _to_blocks(inputs.k, block_map.num_k_blocks, block_map.block_k)  # [B, H, NK, T, D]
    v_blocks = _to_blocks(inputs.v, block_map.num_k_blocks, block_map.block_k)
    exists = _key_exists(inputs)  # [B, NK, T]
    out = torch.full(q_blocks.shape, float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full(out.shape[:4], float("nan"), dtype=inputs.accumulate, device=q.device)
    has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, inputs.k, inputs.v))
    is_buffered = q.device.type == "cpu" and not has_gradient
    workspaces = threading.local()

    def attend_with(slot: tuple[int, int]) -> None:
        """Fill one head of the output."""
        b, h = slot
        if not hasattr(workspaces, "own"):
            workspaces.own = _Workspace(is_buffered=is_buffered)
        is_whole = exists[b].all(-1)
        lists = _HeadLists.of(block_map, b, h)
        # Converted before the gather, which repeats blocks.
        head = _Head(
            q=q_blocks[b, h].index_select(0, lists.order).to(inputs.accumulate),
            k=_with_pooled(inputs, b, h, k_blocks[b, h], "keys"),
            v=_with_pooled(inputs, b, h, v_blocks[b, h], "values"),
            scale=inputs.scale,
            num_k_blocks=block_map.num_k_blocks,
            exists=exists[b],
            is_whole=None if bool(is_whole.all()) else is_whole,
            log_counts=None if inputs.coarse is None else inputs.coarse.log_counts[b],
        )
        attended = [_attend(head, *batch, workspaces.own) for batch in lists.batches()]
        place = lists.order.argsort()
        for whole, parts in zip((out, lse), zip(*attended, strict=True), strict=True):
            whole[b, h] = torch.cat(parts).index_select(0, place)

    slots = [(b, h) for b in range(batch) for h in range(heads)]
    with torch.set_grad_enabled(has_gradient), fast_products(q):
        map_in_threads(attend_with, slots, q.device)
    out = out.reshape(batch, heads, -1, head_size)[:, :, :num_q]
    return out, lse.reshape(batch, heads, -1)[:, :, :num_q]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """One head of the operation, in blocks, in the accumulation dtype."""

    q: Tensor  # [NQ, M, D]
    """Query blocks in the order in which they are handled."""
    k: Tensor  # [NK + C, T, D]
    """Key blocks; behind them the pooled keys of the coarse term, if there is one."""
    v: Tensor  # [NK + C, T, D]
    scale: float
    num_k_blocks: int
    exists: Tensor  # [NK, T] bool
    is_whole: Tensor | None  # [NK] bool
    """Blocks whose keys all exist; none if that is all of them."""
    log_counts: Tensor | None  # [num_listed]
    """Logarithm of the number of keys that a pooled key stands for; none without coarse term."""


@dataclass(kw_only=True)
class _Workspace:
    """Memory of a thread for results of one batch after the other.

    Fresh memory costs a CPU as much as the arithmetic: each page of it is cleared first.
    """

    is_buffered: bool
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """Return memory for torch's ``out=``; none where torch shall allocate its own."""
        if not self.is_buffered:
            return None
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            # Batches grow little by little; doubling keeps this rare.
            buffer = like.new_empty(max(size, 2 * buffer.numel() if buffer is not None else 0))
            self._buffers[name] = buffer
        return buffer[:size].view(shape)


def _with_pooled(
    inputs: AttentionInputs, batch_slot: int, head: int, blocks: Tensor, name: str
) -> Tensor:
    """Return ``[NK, T, D]`` in the accumulation dtype, with ``[C, T, D]`` pooled ones behind."""
    # Contiguous, so that whole blocks can be gathered as rows.
    blocks = blocks.to(inputs.accumulate).contiguous()
    if inputs.coarse is None:
        return blocks
    pooled = getattr(inputs.coarse, name)[batch_slot, head]  # [num_listed, D]
    block = blocks.shape[1]
    return torch.cat([blocks, _to_blocks(pooled, -(-len(pooled) // block), block)])


def _attend(
    head: _Head,
    rows: slice,
    columns: Tensor,  # [R, L]
    listed: Tensor | None,  # [R, L] bool
    space: _Workspace,
) -> tuple[Tensor, Tensor]:
    """Attend with some query blocks; return output ``[R, M, D]`` and log-sum-exp ``[R, M]``."""
    q = head.q[rows]
    num_rows, num_queries, head_size = q.shape
    num_entries, block = columns.shape[1], head.k.shape[1]
    keep = None
    if listed is not None or not (head.is_whole is None or bool(head.is_whole[columns].all())):
        keep = head.exists[columns]  # [R, L, T]
        keep = keep if listed is None else keep & listed[..., None]
    bias = None
    if head.log_counts is not None:
        bias = _coarse_bias(head.log_counts, columns, listed)  # [R, num_listed]
        pooled = torch.arange(head.num_k_blocks, len(head.k), device=columns.device)
        columns = torch.cat([columns, pooled.expand(num_rows, -1)], dim=1)
    if columns.shape[1] == 0:
        out = torch.zeros_like(q)
        return out, out.new_full(out.shape[:2], float("-inf"))

    def gather(name: str, blocks: Tensor) -> Tensor:
        """Return ``[R, K, D]``."""
        shape = (columns.numel(), block * head_size)
        memory = space.take(name, shape, blocks)
        taken = torch.index_select(blocks.flatten(1), 0, columns.flatten(), out=memory)
        return taken.view(num_rows, -1, head_size)

    k = gather("k", head.k)
    memory = space.take("scores", (num_rows, num_queries, k.shape[1]), k)
    # Not scaled before: bfloat16 has no room for it. What is added counts nothing times.
    nothing = q.new_zeros(1, 1, 1)
    scores = torch.baddbmm(
        nothing, q, k.transpose(1, 2), beta=0, alpha=head.scale, out=memory
    )  # [R, M, K]
    if keep is not None:
        listed_scores = scores[:, :, : num_entries * block]
        listed_scores.masked_fill_(~keep.flatten(1)[:, None], float("-inf"))
    if bias is not None:
        bias = F.pad(
            bias, (0, scores.shape[2] - num_entries * block - bias.shape[1]), value=float("-inf")
        )
        scores[:, :, num_entries * block :] += bias[:, None]
    peak = scores.amax(-1)
    # In place on a CPU: the scores are not needed again.
    weights = torch.softmax(scores, -1, out=None if memory is None else scores)
    # The largest weight is exp(peak - lse), so this saves a pass with exponentials.
    lse = peak - weights.amax(-1).log()
    if keep is not None or bias is not None:
        has_no_key = peak.isneginf()
        if bool(has_no_key.any()):
            # Softmax over nothing is NaN; it is defined to give zeros and minus infinity.
            weights = weights.masked_fill(has_no_key[..., None], 0.0)
            lse = lse.masked_fill(has_no_key, float("-inf"))
    return torch.bmm(weights, gather("v", head.v)), lse


def _coarse_bias(log_counts: Tensor, columns: Tensor, listed: Tensor | None) -> Tensor:
    """Return what is added to the logits of pooled keys, minus infinity for listed blocks."""
    num_listed = len(log_counts)
    # Entries beyond the lists, sinks and padding, go to an extra column that is cut off.
    is_own = columns < num_listed if listed is None else listed & (columns < num_listed)
    target = torch.where(is_own, columns, num_listed)
    bias = F.pad(log_counts, (0, 1)).repeat(len(columns), 1)
    return bias.scatter_(1, target, float("-inf"))[:, :num_listed]


def _to_blocks(tokens: Tensor, num_blocks: int, block: int) -> Tensor:
    """Pad ``[..., N, D]`` with zeros to whole blocks: ``[..., num_blocks, block, D]``."""
    extra = num_blocks * block - tokens.shape[-2]
    # Even a padding of zero tokens would copy.
    padded = F.pad(tokens, (0, 0, 0, extra)) if extra else tokens
    return padded.reshape(*padded.shape[:-2], num_blocks, block, padded.shape[-1])


def _key_exists(inputs: AttentionInputs) -> Tensor:
    """Return ``[B, NK, T]`` booleans: false for masked keys and the last block's padding."""
    block_map, key_mask = inputs.block_map, inputs.key_mask
    batch, num_k = inputs.k.shape[0], inputs.k.shape[2]
    if key_mask is None:
        key_mask = torch.ones(batch, num_k, dtype=torch.bool, device=inputs.k.device)
    padded = F.pad(key_mask, (0, block_map.num_k_blocks * block_map.block_k - num_k))
    return padded.reshape(batch, block_map.num_k_blocks, block_map.block_k)


@dataclass(frozen=True, kw_only=True)
class _HeadLists:
    """The lists of one head, in order of their lengths."""

    block_map: BlockMap
    order: Tensor  # [NQ]
    """Query blocks as they are handled: by the length of their lists; full rows last."""
    columns: Tensor  # [nnz]
    """Listed key blocks of all rows, as the map has them."""
    starts: list[int]
    """Where the list of each row of `order` begins among them."""
    lengths: list[int]
    """Its length."""

    @classmethod
    def of(cls, block_map: BlockMap, batch_slot: int, head: int) -> _HeadLists:
        """Take the lists of a head."""
        num_rows = block_map.num_listed_q_blocks
        first_row = (batch_slot * block_map.num_heads + head) * num_rows
        offsets = block_map.row_offsets[first_row : first_row + num_rows + 1]
        lengths, order = offsets.diff().sort(stable=True)
        full_rows = torch.arange(num_rows, block_map.num_q_blocks, device=order.device)
        return cls(
            block_map=block_map,
            order=torch.cat([order, full_rows]),
            columns=block_map.columns[int(offsets[0]) : int(offsets[-1])].long(),
            starts=(offsets[order] - offsets[0]).tolist(),
            lengths=lengths.tolist(),
        )

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield all rows in batches of at most `_SCORES_PER_BATCH` scores, one row at least.

        Yields:
            Rows in `order`, their key blocks ``[R, L]`` padded to one length, and which of those
            are real ``[R, L]``, none if all are.
        """
        block_map, device = self.block_map, self.columns.device
        all_blocks = torch.arange(block_map.num_k_blocks, device=device)
        sinks = all_blocks[block_map.num_listed_k_blocks :]
        limit = _SCORES_PER_BATCH.get(device.type, _SCORES_PER_BATCH["cuda"])
        scores_per_entry = block_map.block_q * block_map.block_k
        num_rows = block_map.num_listed_q_blocks
        start = 0
        for end in range(1, num_rows + 1):
            # Lengths ascend: the next row's list is the longest of a batch that would include it.
            entries = 0
            if end < num_rows:
                entries = (end + 1 - start) * (self.lengths[end] + len(sinks))
            if end == num_rows or entries * scores_per_entry > limit:
                columns, listed = self._padded(start, end)
                if len(sinks):
                    columns = torch.cat([columns, sinks.expand(end - start, -1)], dim=1)
                    listed = None if listed is None else F.pad(listed, (0, len(sinks)), value=True)
                yield slice(start, end), columns, listed
                start = end
        for row in range(num_rows, block_map.num_q_blocks):
            yield slice(row, row + 1), all_blocks[None], None

    def _padded(self, start: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Return the lists of some rows, padded to one length, and which entries are real."""
        longest, device = self.lengths[end - 1], self.columns.device
        if end - start == 1:
            first = self.starts[start]
            return self.columns[None, first : first + longest], None
        slots = torch.arange(longest, device=device)
        positions = torch.tensor(self.starts[start:end], device=device)[:, None] + slots
        if self.lengths[start] == longest:
            return self.columns[positions], None
        lengths = torch.tensor(self.lengths[start:end], device=device)
        is_listed = slots < lengths[:, None]  # [R, L]
        return self.columns[positions.where(is_listed, 0)].where(is_listed, 0), is_listed
