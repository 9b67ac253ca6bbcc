# SPDX-License-Identifier: Apache-2.0
"""Known points of a plane come back exactly, whatever the photos' sizes and orientations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ns_sparseattn import frames as photo_frames
from ns_sparseattn.geometry import project, transform_points
from ns_sparseattn.options import FrameOptions, SceneOptions
from ns_sparseattn.scene import Scene, build_scene
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    make_frames,
    make_plane,
    write_photos,
)
from ns_sparseattn.testing.synthetic.shapes import Plane

if TYPE_CHECKING:
    from .conftest import BuildScene

TOLERANCE_PX = 0.01
LANDSCAPE, PORTRAIT = (4032, 3024), (3024, 4032)


def distance_to_plane(scene: Scene, synthetic: SyntheticScene) -> Tensor:
    """Distance of each point to the one plane, metres."""
    shape = synthetic.solids[0].shape
    assert isinstance(shape, Plane)
    normal = torch.nn.functional.normalize(scene.points.xyz.new_tensor(shape.normal), dim=0)
    return ((scene.points.xyz - scene.points.xyz.new_tensor(shape.point)) @ normal).abs()


def true_errors(scene: Scene, synthetic: SyntheticScene) -> Tensor:
    """Distance of each observation to its point's projection by the true camera, in pixels."""
    points = scene.points
    poses = synthetic.cam_from_world[points.obs_image]
    in_cam = transform_points(poses, points.xyz[points.obs_point])
    pixels, depth = project(in_cam, synthetic.intrinsics[points.obs_image])
    assert bool((depth > 0).all())
    return (pixels - points.obs_xy).norm(dim=-1)


def scene_errors(scene: Scene) -> Tensor:
    """The same by the scene's own cameras."""
    points = scene.points
    poses = torch.stack([image.cam_from_world for image in scene.images])
    intrinsics = torch.stack([scene.camera_of(image).intrinsics for image in scene.images])
    in_cam = transform_points(poses[points.obs_image], points.xyz[points.obs_point])
    pixels, _ = project(in_cam, intrinsics[points.obs_image])
    return (pixels - points.obs_xy).norm(dim=-1)


def check(scene: Scene, synthetic: SyntheticScene) -> None:
    points = scene.points
    assert len(points) > 1000
    assert float(distance_to_plane(scene, synthetic).max()) < 1e-5
    assert float(true_errors(scene, synthetic).max()) < TOLERANCE_PX
    assert float(scene_errors(scene).max()) < TOLERANCE_PX
    assert float(points.error.max()) < TOLERANCE_PX
    assert int(points.track_length.min()) >= 2
    sizes = torch.tensor([view.size for view in synthetic.views])[points.obs_image]
    assert bool(((points.obs_xy >= 0) & (points.obs_xy < sizes)).all())
    # Sorted by point, then by image, and no image twice.
    order = points.obs_point * len(scene.images) + points.obs_image
    assert bool((order.diff() > 0).all())
    assert scene.notes == ()


@pytest.mark.parametrize("resize", ["fit", "crop", "pad"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([LANDSCAPE], id="landscape"),
        pytest.param([PORTRAIT], id="portrait"),
        pytest.param([LANDSCAPE, PORTRAIT, (1000, 1000)], id="mixed"),
    ],
)
def test_known_points(sizes, resize, build: BuildScene) -> None:
    synthetic = make_plane(num_views=5, size=sizes)
    frames = make_frames(synthetic, resize=resize, long_side=112)
    scene = build(exact_prediction(synthetic, frames), frames)
    check(scene, synthetic)
    assert len(scene.cameras) == len(sizes)
    assert [(camera.width, camera.height) for camera in scene.cameras] == sizes


@pytest.mark.parametrize("camera_type", ["simple_pinhole", "perspective"])
def test_known_points_with_other_camera_types(camera_type: str, build: BuildScene) -> None:
    synthetic = make_plane(num_views=4, size=LANDSCAPE)
    frames = make_frames(synthetic, long_side=112)
    check(build(exact_prediction(synthetic, frames), frames, camera_type=camera_type), synthetic)


def test_known_points_of_photos_that_exif_rotates(tmp_path: Path) -> None:
    synthetic = make_plane(num_views=8, size=[(240, 180), (180, 240)], step_deg=3.0)
    write_photos(synthetic, tmp_path, orientations=range(1, 9))
    frames = photo_frames.load(tmp_path, FrameOptions(long_side=112))
    assert [frame.orientation for frame in frames.frames] == list(range(1, 9))
    scene = build_scene(exact_prediction(synthetic, frames), frames, SceneOptions())
    check(scene, synthetic)

    # Colours come from the upright photo: in views that see a point, its colour is much the same.
    points = scene.points
    for index, view in enumerate(synthetic.views):
        seen = points.obs_image == index
        x, y = points.obs_xy[seen].long().unbind(-1)
        photo = synthetic.photo(view).permute(1, 2, 0)[y, x].float()
        difference = (photo - points.rgb[points.obs_point[seen]].float()).abs().mean(-1)
        assert float(difference.median()) < 8.0
