# SPDX-License-Identifier: Apache-2.0
"""Photos of scenes in closed form, and a network that predicts them exactly: the scene is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ns_sparseattn import frames, pipeline, predicting
from ns_sparseattn.geometry import project, transform_points
from ns_sparseattn.models import WeightsInfo
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    look_at,
    make_plane,
    make_room,
    write_photos,
)

from .conftest import LONG_SIDE, WrittenScene

MakeScene = Callable[..., WrittenScene]

KNOWN = WeightsInfo(name="exact", source="test", licence="none", commercial=True, verified=True)


@dataclass(frozen=True)
class ExactModel:
    """Stands in for a network: it knows the scene that the photos show."""

    scene: SyntheticScene
    photos: frames.Frames

    def predict(self, images: Tensor, **options: Any) -> Prediction:
        """Return the truth."""
        del options
        assert images.shape == self.photos.images.shape
        return exact_prediction(self.scene, self.photos)


@pytest.fixture
def make_exact(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., WrittenScene]:
    """Write photos of a scene, and run the pipeline on them with the exact model."""

    def make(scene: SyntheticScene, **photos: Any) -> WrittenScene:
        write_photos(scene, tmp_path / "photos", **photos)
        loaded = frames.load(tmp_path / "photos", FrameOptions(long_side=LONG_SIDE))
        model = ExactModel(scene, loaded)
        monkeypatch.setattr(pipeline, "load_model", lambda *args, **kwargs: (model, KNOWN))
        # It has no encoder by which to choose, and its answer has the photos' own order.
        monkeypatch.setattr(predicting, "choose_reference", lambda *args, **kwargs: 0)
        # Asked is whether the prediction arrives as it is.
        return make_scene(tmp_path / "photos", refine="none")

    return make


def with_views(room: SyntheticScene, poses: list[Tensor]) -> SyntheticScene:
    views = [
        replace(view, cam_from_world=pose) for view, pose in zip(room.views, poses, strict=True)
    ]
    return replace(room, views=tuple(views), _photos={})


def observed_errors(written: WrittenScene, scene: SyntheticScene, image: Any) -> Tensor:
    """Distance of each observation that was read back to where the true camera sees its point."""
    view = scene.view(image.name)
    observed = [point for point in image.points2D if point.has_point3D()]
    xyz = np.stack([written.model.point3D(point.point3D_id).xyz for point in observed])
    pixels = np.stack([point.xy for point in observed])
    seen, depth = project(
        transform_points(view.cam_from_world, torch.from_numpy(xyz)), view.intrinsics
    )
    assert float(depth.min()) > 0
    return (seen - torch.from_numpy(pixels)).norm(dim=-1)


@pytest.mark.parametrize(
    ("size", "orientations"),
    [
        pytest.param((240, 180), (1,), id="landscape"),
        pytest.param((180, 240), (1,), id="portrait"),
        pytest.param([(240, 180), (180, 240), (200, 200)], (1,), id="mixed_sizes"),
        pytest.param([(240, 180), (180, 240)], range(1, 9), id="exif_rotated"),
    ],
)
def test_points_of_a_plane_come_back_where_the_true_cameras_see_them(
    make_exact: Callable[..., WrittenScene], size: Any, orientations: Sequence[int]
) -> None:
    plane = make_plane(num_views=8, size=size, step_deg=3.0)
    written = make_exact(plane, orientations=orientations)
    assert written.sizes == {view.name: view.size for view in plane.views}
    for image in written.model.images.values():
        errors = observed_errors(written, plane, image)
        assert len(errors) > 500
        assert float(errors.max()) < 0.01
    assert not written.result.notes


def test_upright_rotated_portrait_and_landscape_photos_get_their_true_cameras_and_points(
    make_exact: Callable[..., WrittenScene],
) -> None:
    room = make_room(num_views=8, size=[(160, 120), (120, 160)], step_deg=5.0)
    written = make_exact(room, orientations=range(1, 9))
    assert set(written.sizes.values()) == {(160, 120), (120, 160)}
    for image in written.model.images.values():
        view = room.view(image.name)
        pose = torch.from_numpy(image.cam_from_world().matrix())
        torch.testing.assert_close(pose, view.cam_from_world, rtol=0, atol=1e-5)
        calibration = torch.from_numpy(image.camera.calibration_matrix())
        torch.testing.assert_close(calibration, view.intrinsics, rtol=0, atol=1e-2)
        # Depth is interpolated across the bends of the room, so single points may be off.
        errors = observed_errors(written, room, image)
        assert len(errors) > 50
        assert float(errors.median()) < 0.05
    assert not written.result.notes


def test_rotation_from_one_place_is_said_to_leave_nothing_to_triangulate(
    make_exact: Callable[..., WrittenScene],
) -> None:
    room = make_room(num_views=4, size=(160, 120))
    poses = [look_at((0.5, 0.0, -2.0), (0.5 + 0.4 * i, 0.3, 2.0)) for i in range(4)]
    written = make_exact(with_views(room, poses))
    assert len(written.sizes) == 4
    assert "nothing can be triangulated" in written.notes
    assert "copies" not in written.notes


def test_one_view_twice_is_said_to_leave_nothing_to_triangulate(
    make_exact: Callable[..., WrittenScene],
) -> None:
    room = make_room(num_views=2, size=(160, 120))
    written = make_exact(with_views(room, [room.views[0].cam_from_world] * 2))
    assert "All photos show the same picture" in written.notes
    assert "The cameras hardly move" in written.notes
