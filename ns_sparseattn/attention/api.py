# SPDX-License-Identifier: Apache-2.0
"""The operation `block_sparse_attention`: checks its input and hands it to a backend.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``D`` head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, overload

import torch
from torch import Tensor

from ..errors import check_tensor
from . import gather, reference
from .block_map import BlockMap

_logger = logging.getLogger(__name__)

BackendName = Literal["auto", "reference", "gather"]


@dataclass(frozen=True, kw_only=True)
class _Backend:
    """How to run one backend, and a sentence for when it cannot."""

    run: Callable[[Tensor, Tensor, Tensor, BlockMap, Tensor | None], tuple[Tensor, Tensor]]
    why_not: Callable[[Tensor, Tensor, Tensor], str | None]


_BACKENDS: dict[str, _Backend] = {
    "reference": _Backend(run=reference.run, why_not=reference.why_not),
    "gather": _Backend(run=gather.run, why_not=gather.why_not),
}


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    backend: BackendName = ...,
    key_mask: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    backend: BackendName = ...,
    key_mask: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    block_map: BlockMap,
    *,
    backend: BackendName = "auto",
    key_mask: Tensor | None = None,  # [B, Nk] bool
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Non-causal attention in which each query block attends to its key blocks only.

    Query ``i`` of block ``i // block_q`` attends to the keys of the blocks that the map lists for
    it, with softmax over exactly those: ``softmax(q k^T / sqrt(D)) v``. Softmax and sums run in
    float32 at least.

    Args:
        q: ``[B, H, Nq, D]``, float32, float16, bfloat16 or float64.
        k: ``[B, H, Nk, D]``, like q.
        v: ``[B, H, Nk, D]``, like q.
        block_map: Which blocks to compute; its batch, heads and block counts must fit q and k.
        backend: ``auto`` chooses and logs its choice once. An explicit name never falls back.
        key_mask: True where a key exists. A query left without any key gives zeros.
        return_lse: Also return the log-sum-exp of the scaled scores.

    Returns:
        Output ``[B, H, Nq, D]`` in q's dtype, and with `return_lse` the natural log-sum-exp ``[B,
        H, Nq]``.

    Raises:
        TypeError: If a dtype is not floating point or the dtypes differ.
        ValueError: If shapes, devices or the map do not fit, or the named backend cannot run.

    Example:
        >>> import torch
        >>> from ns_sparseattn.attention import BlockMap, block_sparse_attention
        >>> q = torch.randn(1, 2, 256, 64)
        >>> block_map = BlockMap.from_mask(torch.ones(1, 2, 2, 4, dtype=torch.bool))
        >>> block_sparse_attention(q, q, q, block_map).shape
        torch.Size([1, 2, 256, 64])
    """
    _check_inputs(q, k, v, block_map, key_mask)
    name = resolve_backend(backend, q.device.type)
    reason = _BACKENDS[name].why_not(q, k, v)
    if reason is not None:
        raise ValueError(f"The {name} backend cannot run here: {reason}")
    # The types above are a contract: a caller's autocast must not change those inside a backend.
    with torch.autocast(q.device.type, enabled=False):
        out, lse = _BACKENDS[name].run(q, k, v, block_map, key_mask)
    return (out, lse) if return_lse else out


def resolve_backend(backend: BackendName, device_type: str) -> str:
    """Return what a name stands for on a kind of device; ``ValueError`` if it is unknown."""
    name = _choose(device_type) if backend == "auto" else backend
    if name not in _BACKENDS:
        raise ValueError(f"`backend` must be one of {['auto', *_BACKENDS]}, got {backend!r}.")
    return name


@cache
def _choose(device_type: str) -> str:
    """Choose a backend for a device and log it; cached, so that it is said once."""
    _logger.info(
        "Block-sparse attention on %s uses the gather backend; the only other one, reference, is "
        "for checking.",
        device_type,
    )
    return "gather"


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, key_mask: Tensor | None
) -> None:
    check_tensor("q", q, ("B", "H", "Nq", "D"), is_floating=True)
    check_tensor("k", k, (q.shape[0], q.shape[1], "Nk", q.shape[3]), is_floating=True)
    check_tensor("v", v, tuple(k.shape), is_floating=True)
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"`q`, `k` and `v` must share a dtype, got {q.dtype}, {k.dtype} and {v.dtype}."
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"`q`, `k` and `v` must share a device, got {q.device}, {k.device} and {v.device}."
        )
    if q.numel() == 0 or k.numel() == 0:
        raise ValueError(f"`q` and `k` must not be empty, got {list(q.shape)} and {list(k.shape)}.")
    block_map.check_fits(q, k)
    if key_mask is not None:
        check_tensor("key_mask", key_mask, (k.shape[0], k.shape[2]))
        if key_mask.dtype != torch.bool:
            raise TypeError(f"`key_mask` must be boolean, got {key_mask.dtype}.")
