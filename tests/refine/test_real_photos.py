# SPDX-License-Identifier: Apache-2.0
"""Awkward folders of real photos end in a scene or verdict that a person would agree with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ns_sparseattn import frames as photo_frames
from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.export.colmap import import_pycolmap
from ns_sparseattn.frames import Frames
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.refine import MatchOptions, Refined, RefineOptions, contradiction, refine_scene
from ns_sparseattn.refine.model import read_model
from ns_sparseattn.scene import Scene
from ns_sparseattn.scene.types import Camera, PosedImage
from ns_sparseattn.testing.disturb import NEAR, disturb
from ns_sparseattn.testing.synthetic import no_points

OPTIONS = RefineOptions(match=MatchOptions(match_threads=1))


def load(folder: Path) -> Frames:
    return photo_frames.load(folder / "images", FrameOptions(long_side=112))


def poses_of(folder: Path) -> dict[str, torch.Tensor]:
    """Poses of a COLMAP model by the photos' names."""
    model = import_pycolmap().Reconstruction(str(folder))
    return {
        image.name: torch.from_numpy(image.cam_from_world().matrix().copy())
        for image in model.images.values()
    }


def scene_of(photos: Frames, poses: dict[str, torch.Tensor], *, focal: float) -> Scene:
    """A scene of poses, one camera for each size; photos without a pose get the first one's.

    Args:
        photos: The photos.
        poses: By name.
        focal: Share of the longer side.
    """
    first = next(iter(poses.values()))
    sizes = sorted({frame.size for frame in photos.frames})
    cameras = tuple(
        Camera(
            camera_id=number,
            model="PINHOLE",
            width=width,
            height=height,
            params=(focal * max(width, height),) * 2 + (width / 2, height / 2),
        )
        for number, (width, height) in enumerate(sizes, 1)
    )
    images = tuple(
        PosedImage(
            image_id=number,
            name=frame.name,
            camera_id=sizes.index(frame.size) + 1,
            cam_from_world=poses.get(frame.name, first),
        )
        for number, frame in enumerate(photos.frames, 1)
    )
    return Scene(cameras=cameras, images=images, points=no_points())


def focal_of(folder: Path) -> float:
    """Focal length of a COLMAP model's first camera, share of the longer side."""
    camera = next(iter(import_pycolmap().Reconstruction(str(folder)).cameras.values()))
    return camera.mean_focal_length() / max(camera.width, camera.height)


def error_deg(result: Refined, truth: dict[str, torch.Tensor]) -> float:
    """Median pair error over the images whose pose is known."""
    images = [image for image in result.scene.images if image.name in truth]
    ours = torch.stack([image.cam_from_world for image in images])
    theirs = torch.stack([truth[image.name] for image in images])
    return float(pair_errors(ours, theirs).larger_deg.nanmedian())


@pytest.fixture(scope="module")
def lund(shared: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Poses and focal length of the photos that the awkward folders were made of."""
    folder = shared / "data/lund_door/gt"
    return poses_of(folder), focal_of(folder)


def test_a_camera_that_only_turned_is_recognised_and_keeps_its_rotations(shared: Path) -> None:
    folder = shared / "data/hard/pure_rotation"
    photos, truth = load(folder), poses_of(folder / "gt")
    focal = focal_of(folder / "gt")
    # A network gives such photos some baseline, too.
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: pose + torch.nn.functional.pad(0.1 * torch.randn(3, 1, generator=generator), (3, 0))
        for name, pose in truth.items()
    }
    start, _ = disturb(scene_of(photos, moved, focal=focal), NEAR, seed=0)
    result = refine_scene(start, photos, OPTIONS)
    assert result.after.is_rotation_only
    assert not result.after.is_trusted
    assert "only turned" in result.notes[0]
    assert result.scene is start


def test_degraded_photos_are_placed_or_named(
    shared: Path, lund: tuple[dict[str, torch.Tensor], float]
) -> None:
    truth, focal = lund
    photos = load(shared / "data/hard/degraded")
    start, _ = disturb(scene_of(photos, truth, focal=focal), NEAR, seed=0)
    result = refine_scene(start, photos, OPTIONS)
    hopeless = {"blank_white.jpg", "noise.jpg"}
    assert hopeless <= set(result.after.names("unmatched", "contradicted"))
    assert all(any(name in note for note in result.notes) for name in hopeless)
    assert not hopeless & set(result.after.names("good"))
    assert len(result.scene.images) == len(photos)
    confirmed = {name: truth[name] for name in result.after.names("good")}
    assert len(confirmed) >= 9
    # Untouched, these photos end at 0.47 degrees from the published poses, which have another
    # principal point than the middle (docs/refinement.md).
    assert error_deg(result, confirmed) < 0.8


def test_two_places_in_one_folder_are_told_apart_and_each_is_right(
    shared: Path, lund: tuple[dict[str, torch.Tensor], float]
) -> None:
    folder = shared / "data/hard/two_scenes_mixed"
    sources = {
        name: (entry["source_set"], entry["source_image"])
        for name, entry in photo_sources(folder).items()
    }
    places = {
        "lund_door": lund[0],
        "cyprus_arch": poses_of(shared / "data/cyprus_arch/reference_colmap/sparse"),
    }
    truth = {name: places[place][source] for name, (place, source) in sources.items()}
    photos = load(folder)
    start, _ = disturb(scene_of(photos, truth, focal=lund[1]), NEAR, seed=0)
    result = refine_scene(start, photos, OPTIONS)
    assert not result.after.is_trusted
    assert any("2 groups" in note for note in result.notes)
    component = {image.name: image.component for image in result.after.images}
    for place in places:
        mine = {name: truth[name] for name, (of, _) in sources.items() if of == place}
        assert len({component[name] for name in mine}) == 1
    mine = {name: truth[name] for name, (of, _) in sources.items() if of == "lund_door"}
    assert error_deg(result, mine) < 1.0


def photo_sources(folder: Path) -> dict[str, dict[str, str]]:
    """Which photo of which set each one is."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]


def test_two_photos_of_one_place_make_a_scene(
    shared: Path, lund: tuple[dict[str, torch.Tensor], float]
) -> None:
    truth, focal = lund
    photos = load(shared / "data/hard/two_images")
    near = replace(NEAR, focal_factor=1.0)
    start, _ = disturb(scene_of(photos, truth, focal=focal), near, seed=0)
    result = refine_scene(start, photos, OPTIONS)
    # pycolmap makes no model of these two.
    assert result.is_refined
    assert result.after.is_trusted
    assert error_deg(result, truth) < 1.0
    assert len(result.scene.points) > 300


def test_two_photos_of_two_places_are_not_trusted(
    shared: Path, lund: tuple[dict[str, torch.Tensor], float]
) -> None:
    photos = load(shared / "data/hard/two_no_overlap")
    poses = dict(zip(photos.names, lund[0].values(), strict=False))
    start = scene_of(photos, poses, focal=lund[1])
    result = refine_scene(start, photos, OPTIONS)
    assert result.scene is start
    assert not result.after.is_trusted
    assert result.after.names("unmatched") == photos.names
    assert result.notes


@pytest.mark.parametrize("name", ["tum_desk", "synth_room"])
def test_a_near_prediction_contradicts_the_wrong_model_of_pycolmap(shared: Path, name: str) -> None:
    folder = shared / "data" / name
    truth, _ = read_model(folder / "gt")
    near, _ = disturb(truth, NEAR, seed=0)
    wrong, _ = read_model(folder / "reference_colmap/sparse")
    assert contradiction(wrong, near, OPTIONS.audit) is not None
    # It is the model that is wrong, not the prediction that is out of reach.
    assert contradiction(truth, near, OPTIONS.audit) is None
