# SPDX-License-Identifier: Apache-2.0
"""The operation `block_sparse_attention`: checks its input and hands it to a backend.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``D`` head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Literal, overload

import torch
from torch import Tensor

from ..errors import check_tensor
from .backends import BACKENDS, PREFERENCES, BackendName
from .backends.inputs import AttentionInputs
from .block_map import BlockMap
from .pooling import CoarseBlocks

_logger = logging.getLogger(__name__)


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    backend: BackendName = ...,
    key_mask: Tensor | None = ...,
    coarse: bool = ...,
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
    coarse: bool = ...,
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
    coarse: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Non-causal attention in which each query block attends to its key blocks only.

    Query ``i`` of block ``i // block_q`` attends to the keys of the blocks that the map lists for
    it, with softmax over exactly those: ``softmax(q k^T / sqrt(D)) v``. Softmax and sums run in
    float32 at least.

    With `coarse`, the blocks that a row leaves out still contribute to the same softmax, each
    through the mean of its keys and the mean of its values, counted as often as it has keys.

    Args:
        q: ``[B, H, Nq, D]``, float32, float16, bfloat16 or float64.
        k: ``[B, H, Nk, D]``, like q.
        v: ``[B, H, Nk, D]``, like q.
        block_map: Which blocks to compute; its batch, heads and block counts must fit q and k.
        backend: ``auto`` chooses and logs its choice once. An explicit name never falls back. On a
            CPU the best one, ``native``, is compiled when it is first asked for, which is logged
            and takes seconds; ``NS_SPARSEATTN_NO_BUILD=1`` forbids that.
        key_mask: True where a key exists. A query left without any key gives zeros.
        coarse: Let blocks that are left out contribute through their means.
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
    done = attend_to_blocks(
        q,
        k,
        v,
        block_map,
        backend=backend,
        key_mask=key_mask,
        coarse=coarse,
        needs_lse=return_lse,
    )
    if not return_lse:
        return done.out
    assert done.lse is not None
    return done.out, done.lse


@dataclass(frozen=True, kw_only=True)
class Attended:
    """What the operation returned, and what computed it."""

    out: Tensor  # [B, H, Nq, D]
    lse: Tensor | None  # [B, H, Nq]
    """None at most where it was not asked for."""
    backend: str
    """The backend that ran; never ``auto``."""


def attend_to_blocks(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    block_map: BlockMap,
    *,
    backend: BackendName = "auto",
    key_mask: Tensor | None = None,  # [B, Nk] bool
    coarse: bool = False,
    needs_lse: bool = False,
) -> Attended:
    """As `block_sparse_attention`; also says which backend ran."""
    inputs = _checked(q, k, v, block_map, key_mask, coarse, needs_lse)
    name = _choose(backend, inputs)
    # The types above are a contract: a caller's autocast must not change those inside a backend.
    with torch.autocast(q.device.type, enabled=False):
        out, lse = BACKENDS[name].run(inputs)
    return Attended(out=out, lse=lse, backend=name)


def why_not(
    backend: str,
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    block_map: BlockMap,
    *,
    key_mask: Tensor | None = None,  # [B, Nk] bool
    coarse: bool = False,
) -> str | None:
    """Say in one sentence why a backend cannot compute such inputs here; none if it can.

    Raises:
        TypeError: As `block_sparse_attention`.
        ValueError: As `block_sparse_attention`, or if there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {sorted(BACKENDS)}, got {backend!r}.")
    return BACKENDS[backend].why_not(_checked(q, k, v, block_map, key_mask, coarse))


def resolve_backend(backend: str, device_type: str) -> str:
    """Return what a name stands for on a kind of device; ``ValueError`` if it is unknown.

    For ``auto`` that is the best backend that this machine has for the device. Inputs that it
    cannot take go to the next best.
    """
    if backend != "auto":
        return _known(backend)
    return next(
        (n for n in PREFERENCES.get(device_type, ()) if BACKENDS[n].what_is_missing() is None),
        "gather",
    )


def _choose(backend: str, inputs: AttentionInputs) -> str:
    """Return the backend to run, or raise ``ValueError`` if a named one cannot."""
    if backend != "auto":
        reason = BACKENDS[_known(backend)].why_not(inputs)
        if reason is not None:
            raise ValueError(f"The {backend} backend cannot run here: {reason}")
        return backend
    passed_over = []
    for name in PREFERENCES.get(inputs.q.device.type, ()):
        reason = BACKENDS[name].why_not(inputs)
        if reason is None:
            _say_once(name, inputs.q.device.type, tuple(passed_over))
            return name
        passed_over.append(f"{name} cannot: {reason}")
    _say_once("gather", inputs.q.device.type, tuple(passed_over))
    return "gather"


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {['auto', *BACKENDS]}, got {backend!r}.")
    return backend


@cache
def _say_once(name: str, device_type: str, passed_over: tuple[str, ...]) -> None:
    """Log a choice; cached, so that each is said once."""
    _logger.info(
        "%s",
        " ".join(
            [f"Block-sparse attention on {device_type} uses the {name} backend.", *passed_over]
        ),
    )


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    key_mask: Tensor | None,
    coarse: bool,
    needs_lse: bool = True,
) -> AttentionInputs:
    """Return the inputs of a backend, or raise as `block_sparse_attention` says."""
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
    return AttentionInputs(
        q=q,
        k=k,
        v=v,
        block_map=block_map,
        key_mask=key_mask,
        coarse=CoarseBlocks.of(k, v, block_map, key_mask) if coarse else None,
        needs_lse=needs_lse,
    )
