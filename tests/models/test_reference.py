# SPDX-License-Identifier: Apache-2.0
"""The reference view is chosen by what the photos show, and the order of photos does not matter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan
from ns_sparseattn.frames.types import Frames
from ns_sparseattn.models import InferenceOptions
from ns_sparseattn.models.reference import choose_reference, cover
from ns_sparseattn.models.registry import MODELS, find_model
from ns_sparseattn.options import SceneOptions
from ns_sparseattn.predicting import predict_scene
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.testing.stubs import stub_frame

OPTIONS = InferenceOptions(precision="fp32")
"""Rounding is what differs between orders, and 16 bits would hide more behind it."""
PERMUTATION = [3, 0, 4, 2, 1]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Five windows of one picture: the middle one overlaps the others most, and is not first."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 12, 28, generator=generator)
    picture = torch.nn.functional.interpolate(picture, size=(84, 196), mode="bicubic").clamp(0, 1)
    starts = (0, 112, 56, 28, 84)
    return torch.cat([picture[..., x : x + 84] for x in starts])


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    families = {name: find_model(name).family for name in MODELS}
    return {
        name: family.make_seeded(family.seeded["seeded-small"](), 0)
        for name, family in families.items()
    }


def test_cover_is_the_mean_of_the_best_cosines() -> None:
    first = torch.eye(4)[:2]
    second = torch.stack([torch.eye(4)[0], torch.eye(4)[3]])
    cells = torch.stack([first, second])
    usable = torch.ones(2, 2, dtype=torch.bool)
    assert cover(cells, usable).tolist() == [[1.0, 0.5], [0.5, 1.0]]
    usable[1, 1] = False
    assert cover(cells, usable).tolist() == [[1.0, 1.0], [0.5, 1.0]]
    usable[1, 0] = False
    assert cover(cells, usable).tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", ["vggt", "mapanything"])
def test_the_view_with_the_largest_overlap_is_chosen(
    networks: dict[str, Any], images: Tensor, name: str
) -> None:
    chosen = choose_reference(networks[name], images, options=OPTIONS)
    assert chosen == 2
    for seed in range(3):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        again = choose_reference(networks[name], images[order], options=OPTIONS)
        assert int(order[again]) == chosen
    assert choose_reference(networks[name], images, candidates=[1, 3], options=OPTIONS) in (1, 3)
    assert choose_reference(networks[name], images[:1], options=OPTIONS) == 0


def test_masked_places_do_not_choose(networks: dict[str, Any], images: Tensor) -> None:
    masks = torch.ones(len(images), 84, 84, dtype=torch.bool)
    chosen = choose_reference(networks["vggt"], images, masks=masks, options=OPTIONS)
    masks[chosen] = False
    other = choose_reference(networks["vggt"], images, masks=masks, options=OPTIONS)
    assert other != chosen


def frames_of(images: Tensor, names: list[str]) -> Frames:
    bytes_ = (images * 255).round().byte()
    made = tuple(stub_frame(name, (84, 84), long_side=84) for name in names)
    return Frames(frames=made, images=bytes_)


def predict(model: Any, name: str, photos: Frames, **options: Any) -> Any:
    return predict_scene(
        model,
        find_model(name),
        photos,
        **{
            "plan": AttentionPlan.dense(),
            "inference": OPTIONS,
            "scene": SceneOptions(),
            **options,
        },
    )


def largest_difference(first: Prediction, second: Prediction) -> tuple[float, float]:
    """Degrees between rotations, and distance of positions as a share of their size."""
    # The chord of the rotation: 2 sqrt(2) sin(angle / 2), exact where the cosine is not.
    chord = (first.cam_from_world - second.cam_from_world)[..., :3].flatten(1).norm(dim=1).max()
    angle_deg = math.degrees(2 * math.asin(min(float(chord) / math.sqrt(8), 1.0)))
    shift = (first.cam_from_world - second.cam_from_world)[..., 3].norm(dim=-1).max()
    return angle_deg, float(shift / first.cam_from_world[..., 3].norm(dim=-1).max())


@pytest.mark.parametrize("plan", ["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_the_photos_does_not_matter(
    networks: dict[str, Any], images: Tensor, name: str, plan: str
) -> None:
    # The two models with a reference choose it by what the photos show; the others have none.
    sparse = AttentionPlan.block_sparse(density=0.5)
    options = {"plan": AttentionPlan.dense() if plan == "dense" else sparse}
    names = [f"{i}.png" for i in range(5)]
    before = predict(networks[name], name, frames_of(images, names), **options)
    after = predict(networks[name], name, frames_of(images[PERMUTATION], names), **options)
    place = torch.argsort(torch.tensor(PERMUTATION))
    back = replace(
        after.prediction,
        cam_from_world=after.prediction.cam_from_world[place],
        depth=after.prediction.depth[place],
    )
    rotation_deg, position = largest_difference(before.prediction, back)
    if plan == "sparse":
        # Frames are grouped into blocks by a chain that begins with the first.
        assert rotation_deg < 0.1
        assert position < 0.05
    else:
        # Rounding in float32.
        assert rotation_deg < 1e-3
        assert position < 1e-4
        assert torch.allclose(before.prediction.depth, back.depth, rtol=2e-3)


def test_the_reference_can_be_named(networks: dict[str, Any], images: Tensor) -> None:
    photos = frames_of(images, list("abcde"))
    first = predict(networks["vggt"], "vggt", photos, reference="first")
    assert first.reference == "a"
    plain = networks["vggt"].predict(photos.images, options=OPTIONS)
    assert torch.equal(first.prediction.cam_from_world, plain.cam_from_world)
    named = predict(networks["vggt"], "vggt", photos, reference="d")
    assert named.reference == "d"
    order = [3, 0, 1, 2, 4]
    permuted = networks["vggt"].predict(photos.images[order], options=OPTIONS)
    assert torch.equal(named.prediction.cam_from_world[order], permuted.cam_from_world)
    with pytest.raises(ValueError, match="`reference` must be auto, first or the name of a photo"):
        predict(networks["vggt"], "vggt", photos, reference="f")


def test_a_reference_without_effect_warns(
    networks: dict[str, Any], images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    photos = frames_of(images, list("abcde"))
    predicted = predict(networks["pi3"], "pi3", photos, reference="b")
    assert predicted.reference is None
    assert "`reference` has no effect: no photo is special to Pi3" in caplog.text
