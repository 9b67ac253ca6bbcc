# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.frames import ExifCamera, Frame
from ns_sparseattn.options import SceneOptions
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene.cameras import build_cameras, clean_poses
from ns_sparseattn.testing.stubs import stub_frame

SIZE = (640, 480)
FOCAL = 500.0


def predict(frames: Sequence[Frame], focals: Sequence[float]) -> Prediction:
    """A prediction with these focal lengths in original pixels and identity poses."""
    matrices = []
    for frame, focal in zip(frames, focals, strict=True):
        width, height = frame.size
        original = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0, 0, 1.0]])
        matrices.append(frame.pixel_map.intrinsics_to_network(original.double()))
    width, height = frames[0].pixel_map.network_size
    return Prediction(
        cam_from_world=torch.eye(3, 4).repeat(len(frames), 1, 1),
        intrinsics=torch.stack(matrices).float(),
        depth=torch.ones(len(frames), height, width),
        confidence=torch.ones(len(frames), height, width),
    )


def three_frames(exif: ExifCamera | None = None) -> tuple[Frame, ...]:
    return tuple(stub_frame(f"{i}.jpg", SIZE, exif=exif) for i in range(3))


def test_shared_focal_is_the_median() -> None:
    frames = three_frames()
    cameras = build_cameras(predict(frames, [490.0, 500.0, 900.0]), frames, SceneOptions())
    (camera,) = cameras.cameras
    assert (camera.model, camera.width, camera.height) == ("PINHOLE", 640, 480)
    assert camera.params == pytest.approx((500.0, 500.0, 320.0, 240.0))
    assert cameras.camera_ids == (1, 1, 1)
    assert cameras.notes == ()
    assert cameras.image_notes == ((), (), ())


@pytest.mark.parametrize(
    ("camera_type", "model", "params"),
    [
        ("pinhole", "PINHOLE", (FOCAL, FOCAL, 320.0, 240.0)),
        ("simple_pinhole", "SIMPLE_PINHOLE", (FOCAL, 320.0, 240.0)),
        ("perspective", "OPENCV", (FOCAL, FOCAL, 320.0, 240.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_camera_types(camera_type, model, params) -> None:
    frames = three_frames()
    options = SceneOptions(camera_type=camera_type)
    (camera,) = build_cameras(predict(frames, [FOCAL] * 3), frames, options).cameras
    assert camera.model == model
    assert camera.params == pytest.approx(params)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 0.0, -500.0, 1e6, 1.0])
def test_implausible_focal_is_replaced_by_the_groups(bad: float) -> None:
    frames = three_frames()
    cameras = build_cameras(predict(frames, [FOCAL, bad, FOCAL]), frames, SceneOptions())
    assert cameras.cameras[0].params == pytest.approx((FOCAL, FOCAL, 320.0, 240.0))
    assert "implausible" in cameras.image_notes[1][0]
    assert cameras.image_notes[0] == ()
    assert "1 of 3 photos" in cameras.notes[0]


@pytest.mark.parametrize(("exif_focal", "expected"), [(700.0, 700.0), (1.0, 768.0), (None, 768.0)])
def test_without_a_plausible_focal_exif_then_colmaps_default(exif_focal, expected) -> None:
    frames = three_frames(ExifCamera(focal_length_px=exif_focal))
    cameras = build_cameras(predict(frames, [float("inf")] * 3), frames, SceneOptions())
    assert cameras.cameras[0].params[:2] == pytest.approx((expected, expected))
    assert all(len(notes) == 1 for notes in cameras.image_notes)


def test_principal_point_that_is_no_pixel_becomes_the_centre() -> None:
    frames = three_frames()
    prediction = predict(frames, [FOCAL] * 3)
    prediction.intrinsics[:, 0, 2] = float("nan")
    (camera,) = build_cameras(prediction, frames, SceneOptions()).cameras
    assert camera.params[2:] == (320.0, 240.0)


def test_every_photo_its_own_camera() -> None:
    frames = three_frames()
    options = SceneOptions(camera_mode="per-image")
    cameras = build_cameras(predict(frames, [400.0, 500.0, 600.0]), frames, options)
    assert [camera.params[0] for camera in cameras.cameras] == pytest.approx([400.0, 500.0, 600.0])
    assert cameras.camera_ids == (1, 2, 3)


def poses(num_frames: int) -> Tensor:
    transforms = torch.eye(3, 4).repeat(num_frames, 1, 1)
    transforms[:, 0, 3] = torch.arange(num_frames)
    return transforms


def test_poses_close_to_rigid_become_rigid() -> None:
    predicted = poses(3)
    predicted[1, :, :3] *= 1.01
    cleaned, is_posed, notes = clean_poses(predicted, three_frames(), SceneOptions())
    torch.testing.assert_close(cleaned, poses(3).double())
    assert is_posed.tolist() == [True, True, True]
    assert notes == {}


def test_poses_that_are_none_are_replaced_and_named() -> None:
    predicted = poses(5)
    predicted[0, 1, 1] = float("nan")
    predicted[2, 0, 3] = float("inf")
    predicted[3, :, :3] = 0.0
    frames = tuple(stub_frame(f"{i}.jpg", SIZE) for i in range(5))
    cleaned, is_posed, notes = clean_poses(predicted, frames, SceneOptions())
    assert is_posed.tolist() == [False, True, False, False, True]
    assert cleaned[:, 0, 3].tolist() == [1.0, 1.0, 1.0, 1.0, 4.0]
    assert sorted(notes) == [0, 2, 3]
    assert "not finite" in notes[0]
    assert "1.jpg" in notes[0]
    assert "no rigid transform" in notes[3]


def test_no_pose_at_all_is_an_error() -> None:
    with pytest.raises(ReconstructionError, match="no usable camera pose"):
        clean_poses(torch.full((3, 3, 4), float("nan")), three_frames(), SceneOptions())
