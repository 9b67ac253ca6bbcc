# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention in plain torch: gather the listed key blocks, then dense products.

Correct on every device and dtype, and the one backend with a gradient; the work is proportional to
the blocks kept. Rows are handled in order of their list length, in batches of one length where that
makes batches of some size: then nothing is padded and nothing masked. Products and softmax run in
float32 for 16-bit inputs as well: torch's products of bfloat16 on a CPU round their result, which
in the scores alone makes a relative error of 4e-3 (and in the weights one of 1.6e-3 more).
`fast_products` makes them faster where the inputs are bfloat16.

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

_SCORES_PER_BATCH = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores held at once: 2 MiB in float32 on a CPU, where half of it is slower for bfloat16 and twice
as much hardly faster; 64 MiB on a GPU, where no other size was tried."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run; it always can."""
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor | None]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it."""
    q, block_map = inputs.q, inputs.block_map
    batch, heads, num_q, head_size = q.shape
    q_blocks = _to_blocks(q, block_map.num_q_blocks, block_map.block_q)  # [B, H, NQ, M, D]
    k_blocks = _to_blocks(inputs.k, block_map.num_k_blocks, block_map.block_k)  # [B, H, NK, T, D]
    v_blocks = _to_blocks(inputs.v, block_map.num_k_blocks, block_map.block_k)
    exists = _key_exists(inputs)  # [B, NK, T]
    out = torch.empty(q_blocks.shape, dtype=q.dtype, device=q.device)
    lse = None
    if inputs.needs_lse:
        lse = torch.empty(out.shape[:4], dtype=inputs.accumulate, device=q.device)
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
            needs_lse=inputs.needs_lse,
        )
        attended = [_attend(head, *batch, workspaces.own) for batch in lists.batches()]
        out[b, h].index_copy_(0, lists.order, torch.cat([x for x, _ in attended]).to(q.dtype))
        if lse is not None:
            lse[b, h].index_copy_(
                0, lists.order, torch.cat([x for _, x in attended if x is not None])
            )

    slots = [(b, h) for b in range(batch) for h in range(heads)]
    with torch.set_grad_enabled(has_gradient), fast_products(q):
        map_in_threads(attend_with, slots, q.device)
    out = out.reshape(batch, heads, -1, head_size)[:, :, :num_q]
    return out, None if lse is None else lse.reshape(batch, heads, -1)[:, :, :num_q]


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
    needs_lse: bool


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
) -> tuple[Tensor, Tensor | None]:
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
        return out, out.new_full(out.shape[:2], float("-inf")) if head.needs_lse else None

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
    peak = scores.amax(-1) if head.needs_lse or keep is not None or bias is not None else None
    # In place on a CPU: the scores are not needed again.
    weights = torch.softmax(scores, -1, out=None if memory is None else scores)
    # The largest weight is exp(peak - lse), so this saves a pass with exponentials.
    lse = peak - weights.amax(-1).log() if head.needs_lse and peak is not None else None
    if keep is not None or bias is not None:
        assert peak is not None
        has_no_key = peak.isneginf()
        if bool(has_no_key.any()):
            # Softmax over nothing is NaN; it is defined to give zeros and minus infinity.
            weights = weights.masked_fill(has_no_key[..., None], 0.0)
            lse = None if lse is None else lse.masked_fill(has_no_key, float("-inf"))
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
    """Key blocks of all listed rows in that order, sinks included."""
    lengths: list[int]
    """How many of them each listed row has, ascending."""

    @classmethod
    def of(cls, block_map: BlockMap, batch_slot: int, head: int) -> _HeadLists:
        """Take the lists of a head."""
        num_rows = block_map.num_listed_q_blocks
        first_row = (batch_slot * block_map.num_heads + head) * num_rows
        offsets = block_map.row_offsets[first_row : first_row + num_rows + 1].long()
        lengths, order = offsets.diff().sort(stable=True)
        device = order.device
        sinks = torch.arange(block_map.num_listed_k_blocks, block_map.num_k_blocks, device=device)
        rows = torch.repeat_interleave(lengths)
        slots = torch.arange(len(rows), device=device)
        # From where an entry comes, and where it goes behind the sinks of the rows before.
        ends = lengths.cumsum(0)
        source = slots + (offsets[order] - (ends - lengths))[rows]
        columns = block_map.columns.new_empty(len(rows) + num_rows * len(sinks), dtype=torch.int64)
        columns[slots + rows * len(sinks)] = block_map.columns[source].long()
        if len(sinks):
            last = ends + torch.arange(num_rows, device=device) * len(sinks)
            columns[last[:, None] + torch.arange(len(sinks), device=device)] = sinks
        full_rows = torch.arange(num_rows, block_map.num_q_blocks, device=device)
        return cls(
            block_map=block_map,
            order=torch.cat([order, full_rows]),
            columns=columns,
            lengths=(lengths + len(sinks)).tolist(),
        )

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield all rows in batches of at most `_SCORES_PER_BATCH` scores, one row at least.

        A batch also ends where the lists become longer, once it has half as many.

        Yields:
            Rows in `order`, their key blocks ``[R, L]`` padded to one length, and which of those
            are real ``[R, L]``, none if all are.
        """
        block_map, device = self.block_map, self.columns.device
        limit = _SCORES_PER_BATCH.get(device.type, _SCORES_PER_BATCH["cuda"])
        limit //= block_map.block_q * block_map.block_k
        num_rows, start, first_entry, num_entries = len(self.lengths), 0, 0, 0
        for end, length in enumerate(self.lengths, start=1):
            num_entries += length
            if end < num_rows:
                # Lengths ascend: the next row's list is the longest of a batch that includes it.
                next_length = self.lengths[end]
                is_full = (end + 1 - start) * next_length > limit
                if not is_full and (next_length == length or 2 * (end - start) * length < limit):
                    continue
            entries = self.columns[first_entry : first_entry + num_entries]
            yield slice(start, end), *self._padded(entries, self.lengths[start:end])
            start, first_entry, num_entries = end, first_entry + num_entries, 0
        all_blocks = torch.arange(block_map.num_k_blocks, device=device)
        for row in range(num_rows, block_map.num_q_blocks):
            yield slice(row, row + 1), all_blocks[None], None

    @staticmethod
    def _padded(entries: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor | None]:
        """Return lists that follow each other, padded to one length, and what is real."""
        longest = lengths[-1]
        if lengths[0] == longest:
            return entries.view(len(lengths), longest), None
        slots = torch.arange(longest, device=entries.device)
        is_listed = slots < torch.tensor(lengths, device=entries.device)[:, None]  # [R, L]
        columns = entries.new_zeros(is_listed.shape)
        columns[is_listed] = entries
        return columns, is_listed
