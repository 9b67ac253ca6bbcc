# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention through torch's FlexAttention: on GPUs, without kernels of our own.

On a CPU it was measured slower than gathering (and needs a compiler), so it is not offered there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .inputs import AttentionInputs
from .lists import BlockLists, block_is_whole
from .merge import add_coarse

_BLOCK_Q_MULTIPLE = 128
"""FlexAttention's own tile of queries at most; a block must hold whole tiles."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run."""
    missing = what_is_missing()
    if missing is not None:
        return missing
    if inputs.q.device.type != "cuda":
        return f"FlexAttention is used on CUDA devices only, not on {inputs.q.device.type}."
    if inputs.q.dtype == torch.float64:
        return "FlexAttention computes in float32 at most, the inputs are float64."
    if inputs.block_map.block_q % _BLOCK_Q_MULTIPLE:
        return (
            f"Query blocks must be a multiple of {_BLOCK_Q_MULTIPLE} tokens, "
            f"these have {inputs.block_map.block_q}."
        )
    return None


def what_is_missing() -> str | None:
    """Return what this installation lacks."""
    try:
        found = find_spec("torch.nn.attention.flex_attention")
    except ImportError:
        found = None
    if found is None:
        return f"FlexAttention needs torch 2.5 or later, this is {torch.__version__}."
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it."""
    return run_with(_compiled(), inputs)


def run_with(flex: Callable[..., Any], inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """As `run`, with FlexAttention compiled or as it is."""
    out, lse = flex(inputs.q, inputs.k, inputs.v, block_mask=block_mask_of(inputs), return_lse=True)
    return add_coarse(inputs, out, _natural(lse, inputs))


def block_mask_of(inputs: AttentionInputs) -> Any:
    """Return the map and the key mask as a ``BlockMask`` of FlexAttention."""
    from torch.nn.attention.flex_attention import BlockMask

    block_map = inputs.block_map
    block_q, block_k = block_map.block_q, block_map.block_k
    num_q, num_k = inputs.q.shape[2], inputs.k.shape[2]
    mask = block_map.to_mask()
    is_whole = block_is_whole(inputs)[:, None, None]
    whole, ragged = BlockLists.of_mask(mask & is_whole), BlockLists.of_mask(mask & ~is_whole)
    exists = inputs.key_mask
    if exists is None:
        exists = torch.ones(inputs.k.shape[0], num_k, dtype=torch.bool, device=inputs.k.device)
    # The last block asks for keys after the last as well.
    exists = F.pad(exists, (0, block_map.num_k_blocks * block_k - num_k))

    def is_seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # The kernel follows the lists and asks in ragged blocks only; uncompiled, this is all.
        return exists[b, k] & mask[b, h, q // block_q, k // block_k]

    return BlockMask.from_kv_blocks(
        ragged.counts,
        ragged.blocks,
        whole.counts,
        whole.blocks,
        BLOCK_SIZE=(block_q, block_k),
        mask_mod=is_seen,
        seq_lengths=(num_q, num_k),
    )


def _natural(lse: Tensor, inputs: AttentionInputs) -> Tensor:
    """Return the log-sum-exp with minus infinity, and nothing else, for queries without a key."""
    sees_nothing = lse < math.log(torch.finfo(torch.float32).tiny) * 1e3
    return lse.to(inputs.accumulate).masked_fill(sees_nothing, float("-inf"))


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Only the compiled form is a kernel; as it is, it computes every score.
    return torch.compile(flex_attention, dynamic=False)
