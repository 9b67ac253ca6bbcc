# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ns_sparseattn import frames as photo_frames
from ns_sparseattn.geometry import (
    camera_centers,
    invert_rigid,
    pixel_centers,
    transform_points,
    unproject,
)
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.testing.synthetic import (
    exact_prediction,
    look_at,
    make_frames,
    make_plane,
    make_room,
    write_photos,
)
from ns_sparseattn.testing.synthetic.shapes import Box, Pillar, Plane, Shape, Sphere

ORIGIN = torch.zeros(3, dtype=torch.float64)


def hit(shape: Shape, *directions: tuple[float, float, float]) -> list[float]:
    return shape.intersect(ORIGIN, torch.tensor(directions, dtype=torch.float64)).tolist()


def test_plane() -> None:
    plane = Plane(point=(0.0, 0.0, 3.0), normal=(0.0, 0.0, -2.0))
    assert hit(plane, (0, 0, 1), (1, 1, 1), (0, 0, -1), (1, 0, 0)) == [3, 3, math.inf, math.inf]


def test_box() -> None:
    box = Box(center=(0.0, 0.0, 5.0), half=(1.0, 2.0, 1.0))
    hits = hit(box, (0, 0, 1), (0.2, 0, 1), (0.26, 0, 1), (0, 0.49, 1), (0, 0, -1))
    assert hits == [4, 4, math.inf, 4, math.inf]


def test_turned_box_shows_its_edge() -> None:
    box = Box(center=(0.0, 0.0, 5.0), half=(1.0, 1.0, 1.0), yaw_deg=45.0)
    assert hit(box, (1e-9, 0, 1))[0] == pytest.approx(5.0 - math.sqrt(2.0))


def test_sphere_and_pillar() -> None:
    sphere = Sphere(center=(0.0, 0.0, 5.0), radius=2.0)
    assert hit(sphere, (0, 0, 1), (0, 0, 2), (1, 0, 1)) == [3.0, 1.5, math.inf]
    pillar = Pillar(center=(0.0, 0.0, 5.0), radius=1.0, half_height=2.0)
    assert hit(pillar, (0, 0, 1), (0, 0.4, 1), (0, 0.6, 1)) == [4.0, 4.0, math.inf]


@pytest.mark.parametrize(
    "shape",
    [
        Plane(point=(0.0, 0.0, 3.0), normal=(0.3, 0.1, -1.0)),
        Box(center=(0.2, 0.1, 4.0), half=(1.0, 0.7, 0.5), yaw_deg=20.0),
        Sphere(center=(0.2, -0.1, 4.0), radius=1.3),
        Pillar(center=(0.1, 0.0, 4.0), radius=1.0, half_height=2.0),
    ],
    ids=["plane", "box", "sphere", "pillar"],
)
def test_normals_point_at_the_viewer(shape: Shape) -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 0.6 - 0.3
    direction[:, 2] = 1.0
    t = shape.intersect(ORIGIN, direction)
    is_hit = torch.isfinite(t)
    assert int(is_hit.sum()) > 20
    normal, uv = shape.surface(t[is_hit, None] * direction[is_hit])
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones_like(normal[:, 0]))
    assert bool(((normal * direction[is_hit]).sum(-1) < 1e-9).all())
    assert bool(torch.isfinite(uv).all())


def test_look_at_puts_the_target_on_the_axis() -> None:
    pose = look_at((1.0, -2.0, 0.5), (0.3, 0.4, 3.0))
    target = transform_points(pose, torch.tensor([0.3, 0.4, 3.0]).double())
    torch.testing.assert_close(target[:2], torch.zeros(2).double())
    assert float(target[2]) > 0
    torch.testing.assert_close(camera_centers(pose), torch.tensor([1.0, -2.0, 0.5]).double())
    # What lies below in the world lies below in the picture.
    below = transform_points(pose, torch.tensor([0.3, 1.4, 3.0]).double())
    assert float(below[1]) > 0


def test_depth_is_exact() -> None:
    plane = make_plane(num_views=2, size=(64, 48))
    depth = plane.depth()
    view = plane.views[1]
    in_cam = unproject(pixel_centers(48, 64), depth[1], view.intrinsics)
    world = transform_points(invert_rigid(view.cam_from_world), in_cam)
    shape = plane.solids[0].shape
    assert isinstance(shape, Plane)
    distance = (world - world.new_tensor(shape.point)) @ world.new_tensor(shape.normal)
    assert float(distance.abs().max()) < 1e-12


def test_room_is_closed_and_photos_are_rich() -> None:
    room = make_room(num_views=2, size=(96, 72))
    assert bool(torch.isfinite(room.depth()).all())
    images = room.images()
    assert images.shape == (2, 3, 72, 96)
    assert images.dtype == torch.uint8
    assert float(images.float().std()) > 40.0
    assert not torch.equal(images[0], images[1])
    again = make_room(num_views=2, size=(96, 72))
    assert torch.equal(again.images(), images)


def test_neighbours_overlap() -> None:
    room = make_room(num_views=12)
    centers = camera_centers(room.cam_from_world)
    assert float(torch.pdist(centers).min()) > 0.2
    axes = room.cam_from_world[:, 2, :3]
    angles = torch.rad2deg(torch.acos((axes[1:] * axes[:-1]).sum(-1)))
    assert 4.0 < float(angles.min()) <= float(angles.max()) < 10.0


def test_written_photos_load_as_the_frames_made_without_files(tmp_path: Path) -> None:
    room = make_room(num_views=8, size=[(120, 90), (90, 120)])
    paths = write_photos(room, tmp_path, orientations=range(1, 9))
    assert [path.name for path in paths] == [view.name for view in room.views]
    loaded = photo_frames.load(tmp_path, FrameOptions(long_side=56))
    made = make_frames(room, long_side=56, is_rendered=True)
    assert loaded.names == made.names
    for index, (a, b) in enumerate(zip(loaded.frames, made.frames, strict=True)):
        assert a.pixel_map == b.pixel_map
        assert a.size == b.size
        assert a.orientation == index + 1
        focal = float(room.views[index].intrinsics[0, 0])
        # EXIF holds whole millimetres.
        assert a.exif.focal_length_px == pytest.approx(focal, rel=0.03)
        photo = np.asarray(photo_frames.read_rgb(a)).astype(float)
        expected = room.read_rgb(b).numpy().astype(float)
        assert np.abs(photo - expected).mean() < 4.0
    assert float((loaded.images.float() - made.images.float()).abs().mean()) < 4.0


def test_focal_length_may_be_left_out(tmp_path: Path) -> None:
    plane = make_plane(num_views=1, size=(64, 48))
    (path,) = write_photos(plane, tmp_path, has_exif_focal=False)
    (frame,) = photo_frames.load(path, FrameOptions(long_side=56)).frames
    assert frame.exif.focal_length_px is None


def test_exact_prediction_unprojects_onto_the_scene() -> None:
    plane = make_plane(num_views=3, size=[(160, 120), (120, 160)])
    frames = make_frames(plane, resize="pad", long_side=56)
    prediction = exact_prediction(plane, frames)
    shape = plane.solids[0].shape
    assert isinstance(shape, Plane)
    for index, frame in enumerate(frames.frames):
        valid = frame.pixel_map.valid_mask()
        in_cam = unproject(
            pixel_centers(56, 56), prediction.depth[index].double(),
            prediction.intrinsics[index].double(),
        )  # fmt: skip
        world = transform_points(
            invert_rigid(prediction.cam_from_world[index].double()), in_cam[valid]
        )
        distance = (world - world.new_tensor(shape.point)) @ world.new_tensor(shape.normal)
        assert float(distance.abs().max()) < 1e-5
        assert float(prediction.confidence[index][~valid].max()) == 0.0
        assert float(prediction.confidence[index][valid].min()) > 1.0
