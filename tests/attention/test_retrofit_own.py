# SPDX-License-Identifier: Apache-2.0
"""`sparsify` on the models of this package, which take a plan themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ns_sparseattn.attention import AttentionPlan, TokenLayout, sparsify
from ns_sparseattn.models import VGGT, VGGTConfig

HALF = AttentionPlan.block_sparse(density=0.5)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def images(num_frames: int) -> Tensor:
    return torch.rand(1, num_frames, 3, 126, 154, generator=torch.Generator().manual_seed(0))


def forwards_of(model: nn.Module) -> dict[str, Any]:
    """What instances have in place of their class's forward: nothing, as a rule."""
    return {name: vars(module).get("forward") for name, module in model.named_modules()}


def own_model() -> VGGT:
    torch.manual_seed(0)
    model = VGGT(VGGTConfig.small()).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def test_own_model_takes_the_plan_itself() -> None:
    model, x = own_model(), images(6)
    dense, state = model(x), forwards_of(model)
    expected = model(x, plan=HALF)
    with sparsify(model, HALF) as stats:
        out = model(x)
    assert out.depth is not None
    assert dense.depth is not None
    assert expected.depth is not None
    assert torch.equal(out.depth, expected.depth)
    assert not torch.equal(out.depth, dense.depth)
    assert stats.taken == tuple(f"aggregator.global_blocks.{i}.attn" for i in range(4))
    assert stats.skipped == ()
    assert [layer.policy for layer in stats.layers] == ["block-sparse (density 0.5, coarse)"] * 4
    assert all(layer.time_ms > 0 for layer in stats.layers)
    assert forwards_of(model) == state


def test_own_model_nested_and_with_a_plan_of_the_call() -> None:
    model, x = own_model(), images(2)
    with sparsify(model, HALF) as outer, sparsify(model, AttentionPlan.dense()) as inner:
        model.predict(x[0])
        assert outer.layers == ()
        assert {layer.policy for layer in inner.layers} == {"dense"}
        model(x, plan=AttentionPlan.block_sparse(density=0.25), heads=())
        assert {layer.policy for layer in inner.layers} == {"block-sparse (density 0.25, coarse)"}


def test_own_model_knows_its_layout() -> None:
    tokens = TokenLayout(num_frames=1, num_special=5, grid_height=1, grid_width=1)
    with (
        pytest.raises(ValueError, match="must not be given for VGGT, which knows"),
        sparsify(own_model(), HALF, tokens=tokens),
    ):
        pass
