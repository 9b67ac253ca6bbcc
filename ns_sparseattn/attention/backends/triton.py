# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention through the Triton kernels of `ns_sparseattn.kernels`, on CUDA devices.

Triton's interpreter (``TRITON_INTERPRET=1``) runs the same kernels on a CPU, slowly, for tests.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .inputs import AttentionInputs


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run."""
    missing = what_is_missing()
    if missing is not None:
        return missing
    from ...kernels import forward
    from ...kernels.devices import why_not_on

    q, block_map = inputs.q, inputs.block_map
    lacks = why_not_on(q.device, is_interpreted=forward.is_interpreted())
    if lacks is not None:
        return lacks
    if q.dtype not in forward.DTYPES:
        return f"The kernels take float16, bfloat16 and float32, the inputs are {q.dtype}."
    if q.shape[3] not in forward.HEAD_SIZES:
        return f"The head size must be 32, 64 or 128, this is {q.shape[3]}."
    for name, size in (("Query", block_map.block_q), ("Key", block_map.block_k)):
        if size not in forward.BLOCK_SIZES:
            return f"{name} blocks must have 16, 32, 64 or 128 tokens, these have {size}."
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, inputs.k, inputs.v)):
        return "The kernels have no backward pass, and gradients are recorded (torch.no_grad)."
    return None


@cache
def what_is_missing() -> str | None:
    """Return what this installation lacks."""
    try:
        from ...kernels import forward
    except ImportError as error:
        return f"The kernels need triton, which is there for Linux (pip install triton): {error}."
    if forward.TRITON_VERSION < forward.OLDEST_TRITON:
        oldest, found = (
            ".".join(map(str, version))
            for version in (forward.OLDEST_TRITON, forward.TRITON_VERSION)
        )
        return f"The kernels need triton {oldest} or later, this is {found}."
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it.

    Means of the coarse term are rounded to q's dtype, so that tensor cores can multiply them.
    """
    from ...kernels.forward import CoarseTerm, KeyBlockLists, block_sparse_forward

    block_map, coarse = inputs.block_map, inputs.coarse
    lists = KeyBlockLists(
        row_offsets=block_map.row_offsets,
        columns=block_map.columns,
        block_q=block_map.block_q,
        block_k=block_map.block_k,
        num_full_q_blocks=block_map.num_full_q_blocks,
        num_sink_k_blocks=block_map.num_sink_k_blocks,
    )
    term = None
    if coarse is not None:
        term = CoarseTerm(keys=coarse.keys, values=coarse.values, log_counts=coarse.log_counts)
    return block_sparse_forward(
        inputs.q, inputs.k, inputs.v, lists, key_mask=inputs.key_mask, coarse=term
    )
