# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.frames import Frames
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    make_frames,
    make_plane,
)

if TYPE_CHECKING:
    from .conftest import BuildScene

NAN = float("nan")


def with_depth(prediction: Prediction, change: Callable[[Tensor], Tensor]) -> Prediction:
    return replace(prediction, depth=change(prediction.depth.clone()))


def only(prediction: Prediction, frames: Frames, indices: list[int]) -> tuple[Prediction, Frames]:
    """The prediction and frames of some of the views."""
    part = Prediction(
        cam_from_world=prediction.cam_from_world[indices],
        intrinsics=prediction.intrinsics[indices],
        depth=prediction.depth[indices],
        confidence=prediction.confidence[indices],
    )
    kept = tuple(frames.frames[index] for index in indices)
    return part, Frames(frames=kept, images=frames.images[indices])


def tensors(scene: Scene) -> list[Tensor]:
    points = scene.points
    return [
        points.xyz, points.rgb, points.error, points.obs_point, points.obs_image, points.obs_xy,
        *(image.cam_from_world for image in scene.images),
    ]  # fmt: skip


def test_room_is_confirmed_by_its_views(room_prediction, room_frames, build: BuildScene) -> None:
    scene = build(room_prediction, room_frames)
    points = scene.points
    assert len(scene.cameras) == 1
    assert [image.name for image in scene.images] == list(room_frames.names)
    assert [image.image_id for image in scene.images] == [1, 2, 3, 4, 5]
    assert len(points) > 20_000
    assert float(points.track_length.double().mean()) > 3.0
    # Not exactly zero: between the pixels of a curved surface depth is interpolated.
    assert float(points.error.median()) < 0.01
    assert scene.notes == ()
    assert all(summary.notes == () for summary in scene.summaries)


def test_summaries_agree_with_the_observations(
    room_prediction, room_frames, build: BuildScene
) -> None:
    scene = build(room_prediction, room_frames)
    points = scene.points
    for index, summary in enumerate(scene.summaries):
        assert summary.name == room_frames.names[index]
        assert summary.num_points == int((points.obs_image == index).sum())
        assert summary.mean_error_px is not None
        assert summary.median_confidence == float(room_prediction.confidence[index].median())
    total = sum(s.num_points * (s.mean_error_px or 0.0) for s in scene.summaries)
    assert total == pytest.approx(float((points.error * points.track_length).sum()))


def test_same_input_same_output(room_prediction, room_frames, build: BuildScene) -> None:
    before = [room_prediction.depth.clone(), room_prediction.confidence.clone()]
    first = build(room_prediction, room_frames, max_points=5000)
    second = build(room_prediction, room_frames, max_points=5000)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert first.summaries == second.summaries
    assert first.cameras == second.cameras
    assert torch.equal(room_prediction.depth, before[0])
    assert torch.equal(room_prediction.confidence, before[1])


@pytest.mark.parametrize("max_points", [1, 30, 300, 5000])
def test_number_of_points_is_capped(
    max_points: int, room_prediction, room_frames, build: BuildScene
) -> None:
    scene = build(room_prediction, room_frames, max_points=max_points)
    assert 0.8 * max_points <= len(scene.points) <= max_points
    assert int(scene.points.track_length.min()) >= 2
    assert scene.notes == ()


def test_track_length_is_capped(plane_prediction, plane_frames, build: BuildScene) -> None:
    full = build(plane_prediction, plane_frames)
    capped = build(plane_prediction, plane_frames, max_track_length=3)
    assert int(full.points.track_length.max()) == 5
    assert int(capped.points.track_length.max()) == 3
    assert len(capped.points) == len(full.points)


def test_min_views(plane_prediction, plane_frames, build: BuildScene) -> None:
    scene = build(plane_prediction, plane_frames, min_views=4)
    assert int(scene.points.track_length.min()) >= 4


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_view_with_wrong_depth_takes_no_part(
    factor: float, plane_prediction, plane_frames, build: BuildScene
) -> None:
    def spoil(depth: Tensor) -> Tensor:
        depth[2] *= factor
        return depth

    scene = build(with_depth(plane_prediction, spoil), plane_frames)
    assert [summary.num_points > 0 for summary in scene.summaries] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert scene.summaries[2].notes == ("No point of the scene is seen in it.",)
    assert scene.summaries[2].mean_error_px is None
    assert float(scene.points.error.max()) < 0.01


def test_noise_is_averaged(plane_prediction, plane_frames, build: BuildScene) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(plane_prediction.depth.shape, generator=generator)
    noisy = with_depth(plane_prediction, lambda depth: depth * (1.0 + 0.003 * noise))
    scene = build(noisy, plane_frames)
    exact = build(plane_prediction, plane_frames)
    assert len(scene.points) > 0.9 * len(exact.points)

    normal = torch.nn.functional.normalize(torch.tensor([0.25, 0.35, -1.0]).double(), dim=0)
    offset = (scene.points.xyz - torch.tensor([0.0, 0.0, 0.3]).double()) @ normal
    long_tracks = scene.points.track_length >= 4
    # Depth is about 2.5 metres; the mean of four or five views, interpolated, is far less noisy.
    assert float(offset[long_tracks].std()) < 0.6 * 0.003 * 2.5


def test_masked_pixels_neither_make_nor_see_points(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    masks = torch.ones_like(plane_prediction.depth, dtype=torch.bool)
    masks[1, :, :40] = False
    masks[3] = False
    scene = build(plane_prediction, replace(plane_frames, masks=masks))
    points = scene.points
    in_network = plane_frames.frames[1].pixel_map.to_network(points.obs_xy[points.obs_image == 1])
    assert float(in_network[:, 0].min()) >= 40.0
    assert not bool((points.obs_image == 3).any())
    assert scene.summaries[3].notes == ("No pixel has a usable depth.",)


def test_inverted_masks_are_guessed(plane_prediction, plane_frames, build: BuildScene) -> None:
    masks = torch.zeros_like(plane_prediction.depth, dtype=torch.bool)
    with pytest.raises(ReconstructionError, match="masks are not inverted"):
        build(plane_prediction, replace(plane_frames, masks=masks))


def test_non_finite_values_are_left_out(plane_prediction, plane_frames, build: BuildScene) -> None:
    depth, confidence = plane_prediction.depth.clone(), plane_prediction.confidence.clone()
    poses = plane_prediction.cam_from_world.clone()
    depth[0, :30], depth[0, 30:33] = NAN, float("inf")
    confidence[1, 10:20] = NAN
    poses[4] = NAN
    broken = replace(plane_prediction, depth=depth, confidence=confidence, cam_from_world=poses)
    scene = build(broken, plane_frames)
    assert all(bool(torch.isfinite(t).all()) for t in tensors(scene))
    assert float(scene.points.error.max()) < 0.01
    assert not bool((scene.points.obs_image == 4).any())
    assert "not finite" in scene.summaries[4].notes[0]
    assert any("1 of 5 photos" in note for note in scene.notes)


@pytest.mark.parametrize("value", [NAN, 0.0, -1.0, float("inf")])
def test_no_usable_depth_is_an_error(
    value: float, plane_prediction, plane_frames, build: BuildScene
) -> None:
    broken = with_depth(plane_prediction, lambda depth: torch.full_like(depth, value))
    with pytest.raises(ReconstructionError, match="no usable depth"):
        build(broken, plane_frames)


def test_views_that_disagree_are_written_with_a_warning(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[:, None, None]
    scene = build(
        with_depth(plane_prediction, lambda depth: depth * scales),
        plane_frames,
        max_unchecked_points=500,
    )
    assert len(scene.points) == 500
    assert set(scene.points.track_length.tolist()) == {1}
    assert scene.notes == (
        "No two views agree on 100 points or more; the geometry cannot be trusted, and the points "
        "are unchecked depth of single views.",
    )
    # A point of a single view projects exactly to its own pixel.
    assert max(s.mean_error_px or 0.0 for s in scene.summaries) < 1e-6


def test_noise_at_every_pixel_still_makes_a_scene(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(plane_prediction.depth.shape, generator=generator) + 0.1
    scene = build(with_depth(plane_prediction, lambda _: rough), plane_frames)
    assert len(scene.points) > 0
    assert "cannot be trusted" in scene.notes[0]


def test_one_photo(plane_prediction, plane_frames, build: BuildScene) -> None:
    scene = build(*only(plane_prediction, plane_frames, [2]))
    assert len(scene.points) > 0
    assert scene.notes[0].startswith("One photo alone")
    single = build(*only(plane_prediction, plane_frames, [2]), min_views=1)
    assert single.notes[0].startswith("One photo alone")


def test_more_views_wanted_than_photos(plane_prediction, plane_frames, build: BuildScene) -> None:
    scene = build(plane_prediction, plane_frames, min_views=6)
    assert scene.notes[0].startswith("`min_views` is 6, but there are only 5 photos")


def test_identical_photos_cannot_be_triangulated(build: BuildScene) -> None:
    synthetic = make_plane(num_views=2, size=(160, 120), step_deg=0.0)
    first = synthetic.views[0]
    same = tuple(replace(first, name=view.name) for view in synthetic.views)
    twins = SyntheticScene(
        solids=synthetic.solids, lights=synthetic.lights, ambient=1.0, views=same
    )
    frames = make_frames(twins, long_side=84)
    scene = build(exact_prediction(twins, frames), frames)
    assert len(scene.points) > 0
    assert len(scene.notes) == 1
    assert "nothing can be triangulated" in scene.notes[0]


def test_few_confirmed_pixels_are_doubtful(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    scales = torch.tensor([1.0, 1.0, 4.0, 8.0, 16.0])[:, None, None]

    def spoil(depth: Tensor) -> Tensor:
        depth[0, :50] = 30.0
        return depth * scales

    scene = build(with_depth(plane_prediction, spoil), plane_frames)
    assert "the geometry is doubtful" in scene.notes[0]
    assert set(scene.points.obs_image.tolist()) == {0, 1}


def test_prediction_of_other_frames_is_an_error(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    prediction, _ = only(plane_prediction, plane_frames, [0, 1])
    with pytest.raises(ValueError, match="must be of the frames given"):
        build(prediction, plane_frames)


def test_prediction_notes_are_kept(plane_prediction, plane_frames, build: BuildScene) -> None:
    scene = build(replace(plane_prediction, notes=("Unverified weights.",)), plane_frames)
    assert scene.notes == ("Unverified weights.",)


def test_order_of_frames_only_renames_images(
    plane_prediction, plane_frames, build: BuildScene
) -> None:
    order = [3, 1, 4, 0, 2]
    scene = build(plane_prediction, plane_frames)
    shuffled = build(*only(plane_prediction, plane_frames, order))
    assert len(shuffled.points) == len(scene.points)
    counts = {summary.name: summary.num_points for summary in scene.summaries}
    assert {summary.name: summary.num_points for summary in shuffled.summaries} == counts
