# SPDX-License-Identifier: Apache-2.0
"""Attention of training on a CPU against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.cpu_attention import CpuAttention, attention


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        values = torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    return draw(), draw(), draw()


def test_gradients_are_those_of_numerical_differences() -> None:
    assert torch.autograd.gradcheck(attention, inputs())


@pytest.mark.parametrize("scale", [None, 0.5])
def test_values_and_gradients_are_those_of_torch(scale: float | None) -> None:
    ours, theirs = inputs(), inputs()
    out = attention(*ours, scale)
    expected = F.scaled_dot_product_attention(*theirs, scale=scale)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, dtype=out.dtype)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one.grad, theirs_one.grad)


def test_under_autocast_it_computes_in_bfloat16() -> None:
    ours, exact = inputs(torch.float32), inputs()
    with CpuAttention(), torch.autocast("cpu", torch.bfloat16):
        out = F.scaled_dot_product_attention(*ours)
    assert out.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(*exact)
    out.float().sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(out.double(), expected, atol=0.03, rtol=0.03)
    for ours_one, exact_one in zip(ours, exact, strict=True):
        assert ours_one.grad is not None
        assert exact_one.grad is not None
        torch.testing.assert_close(ours_one.grad.double(), exact_one.grad, atol=0.1, rtol=0.05)


def test_calls_with_a_mask_are_torchs_own() -> None:
    q, k, v = inputs()
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    with CpuAttention():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
