# SPDX-License-Identifier: Apache-2.0
"""Choose key blocks without training: softmax over pooled queries and keys.

Source: Block-Sparse Global Attention for Efficient Multi-View Geometry Transformers (arXiv
2509.07120). Three differences from its published code. The mass asked for is reached, not missed by
a block. Special tokens lie in blocks of their own, which no selection can drop (see
`ns_sparseattn.attention.layout`). A ragged block is weighed by the number of its keys.

Neither the scores of all blocks nor a sorted copy is ever in memory: scores are made in chunks (on
CUDA devices tile by tile, in `ns_sparseattn.kernels.selection`), and what stays is the list of the
blocks kept.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens, ``D`` head size, ``R`` query blocks, ``C`` key blocks.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..errors import check_tensor
from .backends.triton import what_is_missing
from .block_map import BlockMap
from .limits import KeptLimits, Shares
from .pooling import block_means
from .threads import map_in_threads
from .threshold import keep_largest

_SCORES_PER_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Pooled scores that a thread holds at once: 1 MiB in float32, a core's cache, on a CPU; 16 MiB on
a GPU, where no other size was tried."""


def select_blocks(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    *,
    mass: Shares | None = None,
    min_density: Shares = 0.0,
    max_density: Shares = 1.0,
    block_q: int = 128,
    block_k: int = 64,
    num_full_q_blocks: int = 0,
    num_sink_k_blocks: int = 0,
    key_mask: Tensor | None = None,  # [B, Nk] bool
    query_mask: Tensor | None = None,  # [B, Nq] bool
) -> BlockMap:
    """Pick, per head and query block, the key blocks with the largest pooled attention.

    The share of a key block is the softmax, over all listed key blocks, of the dot product of the
    mean query and the mean key, scaled by ``1 / sqrt(D)``, each weighed by the number of its keys.
    The fewest most likely blocks whose shares reach `mass` are kept, within the density bounds; at
    least one block that has keys is kept. A mass of 1 keeps all blocks that have keys.

    Args:
        q: ``[B, H, Nq, D]``, after q/k norm and positional encoding.
        k: ``[B, H, Nk, D]``, likewise.
        mass: Share of the pooled softmax to reach, in (0, 1]; ``None`` keeps `max_density`. Like
            the bounds one number, or one for each head.
        min_density: Share of the listed key blocks kept at least.
        max_density: Share of the listed key blocks kept at most.
        block_q: Tokens of a query block.
        block_k: Tokens of a key block.
        num_full_q_blocks: Trailing query blocks that attend to everything and are not selected for.
        num_sink_k_blocks: Trailing key blocks that everyone attends to and that take no part in the
            selection.
        key_mask: True where a key exists; keys that do not are left out of the means.
        query_mask: True where a query counts for the mean of its block.

    Returns:
        The map, on q's device. Of blocks with equal scores the first are taken.

    Raises:
        TypeError: If q or k is not floating point, or the mask not boolean.
        ValueError: If there are no tokens, shapes do not fit, q or k is not finite, a scene has no
            key, a share is out of range, or shares are not one for each head.

    Example:
        >>> import torch
        >>> q = torch.randn(1, 2, 512, 64)
        >>> select_blocks(q, q, max_density=(0.25, 0.5)).counts[0, :, 0].tolist()
        [2, 4]
    """
    _check(q, k, key_mask)
    batch, heads = q.shape[:2]
    num_q_blocks, num_k_blocks = math.ceil(q.shape[2] / block_q), math.ceil(k.shape[2] / block_k)
    for name, number, limit in (
        ("num_full_q_blocks", num_full_q_blocks, num_q_blocks),
        ("num_sink_k_blocks", num_sink_k_blocks, num_k_blocks),
    ):
        if not 0 <= number <= limit:
            raise ValueError(f"`{name}` must be 0 to {limit}, got {number}.")
    num_rows, num_columns = num_q_blocks - num_full_q_blocks, num_k_blocks - num_sink_k_blocks
    limits = KeptLimits.of(mass, min_density, max_density, heads, num_columns)
    with torch.no_grad():
        q_means, _ = block_means(q, num_q_blocks, block_q, query_mask)
        k_means, k_counts = block_means(k, num_k_blocks, block_k, key_mask)
        _check_finite(q_means, k_means)
        select = _select_in_kernels if _has_kernels(q_means) else _select
        row_counts, columns = select(
            q_means[:, :, :num_rows],
            k_means[:, :, :num_columns],
            k_counts[:, :num_columns],
            limits,
        )
    row_offsets = torch.zeros(batch * heads * num_rows + 1, dtype=torch.int64, device=q.device)
    torch.cumsum(row_counts, 0, out=row_offsets[1:])
    return BlockMap(
        num_batch=batch,
        num_heads=heads,
        num_q_blocks=num_q_blocks,
        num_k_blocks=num_k_blocks,
        block_q=block_q,
        block_k=block_k,
        row_offsets=row_offsets,
        columns=columns,
        num_full_q_blocks=num_full_q_blocks,
        num_sink_k_blocks=num_sink_k_blocks,
    )


def _has_kernels(means: Tensor) -> bool:
    """Return whether the Triton kernels can select from such means here."""
    if what_is_missing() is not None:
        return False
    from ..kernels import selection as kernels

    return kernels.why_not(means) is None


def _select_in_kernels(
    q_means: Tensor,  # [B, H, R, D]
    k_means: Tensor,  # [B, H, C, D]
    k_counts: Tensor,  # [B, C]
    limits: KeptLimits,
) -> tuple[Tensor, Tensor]:
    """As `_select`, in Triton kernels."""
    from ..kernels.selection import select_columns

    return select_columns(
        q_means, k_means, k_counts, mass=limits.mass, least=limits.least, most=limits.most
    )


def _select(
    q_means: Tensor,  # [B, H, R, D]
    k_means: Tensor,  # [B, H, C, D]
    k_counts: Tensor,  # [B, C]
    limits: KeptLimits,
) -> tuple[Tensor, Tensor]:
    """Return the number of blocks of each row, ``[B * H * R]``, and their ids, row after row."""
    device = q_means.device
    row_counts: list[Tensor] = []
    columns: list[Tensor] = []
    for b in range(len(q_means)):
        present = k_counts[b].nonzero()[:, 0]
        if not len(present):
            row_counts.append(k_counts.new_zeros(q_means.shape[1] * q_means.shape[2]))
            continue
        # Most of the time all blocks have keys, and need no copy.
        keys = k_means[b] if len(present) == k_means.shape[2] else k_means[b][:, present]
        log_counts = k_counts[b, present].to(keys.dtype).log()
        select = partial(_select_chunk, q_means[b], keys, log_counts, limits)
        chunks = _chunks(q_means.shape[1], q_means.shape[2], len(present), device)
        for num_kept, ids in map_in_threads(select, chunks, device):
            row_counts.append(num_kept)
            columns.append(present[ids].to(torch.int32))
    none = k_counts.new_zeros(0)
    return torch.cat([*row_counts, none]), torch.cat([*columns, none.to(torch.int32)])


_Chunk = tuple[slice, slice]
"""Heads and rows."""


def _select_chunk(
    queries: Tensor,  # [H, R, D]
    keys: Tensor,  # [H, C, D]
    log_counts: Tensor,  # [C]
    limits: KeptLimits,
    chunk: _Chunk,
) -> tuple[Tensor, Tensor]:
    """Return the number of blocks of each row of a chunk, and their places among ``C``."""
    heads, rows = chunk
    # In float32 whatever the caller's autocast says: 8 bits would tie blocks.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries[heads, rows] @ keys[heads].transpose(1, 2)  # [G, R, C]
    scores.mul_(queries.shape[-1] ** -0.5).add_(log_counts)
    flat = scores.flatten(0, 1)
    weights = None
    if limits.mass is not None:
        weights = (flat - flat.amax(-1, keepdim=True)).exp_()
    keep, num_kept = keep_largest(flat, weights, limits.wanted(scores, weights, heads.start))
    return num_kept, keep.nonzero()[:, 1]


def _chunks(num_heads: int, num_rows: int, num_columns: int, device: torch.device) -> list[_Chunk]:
    """Split a batch slot into slices of heads and, if one head is too much, of its rows."""
    limit = _SCORES_PER_CHUNK["cpu" if device.type == "cpu" else "cuda"]
    heads_per_chunk = max(limit // max(num_rows * num_columns, 1), 1)
    # Chunks of several heads hold all their rows, so that rows stay in order.
    rows_per_chunk = min(max(limit // num_columns, 1), max(num_rows, 1))
    return [
        (
            slice(head, min(head + heads_per_chunk, num_heads)),
            slice(row, min(row + rows_per_chunk, num_rows)),
        )
        for head in range(0, num_heads, heads_per_chunk)
        for row in range(0, num_rows, rows_per_chunk)
    ]


def _check(q: Tensor, k: Tensor, key_mask: Tensor | None) -> None:
    """Raise unless shapes and dtypes fit each other and there is something to select."""
    check_tensor("q", q, ("B", "H", "Nq", "D"), is_floating=True)
    check_tensor("k", k, (q.shape[0], q.shape[1], "Nk", q.shape[3]), is_floating=True)
    for name, tensor in (("q", q), ("k", k)):
        if tensor.numel() == 0:
            raise ValueError(f"`{name}` must hold at least one token, got {list(tensor.shape)}.")
    if key_mask is None:
        return
    check_tensor("key_mask", key_mask, (k.shape[0], k.shape[2]))
    if key_mask.dtype != torch.bool:
        raise TypeError(f"`key_mask` must be boolean, got {key_mask.dtype}.")
    without = (~key_mask.any(-1)).nonzero()[:, 0].tolist()
    if without:
        raise ValueError(
            "`key_mask` must leave at least one key in each batch slot, "
            f"got none in slots {without}."
        )


def _check_finite(q_means: Tensor, k_means: Tensor) -> None:
    """Raise ``ValueError`` if pooled scores are not finite, or may not be."""
    largest = []
    for name, means in (("q", q_means), ("k", k_means)):
        largest.append(float(means.abs().amax()))
        if not math.isfinite(largest[-1]):
            raise ValueError(
                f"`{name}` must be finite, got NaN or infinity in the means of "
                f"{int((~torch.isfinite(means)).any(-1).sum())} of its blocks."
            )
    if math.prod(largest) * q_means.shape[-1] > torch.finfo(q_means.dtype).max:
        raise ValueError(
            "`q` and `k` must be small enough for finite scores, got means of up to "
            f"{largest[0]:.1e} and {largest[1]:.1e}."
        )
