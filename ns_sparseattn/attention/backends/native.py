# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention on x86 CPUs in C++: one pass over the listed key blocks.

bfloat16 is multiplied as such where the CPU can (AVX512-BF16) and as float32 elsewhere; scores,
softmax, weights and sums are float32 always. float16 is computed as float32.

NaN in a query makes that query's output NaN; NaN in a key or value that exists, the output of every
query that attends to it. The result depends neither on the number of threads nor on the run.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``C`` listed key blocks, ``D`` head size.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import native_build
from .inputs import AttentionInputs

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_SCRATCH_BYTES = 1 << 25
"""Memory for packed keys and values, 32 MiB: several heads at once, so that threads seldom wait
for each other. With 256 MiB the clearing of fresh pages cost 7 % (16 heads, 8192 tokens, density
0.1). A head that needs more gets it."""
_OUT_OF_MEMORY = 1


class _Call(ctypes.Structure):
    """``Call`` of native_kernel.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse", "key_mask")),
        *((name, ctypes.c_void_p) for name in ("row_offsets", "columns")),
        *((f"coarse_{name}", ctypes.c_void_p) for name in ("keys", "values", "log_counts")),
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "heads", "num_q", "num_k")),
        ("head_size", ctypes.c_int64),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in ("q", "k", "v")),
        *((name, ctypes.c_int64) for name in ("block_q", "block_k")),
        *((f"num_{name}_blocks", ctypes.c_int64) for name in ("q", "k", "full_q", "sink_k")),
        ("scratch_bytes", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run."""
    q = inputs.q
    if q.device.type != "cpu":
        return f"it runs on CPUs, and the tensors are on {q.device}."
    if q.dtype not in (*_DTYPES, torch.float16):
        return f"it computes in float32, which {q.dtype} asks to exceed."
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, inputs.k, inputs.v)):
        return "it has no gradient; call it under torch.no_grad(), or use gather."
    return what_is_missing()


def what_is_missing() -> str | None:
    """Return what this machine lacks; builds the kernel if that is what it takes to know."""
    try:
        native_build.load()
    except native_build.UnavailableError as error:
        return str(error)
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it.

    Raises:
        ValueError: If the map's row offsets do not ascend from zero.
        MemoryError: If the packed keys and values of one head do not fit in memory.
    """
    return run_with(native_build.load(), inputs)


def run_with(library: ctypes.CDLL, inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation with a given build of the kernel."""
    q, k, v = (_readable(x) for x in (inputs.q, inputs.k, inputs.v))
    block_map, coarse = inputs.block_map, inputs.coarse
    row_offsets = block_map.row_offsets.to(torch.int64).contiguous()
    # What is out of order here would be read from outside the list.
    if int(row_offsets[0]) != 0 or bool((row_offsets.diff() < 0).any()):
        raise ValueError("`block_map.row_offsets` must ascend from 0.")
    columns = block_map.columns.to(torch.int32).contiguous()
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    # Named, so that the copies live until the call returns.
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "lse": lse,
        "row_offsets": row_offsets,
        "columns": columns,
    }
    if inputs.key_mask is not None:
        tensors["key_mask"] = inputs.key_mask.contiguous()
    if coarse is not None:
        tensors["coarse_keys"] = coarse.keys.contiguous()
        tensors["coarse_values"] = coarse.values.contiguous()
        tensors["coarse_log_counts"] = coarse.log_counts.contiguous()
    batch, heads, num_q, head_size = q.shape
    call = _Call(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        dtype=_DTYPES[q.dtype],
        batch=batch,
        heads=heads,
        num_q=num_q,
        num_k=k.shape[2],
        head_size=head_size,
        q_strides=_strides(q),
        k_strides=_strides(k),
        v_strides=_strides(v),
        block_q=block_map.block_q,
        block_k=block_map.block_k,
        num_q_blocks=block_map.num_q_blocks,
        num_k_blocks=block_map.num_k_blocks,
        num_full_q_blocks=block_map.num_full_q_blocks,
        num_sink_k_blocks=block_map.num_sink_k_blocks,
        scratch_bytes=_SCRATCH_BYTES,
        num_threads=torch.get_num_threads(),
        scale=inputs.scale,
    )
    # ctypes lets other Python threads run in the meantime.
    status = library.ns_block_sparse_attention(ctypes.byref(call))
    if status == _OUT_OF_MEMORY:
        raise MemoryError("The native backend has no memory for the packed keys and values.")
    if status:
        raise RuntimeError(
            f"The native backend could not start {call.num_threads} threads; "
            "torch.set_num_threads says how many to use."
        )
    return out.to(inputs.q.dtype), lse


def _readable(tokens: Tensor) -> Tensor:
    """Return ``[B, H, N, D]`` in a dtype that the kernel reads, the last axis dense."""
    if tokens.dtype not in _DTYPES:
        tokens = tokens.float()
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def _strides(tokens: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Return the strides of batch, head and token in elements."""
    return (ctypes.c_int64 * 3)(*tokens.stride()[:3])
