# SPDX-License-Identifier: Apache-2.0
"""Models by others under a plan: what runs sparse, what does not, and that nothing stays behind."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import (
    AttentionPlan,
    BlockSparsePolicy,
    DensePolicy,
    TokenLayout,
    sparsify,
)

from .conftest import CASES, GRID, HALF, Case, images, same, state_of


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("num_frames", [1, 4])
def test_keeping_everything_is_the_dense_model(case: Case, batch: int, num_frames: int) -> None:
    model, inputs = case.model(), case.prepare(images(batch, num_frames))
    dense = model(inputs)
    for plan in (
        AttentionPlan.block_sparse(mass=1.0),
        AttentionPlan.paper(sparse_ratio=0.0),
        AttentionPlan.dense(),
    ):
        with sparsify(model, plan) as stats:
            out = model(inputs)
        assert stats.taken == case.names
        assert stats.skipped == ()
        for key, value in dense.items():
            torch.testing.assert_close(out[key], value, rtol=1e-5, atol=2e-5)


def test_few_blocks_change_the_output(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images(num_frames=8))
    dense = model(inputs)["points"]
    errors = []
    for density in (0.1, 0.5, 1.0):
        with sparsify(model, AttentionPlan.block_sparse(density=density)):
            errors.append(float((model(inputs)["points"] - dense).norm() / dense.norm()))
    assert errors[0] > errors[1] > 1e-5 > errors[2]


def test_tokens_lie_as_the_model_says(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images(2, 8))
    tokens = TokenLayout(
        num_frames=8,
        num_special=case.num_special,
        grid_height=GRID[0],
        grid_width=GRID[1],
        is_special_last=case.num_trailing > 0,
        num_trailing=case.num_trailing,
    )
    with sparsify(model, HALF):
        found = model(inputs)
    with sparsify(model, HALF, tokens=tokens):
        assert same(model(inputs), found)
    if case.num_special:
        other = replace(tokens, is_special_last=not tokens.is_special_last)
        with sparsify(model, HALF, tokens=other):
            assert not same(model(inputs), found), "the test can tell layouts apart"


def test_batch_slots_do_not_see_each_other(case: Case) -> None:
    model, both = case.model(), images(2, 4)
    with sparsify(model, HALF):
        together = model(case.prepare(both))["points"]
        alone = model(case.prepare(both[1:]))["points"]
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=2e-5)


def test_everything_is_as_before_afterwards(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    dense, state = model(inputs), state_of(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):
        with sparsify(model, HALF):
            assert not same(model(inputs), dense)
            assert model.state_dict().keys() == weights.keys()
        assert state_of(model) == state
        assert same(dict(model.state_dict()), weights)
        assert same(model(inputs), dense)


def test_an_exception_inside_undoes_everything(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    dense, state = model(inputs), state_of(model)

    def fail() -> None:
        with sparsify(model, HALF):
            model(inputs)
            raise RuntimeError("somebody")

    with pytest.raises(RuntimeError, match="somebody"):
        fail()
    assert state_of(model) == state
    assert same(model(inputs), dense)


def test_an_exception_within_the_model_undoes_everything(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    dense, state = model(inputs), state_of(model)
    hook = model.get_submodule(case.names[1]).register_forward_hook(lambda *args: 1 / 0)
    with sparsify(model, HALF) as stats:
        with pytest.raises(ZeroDivisionError):
            model(inputs)
        assert [layer.layer for layer in stats.layers] == [0, 1]
        hook.remove()
        model(inputs)
        assert [layer.layer for layer in stats.layers] == [0, 1, 2]
    assert state_of(model) == state
    assert same(model(inputs), dense)


def test_the_inner_of_two_contexts_counts(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    sparse = AttentionPlan.block_sparse(density=0.1)
    state = state_of(model)
    with sparsify(model, sparse):
        alone = model(inputs)
    with sparsify(model, HALF) as outer:
        half = model(inputs)
        before = outer.layers
        with sparsify(model, sparse) as inner:
            assert same(model(inputs), alone)
            assert inner.layers[0].policy == "block-sparse (density 0.1, coarse)"
        assert outer.layers == before
        assert same(model(inputs), half)
    assert state_of(model) == state


def test_contexts_may_end_in_any_order() -> None:
    case = CASES["vggt"]
    model, inputs = case.model(), case.prepare(images())
    state = state_of(model)
    first, second = ExitStack(), ExitStack()
    first.enter_context(sparsify(model, HALF))
    half = model(inputs)
    second.enter_context(sparsify(model, AttentionPlan.block_sparse(density=0.1)))
    tenth = model(inputs)
    first.close()
    assert same(model(inputs), tenth)
    assert not same(tenth, half)
    second.close()
    assert state_of(model) == state


def test_a_forward_that_somebody_else_replaced_is_used_and_kept() -> None:
    case = CASES["pi3"]
    model, inputs = case.model(), case.prepare(images())
    attention = model.get_submodule(case.names[0])
    theirs, num_calls = attention.forward, []

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        num_calls.append(1)
        return theirs(*args, **kwargs)

    attention.forward = counting
    with sparsify(model, HALF) as stats:
        model(inputs)
        assert stats.taken == case.names
    assert num_calls == [1]
    assert attention.forward is counting


def test_a_forward_that_somebody_replaces_meanwhile_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = CASES["pi3"]
    model = case.model()
    attention = model.get_submodule(case.names[0])

    def theirs(x: Tensor, xpos: Tensor) -> Tensor:
        return x

    with sparsify(model, HALF):
        attention.forward = theirs
    assert attention.forward is theirs
    assert "replaced by somebody else" in caplog.text


def test_two_models_at_once() -> None:
    vggt, pi3 = CASES["vggt"], CASES["pi3"]
    models = [vggt.model(0), vggt.model(1), pi3.model()]
    inputs = images()
    dense = [model(inputs) for model in models]
    with sparsify(models[0], HALF) as a, sparsify(models[2], AttentionPlan.dense()) as b:
        assert not same(models[0](inputs), dense[0])
        assert same(models[1](inputs), dense[1])
        models[2](inputs)
    assert {layer.policy for layer in a.layers} == {"block-sparse (density 0.5, coarse)"}
    assert {layer.policy for layer in b.layers} == {"dense"}


def test_each_layer_follows_its_policy_and_is_reported(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images(num_frames=8))
    plan = AttentionPlan(
        default=DensePolicy(), layers={1: BlockSparsePolicy(max_density=0.25, backend="gather")}
    )
    with sparsify(model, plan) as stats:
        model(inputs)
        first = stats.report
        model(inputs)
    assert [layer.layer for layer in stats.layers] == [0, 1, 2]
    assert [layer.backend for layer in stats.layers] == ["sdpa", "gather", "sdpa"]
    assert [layer.density for layer in stats.layers][::2] == [1.0, 1.0]
    assert 0.2 < stats.layers[1].density < 0.5
    assert all(layer.time_ms > 0 for layer in stats.layers)
    assert len(first.layers) == 3, "a report does not change"


def test_under_autocast(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images(num_frames=4))
    exact = model(inputs)["points"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = model(inputs)["points"]
        with sparsify(model, AttentionPlan.block_sparse(mass=1.0)) as stats:
            out = model(inputs)["points"]
    assert stats.taken == case.names
    assert out.dtype == dense.dtype
    error, rounding = (out - exact).norm(), (dense - exact).norm()
    assert float(error) < 1.5 * float(rounding)


def test_with_gradients_on_the_forward_pass_works(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    with sparsify(model, HALF):
        expected = model(inputs)
        with torch.enable_grad():
            out = model(inputs)
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value)


def test_signatures_stay_readable(case: Case) -> None:
    model = case.model()
    modules = [model, *(model.get_submodule(name) for name in case.names)]
    before = [inspect.signature(module.forward) for module in modules]
    with sparsify(model, HALF), sparsify(model, HALF):
        assert [inspect.signature(module.forward) for module in modules] == before


def test_keyword_arguments_reach_the_model() -> None:
    model, x = CASES["pi3"].model(), images()
    with sparsify(model, HALF) as stats:
        by_position = model(x)
        by_keyword = model(imgs=x, depths=torch.zeros(1, 4, *x.shape[-2:]))
    assert same(by_keyword, by_position)
    assert stats.taken == CASES["pi3"].names
