# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention through FlashAttention-4, where its wheel (``flash-attn-4``) is installed.

Its kernels take lists of whole key blocks on Hopper and Blackwell data-centre GPUs. Blocks of which
some keys do not exist are computed apart, and the two are merged.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from ..block_map import BlockMap
from . import gather
from .inputs import AttentionInputs
from .lists import BlockLists, block_is_whole
from .merge import add_coarse, merge

_CAPABILITIES = (9, 10)
"""Major compute capabilities whose kernels take block lists (flash-attn-4 4.0.0b36)."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run."""
    missing = what_is_missing()
    if missing is not None:
        return missing
    if inputs.q.device.type != "cuda":
        return f"FlashAttention-4 runs on CUDA devices only, not on {inputs.q.device.type}."
    major, minor = torch.cuda.get_device_capability(inputs.q.device)
    if major not in _CAPABILITIES:
        return f"FlashAttention-4 takes block lists on sm_90 and sm_100, this is sm_{major}{minor}."
    if inputs.q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention-4 takes float16 and bfloat16, the inputs are {inputs.q.dtype}."
    return None


def what_is_missing() -> str | None:
    """Return what this installation lacks."""
    try:
        found = find_spec("flash_attn.cute")
    except ImportError:
        found = None
    return None if found else "FlashAttention-4 is not installed (pip install --pre flash-attn-4)."


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it."""
    from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]
    from flash_attn.cute.block_sparsity import (  # pyright: ignore[reportMissingImports]
        BlockSparseTensorsTorch,
    )

    block_map = inputs.block_map
    whole, ragged = split_by_wholeness(inputs)
    lists = BlockLists.of_mask(whole)
    none = BlockLists.of_mask(torch.zeros_like(whole[..., :1]))
    out, lse = flash_attn_func(
        *(x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v)),
        softmax_scale=inputs.scale,
        block_sparse_tensors=BlockSparseTensorsTorch(
            mask_block_cnt=none.counts,
            mask_block_idx=none.blocks,
            full_block_cnt=lists.counts,
            full_block_idx=lists.blocks,
            block_size=(block_map.block_q, block_map.block_k),
        ),
        return_lse=True,
    )
    # A query without any listed key leaves nothing behind that could be relied upon.
    sees_none = (lists.counts == 0).repeat_interleave(block_map.block_q, 2)[
        :, :, : inputs.q.shape[2]
    ]
    out = out.transpose(1, 2).masked_fill(sees_none[..., None], 0.0)
    lse = lse.to(inputs.accumulate).masked_fill(sees_none, float("-inf"))
    if ragged is not None:
        rest, rest_lse = gather.run(replace(inputs, block_map=ragged, coarse=None, needs_lse=True))
        assert rest_lse is not None
        out, lse = merge(out, lse, rest, rest_lse)
    return add_coarse(inputs, out, lse)


def split_by_wholeness(inputs: AttentionInputs) -> tuple[Tensor, BlockMap | None]:
    """Split the map into the blocks whose keys all exist and the others.

    Returns:
        Boolean mask ``[B, H, NQ, NK]`` of the former, a map of the latter, or none if there are
        none.
    """
    block_map = inputs.block_map
    mask = block_map.to_mask()
    is_whole = block_is_whole(inputs)[:, None, None]
    others = mask & ~is_whole
    ragged = None
    if bool(others.any()):
        ragged = BlockMap.from_mask(others, block_map.block_q, block_map.block_k)
    return mask & is_whole, ragged
