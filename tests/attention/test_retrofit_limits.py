# SPDX-License-Identifier: Apache-2.0
"""What `sparsify` refuses, and what runs as before with a sentence that says why."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ns_sparseattn.attention import (
    AttentionPlan,
    DensePolicy,
    TokenLayout,
    sparsify,
)
from ns_sparseattn.testing.lookalikes import (
    Pi3Lookalike,
    VggtAttention,
)

from .conftest import CASES, GRID, HALF, NUM_PATCHES, Case, images, same, state_of


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


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
