# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's block-sparse attention as a peer of ``benchmarks.attention``.

Not a backend of the package: it knows no key masks and no coarse term, and its plan, which is made
once here and not timed, lists single tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ns_sparseattn.attention.backends.inputs import AttentionInputs

NAME = "flashinfer"
_WORKSPACE_BYTES = 128 * 2**20
"""What its documentation recommends."""
_MOST_TOKENS = 2**31 - 1
"""Its plan counts the keys of all lists in int32."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Say in one sentence why it cannot compute such inputs here; none if it can."""
    if find_spec("flashinfer") is None:
        return "FlashInfer is not installed (pip install flashinfer-python)."
    block_map = inputs.block_map
    if inputs.coarse is not None:
        return "FlashInfer knows no coarse term."
    if inputs.key_mask is not None or inputs.q.shape[0] != 1:
        return "FlashInfer is called with one batch slot and without key masks here."
    if inputs.q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashInfer takes float16 and bfloat16, the inputs are {inputs.q.dtype}."
    if int(block_map.to_mask().sum()) * block_map.block_k > _MOST_TOKENS:
        return "FlashInfer's plan has no room for so many listed keys."
    return None


def prepare(inputs: AttentionInputs) -> Callable[[], Tensor]:
    """Make its plan for a map.

    Returns:
        What computes the output ``[1, H, Nq, D]``.
    """
    import flashinfer  # pyright: ignore[reportMissingImports]

    q, k, v = inputs.q[0], inputs.k[0], inputs.v[0]
    block_map = inputs.block_map
    heads, num_q, head_size = q.shape

    def sizes(num_tokens: int, block: int) -> Tensor:
        """Return the number of tokens of each block, ``[H, blocks]`` int32."""
        starts = torch.arange(0, math.ceil(num_tokens / block) * block, block, device=q.device)
        return (num_tokens - starts).clamp_max(block).to(torch.int32).expand(heads, -1).contiguous()

    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper: Any = flashinfer.VariableBlockSparseAttentionWrapper(workspace)
    wrapper.plan(
        block_map.to_mask()[0],
        sizes(num_q, block_map.block_q),
        sizes(k.shape[1], block_map.block_k),
        heads,
        heads,
        head_size,
        q_data_type=q.dtype,
    )
    return lambda: wrapper.run(q, k, v)[None]
