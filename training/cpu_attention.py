# SPDX-License-Identifier: Apache-2.0
"""Attention with gradients for short sequences on a CPU.

PyTorch's fused backward pass and its softmax's backward pass in bfloat16 are slow there. This one
keeps the probabilities, which are small for a small network, and takes the row sums of the
backward pass from the output, as FlashAttention does (arXiv 2205.14135, appendix B.2).

How much is won: ``python -m benchmarks.training_attention``.

Axes: ``B`` sequences times heads, ``N`` tokens, ``D`` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,  # [B, N, D]
        k: Tensor,  # [B, N, D]
        v: Tensor,  # [B, N, D]
        scale: float,
    ) -> Tensor:
        scores = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
        probability = torch.baddbmm(scores, q, k.mT, beta=0, alpha=scale).softmax(-1)
        out = probability @ v
        ctx.save_for_backward(q, k, v, probability, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, probability, out = ctx.saved_tensors
        grad_v = probability.mT @ grad_out
        wide = torch.promote_types(out.dtype, torch.float32)
        row = (grad_out.to(wide) * out.to(wide)).sum(-1, keepdim=True).to(out.dtype)
        grad_scores = (grad_out @ v.mT).sub_(row).mul_(probability)
        grad_q = (grad_scores @ k).mul_(ctx.scale)
        grad_k = (grad_scores.mT @ q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None


def attention(
    q: Tensor,  # [..., N, D]
    k: Tensor,  # [..., N, D]
    v: Tensor,  # [..., N, D]
    scale: float | None = None,
) -> Tensor:
    """Return dense attention ``[..., N, D]``, as `scaled_dot_product_attention` without a mask."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    flat = (x.flatten(0, -3).to(dtype) for x in (q, k, v))
    # The backward pass runs without autocast; forward, too, or its softmax would be in float32.
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(*flat, scale).view(q.shape)  # type: ignore[union-attr]


class CpuAttention(TorchFunctionMode):
    """A context in which `scaled_dot_product_attention` without options is `attention`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and set(kwargs) <= {"scale"}:
            return attention(*args, **kwargs)
        return func(*args, **kwargs)
