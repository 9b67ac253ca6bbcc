# SPDX-License-Identifier: Apache-2.0
"""What masked patches show changes nothing elsewhere, in every model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan
from ns_sparseattn.models import InferenceOptions
from ns_sparseattn.models.registry import MODELS, find_model
from ns_sparseattn.models.seeded import make_seeded_pi3, make_seeded_pi3x

from .pi3_models import TINY_PI3, TINY_PI3X

OPTIONS = InferenceOptions(precision="fp32")
PLANS = {"dense": AttentionPlan.dense(), "sparse": AttentionPlan.block_sparse(density=0.5)}


@pytest.fixture(scope="module")
def networks(tiny: Any) -> dict[str, Any]:
    family = find_model("mapanything").family
    return {
        "vggt": tiny,
        "pi3": make_seeded_pi3(TINY_PI3),
        "pi3x": make_seeded_pi3x(TINY_PI3X),
        "mapanything": family.make_seeded(family.seeded["seeded-small"](), 0),
    }


@pytest.fixture
def masks(images: Tensor) -> Tensor:
    """The right third of every frame, the left half of the second, and all of the last."""
    masks = torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    masks[:, :, 56:] = False
    masks[1, :, :42] = False
    masks[3] = False
    # A patch of which a single pixel is left still counts.
    masks[0, 0, 56] = True
    return masks


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_masked_pixels_do_not_move_the_cameras(
    networks: dict[str, Any], images: Tensor, masks: Tensor, name: str, plan: str
) -> None:
    model = networks[name]
    # Whole patches: of a partly masked patch the encoder sees all pixels.
    hidden = torch.nn.functional.max_pool2d(masks[:, None].float(), 14).repeat_interleave(14, 2)
    hidden = ~hidden.repeat_interleave(14, 3).bool()
    other = torch.where(hidden, 255 - images, images)
    run = {"plan": PLANS[plan], "options": OPTIONS}
    before = model.predict(images, masks=masks, **run)
    after = model.predict(other, masks=masks, **run)
    # The last frame shows nothing that counts; its own pose may come from what it shows.
    assert torch.equal(before.cam_from_world[:3], after.cam_from_world[:3])
    assert not torch.equal(before.depth, after.depth)
    without = model.predict(other, **run)
    assert not torch.equal(model.predict(images, **run).cam_from_world, without.cam_from_world)


@pytest.mark.parametrize("name", MODELS)
def test_masks_of_usable_patches_alone_change_nothing(
    networks: dict[str, Any], images: Tensor, name: str
) -> None:
    masks = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(0)) > 0.5
    plain = networks[name].predict(images, options=OPTIONS)
    masked = networks[name].predict(images, masks=masks, options=OPTIONS)
    assert torch.equal(plain.cam_from_world, masked.cam_from_world)
    assert torch.equal(plain.depth, masked.depth)


def test_chunks_do_not_matter_to_masks(
    networks: dict[str, Any], images: Tensor, masks: Tensor
) -> None:
    for model in networks.values():
        whole = model.predict(images, masks=masks, options=OPTIONS)
        chunks = InferenceOptions(precision="fp32", frames_per_chunk=1, head_frames_per_chunk=1)
        parts = model.predict(images, masks=masks, options=chunks)
        assert torch.allclose(whole.cam_from_world, parts.cam_from_world, atol=1e-4)


def test_masks_that_do_not_fit_are_refused(networks: dict[str, Any], images: Tensor) -> None:
    for model in networks.values():
        with pytest.raises(ValueError, match=r"`masks` must have shape \[1, 4, 56, 84\]"):
            model.predict(images, masks=torch.ones(4, 56, 70).bool())
        with pytest.raises(TypeError, match="`masks` must be boolean"):
            model.predict(images, masks=torch.ones(4, 56, 84).byte())
