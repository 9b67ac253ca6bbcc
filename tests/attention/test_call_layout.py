# SPDX-License-Identifier: Apache-2.0
"""How tokens lie, told from the arguments of a call and from what the model states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ns_sparseattn.attention import TokenLayout
from ns_sparseattn.attention.retrofit.call_layout import layout_of_call
from ns_sparseattn.testing.lookalikes import MultiViewInput

IMAGES = torch.zeros(2, 4, 3, 126, 154)


class CarrierLike(nn.Module):
    """States what it is told to state."""

    def __init__(self, **stated: Any) -> None:
        super().__init__()
        vars(self).update(stated)


@pytest.mark.parametrize(
    "stated",
    [
        {"patch_start_idx": 3},
        {"camera_token": torch.zeros(1, 2, 1, 8), "register_token": torch.zeros(1, 2, 2, 8)},
        {"register_token": torch.zeros(1, 1, 3, 8)},
    ],
    ids=["start", "camera-and-registers", "registers"],
)
def test_special_tokens_are_counted_as_the_model_states_them(stated: dict[str, Any]) -> None:
    layout = layout_of_call(CarrierLike(patch_size=14, **stated), [None, IMAGES, True])
    assert layout == TokenLayout(num_frames=4, num_special=3, grid_height=9, grid_width=11)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"patch_start_idx": 5}, "does not state a `patch_size`"),
        ({"patch_start_idx": 5, "patch_size": 15}, "do not divide into patches of 15"),
        ({"patch_size": 14}, "states neither `patch_start_idx` nor camera and register tokens"),
    ],
)
def test_a_model_that_says_too_little(stated: dict[str, Any], reason: str) -> None:
    problem = layout_of_call(CarrierLike(**stated), [IMAGES])
    assert isinstance(problem, str)
    assert reason in problem


@pytest.mark.parametrize("num_images", [0, 2])
def test_a_call_without_images_or_with_two_is_unclear(num_images: int) -> None:
    values = [IMAGES[0], *[IMAGES] * num_images]
    problem = layout_of_call(CarrierLike(patch_size=14, patch_start_idx=5), values)
    assert isinstance(problem, str)
    assert f"{num_images} tensors of shape [B, F, 3, H, W], not with one" in problem


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": "none"}, "no list of tensors"),
        ({"features": []}, "not called with features of one shape"),
        ({"additional_input_tokens": torch.zeros(1, 2)}, "no tensors [B, C, T]"),
        (
            {"additional_input_tokens_per_view": [torch.zeros(1, 64, 1), torch.zeros(1, 64, 2)]},
            "different numbers of extra tokens",
        ),
    ],
)
def test_odd_inputs_of_a_multi_view_transformer(change: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {"features": [torch.zeros(1, 64, 2, 3)] * 2}
    assert layout_of_call(nn.Identity(), [MultiViewInput(**good)]) == TokenLayout(
        num_frames=2, num_special=0, grid_height=2, grid_width=3, is_special_last=True
    )
    problem = layout_of_call(nn.Identity(), [MultiViewInput(**(good | change))])
    assert isinstance(problem, str)
    assert reason in problem
