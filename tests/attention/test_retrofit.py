# SPDX-License-Identifier: Apache-2.0
"""Models by others under a plan: what runs sparse, what does not, and that nothing stays behind."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ns_sparseattn.attention import (
    AttentionPlan,
    BlockSparsePolicy,
    DensePolicy,
    TokenLayout,
    sparsify,
)
from ns_sparseattn.testing.lookalikes import (
    MapAnythingLookalike,
    Pi3Lookalike,
    VggtAttention,
    VggtLookalike,
)

HALF = AttentionPlan.block_sparse(density=0.5)
GRID = (9, 11)
NUM_PATCHES = GRID[0] * GRID[1]


def images(batch: int = 1, num_frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    sides = (14 * side for side in GRID)
    return torch.rand(batch, num_frames, 3, *sides, generator=generator)


@dataclass(frozen=True)
class Case:
    """A model with a structure, and how to call it."""

    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor], Any]
    names: tuple[str, ...]
    num_special: int
    num_trailing: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().eval()


def views(x: Tensor) -> list[dict[str, Tensor]]:
    return [{"img": view} for view in x.unbind(1)]


CASES = {
    "vggt": Case(
        VggtLookalike,
        lambda x: x,
        tuple(f"aggregator.global_blocks.{i}.attn" for i in range(3)),
        num_special=5,
    ),
    "pi3": Case(
        Pi3Lookalike, lambda x: x, tuple(f"decoder.{i}.attn" for i in (1, 3, 5)), num_special=5
    ),
    "mapanything": Case(
        MapAnythingLookalike,
        views,
        tuple(f"info_sharing.self_attention_blocks.{i}.attn" for i in (0, 2, 4)),
        num_special=1,
        num_trailing=1,
    ),
    "mapanything-v1": Case(
        lambda: MapAnythingLookalike(has_view_token=False),
        views,
        tuple(f"info_sharing.self_attention_blocks.{i}.attn" for i in (0, 2, 4)),
        num_special=0,
        num_trailing=1,
    ),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything on the instances: a replaced forward, a hook or a flag would show."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            # Dictionaries of hooks and modules are compared by what they hold.
            state[f"{name}:{key}"] = dict(value) if isinstance(value, dict) else value
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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
            assert inner.layers[0].policy == "block-sparse (density 0.1)"
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
    assert {layer.policy for layer in a.layers} == {"block-sparse (density 0.5)"}
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


def test_a_plan_for_more_layers_is_refused(case: Case) -> None:
    model = case.model()
    state = state_of(model)
    plan = AttentionPlan(layers={3: DensePolicy()})
    with (
        pytest.raises(ValueError, match=r"names layers \[3\]; this model has layers 0 to 2"),
        sparsify(model, plan),
    ):
        pass
    assert state_of(model) == state


def test_a_model_of_unknown_structure_is_refused() -> None:
    with (
        pytest.raises(
            ValueError, match=r"got Sequential without any\. Looked for VGGT: `global_blocks`"
        ),
        sparsify(nn.Sequential(nn.Linear(2, 2)), HALF),
    ):
        pass


def test_what_is_no_module_is_refused() -> None:
    model: Any = "vggt"
    with (
        pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"),
        sparsify(model, HALF),
    ):
        pass


def test_two_models_in_one_are_refused_and_either_can_be_passed() -> None:
    both = nn.ModuleDict({"a": CASES["vggt"].model(), "b": CASES["pi3"].model()})
    with pytest.raises(ValueError, match=r"`a.aggregator` \(VGGT\), `b` \(Pi3\)"):
        sparsify(both, HALF).__enter__()
    with sparsify(both["b"], HALF) as stats:
        both["b"](images())
    assert stats.taken == CASES["pi3"].names


def test_training_mode_is_refused(case: Case) -> None:
    model = case.model().train()
    with pytest.raises(ValueError, match="must be in evaluation mode"), sparsify(model, HALF):
        pass


def test_a_layer_in_training_mode_runs_as_before(case: Case) -> None:
    model, inputs = case.model(), case.prepare(images())
    dense = model(inputs)
    with sparsify(model, HALF) as stats:
        model.train()
        assert same(model(inputs), dense)
    assert stats.taken == ()
    assert stats.skipped[0] == f"{case.names[0]} runs as before: it is in training mode."
    assert stats.layers == ()


def test_a_compiled_model_is_refused() -> None:
    model = CASES["vggt"].model()
    # Compiling is lazy: nothing is generated here.
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    with pytest.raises(ValueError, match="must not be compiled"), sparsify(compiled, HALF):
        pass


def test_a_block_without_fused_attention_is_reported() -> None:
    case = CASES["vggt"]
    model = case.model()
    block = model.get_submodule("aggregator.global_blocks.1")
    block.attn = nn.MultiheadAttention(64, 2)
    with sparsify(model, HALF) as stats:
        assert stats.taken == (case.names[0], case.names[2])
    assert stats.skipped == (
        f"{case.names[1]} runs as before: its block has no `attn` with a `qkv` projection.",
    )


def test_attention_that_is_spelled_out_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    case = CASES["vggt"]
    model, inputs = case.model(), case.prepare(images())
    for name in case.names[1:]:
        vars(model.get_submodule(name))["fused_attn"] = False
    with sparsify(model, HALF) as stats:
        model(inputs)
        model(inputs)
    assert stats.taken == case.names[:1]
    assert [layer.layer for layer in stats.layers] == [0]
    assert "does not call torch's scaled_dot_product_attention" in stats.skipped[0]
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1, "each reason is said once"
    assert f"{case.names[1]} and 1 more layers will run as before" in warnings[0]


def test_a_block_that_is_not_called_is_reported() -> None:
    case = CASES["pi3"]
    model, inputs = case.model(), case.prepare(images())
    block = model.get_submodule("decoder.5")
    block.forward = lambda hidden, xpos: hidden
    with sparsify(model, HALF) as stats:
        model(inputs)
    assert stats.skipped == (
        f"{case.names[2]} runs as before: its `forward` was not called in this pass of the model.",
    )


def test_an_unclear_layout_runs_dense_and_a_given_one_does_not() -> None:
    case = CASES["pi3"]
    model, x = case.model(), images()
    assert isinstance(model, Pi3Lookalike)
    patches = model.encoder(x.flatten(0, 1)).flatten(2).transpose(1, 2)
    pos = torch.zeros(4, NUM_PATCHES + 5, 2)
    dense = model.decode(patches, 4, pos)
    with sparsify(model, HALF) as stats:
        assert torch.equal(model.decode(patches, 4, pos), dense)
        assert stats.taken == ()
        assert "its model was not called as a whole" in stats.skipped[0]
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=GRID[0], grid_width=GRID[1])
    with sparsify(model, HALF, tokens=tokens) as stats:
        for _ in range(2):
            assert not torch.equal(model.decode(patches, 4, pos), dense)
            assert [layer.layer for layer in stats.layers] == [0, 1, 2]
    assert stats.taken == case.names


def test_a_given_layout_must_fit(case: Case) -> None:
    model = case.model()
    tokens = TokenLayout(num_frames=2, num_special=5, grid_height=3, grid_width=3)
    with (
        sparsify(model, HALF, tokens=tokens),
        pytest.raises(ValueError, match="must have the 28 tokens of the layout"),
    ):
        model(case.prepare(images()))


def test_a_model_that_states_a_wrong_number_runs_dense() -> None:
    case = CASES["vggt"]
    model, inputs = case.model(), case.prepare(images())
    forward, carrier = model.get_submodule("aggregator").forward, model.get_submodule("aggregator")
    dense = model(inputs)

    def with_five(x: Tensor) -> Any:
        vars(carrier)["patch_start_idx"] = 5
        return forward(x)

    carrier.forward = with_five
    with sparsify(model, HALF) as stats:
        vars(carrier)["patch_start_idx"] = 4
        assert same(model(inputs), dense)
    assert stats.taken == ()
    assert stats.skipped[0] == (
        f"{case.names[0]} runs as before: it has 416 tokens, and the call's 4 frames make 412."
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attn_mask": torch.zeros(1, 1, 1, 1)}, "its attention has a mask"),
        ({"is_causal": True}, "its attention has a mask"),
        ({"dropout_p": 0.1}, "its attention has dropout"),
        ({"scale": 1.0}, r"its scores are scaled by 1 instead of 1 / sqrt(32)"),
    ],
)
def test_attention_that_is_not_plain_runs_as_before(options: dict[str, Any], reason: str) -> None:
    case = CASES["vggt"]
    model, inputs = case.model(), case.prepare(images())
    attention = model.get_submodule(case.names[0])
    assert isinstance(attention, VggtAttention)

    def special(x: Tensor, pos: Tensor | None = None) -> Tensor:
        return attention.join(F.scaled_dot_product_attention(*attention.split(x), **options))

    attention.forward = special
    with sparsify(model, HALF) as stats:
        model(inputs)
    assert stats.taken == case.names[1:]
    assert stats.skipped == (f"{case.names[0]} runs as before: {reason}.",)


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
