# SPDX-License-Identifier: Apache-2.0
"""Every kind of file gives the same poses; what is no such file is refused with a sentence."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycolmap
import pytest
import torch
from torch import Tensor

from ns_sparseattn.evaluate import read_poses
from ns_sparseattn.export import write_colmap
from ns_sparseattn.export.nerfstudio import saved_from_opengl_camera
from ns_sparseattn.geometry import invert_rigid
from ns_sparseattn.scene.types import Camera, Points, PosedImage, Scene

from .conftest import FOCAL, names_of, tum_lines, write_text_model


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def scene_of(poses: Tensor) -> Scene:
    camera = Camera(
        camera_id=1, model="PINHOLE", width=640, height=480, params=(FOCAL, FOCAL, 320.0, 240.0)
    )
    images = tuple(
        PosedImage(image_id=index + 1, name=name, camera_id=1, cam_from_world=pose)
        for index, (name, pose) in enumerate(zip(names_of(len(poses)), poses, strict=True))
    )
    points = Points(
        xyz=torch.zeros(2, 3, dtype=torch.float64),
        rgb=torch.zeros(2, 3, dtype=torch.uint8),
        error=torch.zeros(2, dtype=torch.float64),
        obs_point=torch.tensor([0, 0, 1]),
        obs_image=torch.tensor([0, 2, 1]),
        obs_xy=torch.ones(3, 2, dtype=torch.float64),
    )
    return Scene(cameras=(camera,), images=images, points=points)


def transforms_of(poses: Tensor, **entries: Any) -> dict[str, Any]:
    # `saved_from_opengl_camera` turns the world; the inverse turn gives the world of the test.
    back = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    matrices = saved_from_opengl_camera(poses)
    matrices[:, :3] = back @ matrices[:, :3]
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": matrix.tolist()}
        for name, matrix in zip(names_of(len(poses)), matrices, strict=True)
    ]
    intrinsics = {"w": 640, "h": 480, "fl_x": FOCAL, "cx": 320, "cy": 240}
    return {**intrinsics, **entries, "frames": frames}


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_jgz(path: Path, content: object) -> Path:
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def write_realestate(path: Path, poses: Tensor) -> Path:
    lines = ["https://www.youtube.com/watch?v=none"]
    for index, pose in enumerate(poses):
        numbers = [0.78, 1.04, 0.5, 0.5, 0, 0, *pose.flatten().tolist()]
        lines.append(f"{(index + 1) * 33366} " + " ".join(map(str, numbers)))
    path.write_text("\n".join(lines))
    return path


def write_log(path: Path, poses: Tensor) -> Path:
    lines = []
    for index, pose in enumerate(invert_rigid(poses)):
        lines.append(f"{index} {index} 0")
        lines += [" ".join(map(str, row)) for row in pose.tolist()]
        lines.append("0 0 0 1")
    path.write_text("\n".join(lines))
    return path


def co3d_frames(poses: Tensor, sequence: str) -> list[dict[str, Any]]:
    """PyTorch3D's cameras: x left, y up, row vectors."""
    flipped = poses * torch.tensor([[-1.0], [-1.0], [1.0]], dtype=torch.float64)
    return [
        {
            "sequence_name": sequence,
            "image": {"path": f"apple/{sequence}/images/{name}", "size": [480, 640]},
            "viewpoint": {
                "R": pose[:, :3].T.tolist(),
                "T": pose[:, 3].tolist(),
                "intrinsics_format": "ndc_isotropic",
                "focal_length": [FOCAL / 240, FOCAL / 240],
                "principal_point": [-10 / 240, 5 / 240],
            },
        }
        for name, pose in zip(names_of(len(poses)), flipped, strict=True)
    ]


WRITERS: dict[str, Callable[[Path, Tensor], Path]] = {
    "COLMAP text": lambda root, poses: write_text_model(root / "gt", poses),
    "COLMAP text, by file": lambda root, poses: write_text_model(root / "gt", poses) / "images.txt",
    "ETH3D": lambda root, poses: (
        write_text_model(root / "dslr_calibration_undistorted", poses).parent
    ),
    "transforms.json": lambda root, poses: write_json(
        root / "transforms.json", transforms_of(poses)
    ),
    "folder of transforms.json": lambda root, poses: (
        write_json(root / "transforms.json", transforms_of(poses)).parent
    ),
    "log": lambda root, poses: write_log(root / "Barn_COLMAP_SfM.log", poses),
    "RealEstate10K": lambda root, poses: write_realestate(root / "0000cc.txt", poses),
    "Co3D": lambda root, poses: write_jgz(
        root / "frame_annotations.jgz", co3d_frames(poses, "1_2_3")
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_poses_come_back(kind: str, tmp_path: Path, poses: Tensor) -> None:
    model = read_poses(WRITERS[kind](tmp_path, poses))
    assert len(model) == len(poses)
    assert_same(model.cam_from_world, poses)


def test_binary_models_come_back_with_structure(tmp_path: Path, poses: Tensor) -> None:
    write_colmap(scene_of(poses), tmp_path / "colmap/sparse/0")
    model = read_poses(tmp_path)
    assert (model.names, model.kind) == (names_of(6), "COLMAP model")
    assert_same(model.cam_from_world, poses)
    assert model.structure is not None
    seen = zip(model.structure.obs_point.tolist(), model.structure.obs_image.tolist(), strict=True)
    assert sorted(seen) == [(0, 0), (0, 2), (1, 1)]
    (lens,) = set(model.lenses)
    assert lens is not None
    assert (lens.focal, lens.center) == ((FOCAL, FOCAL), (320.0, 240.0))


def test_a_trajectory_is_named_by_its_times(tmp_path: Path, poses: Tensor) -> None:
    path = tmp_path / "groundtruth.txt"
    path.write_text("# time tx ty tz qx qy qz qw\n" + tum_lines(poses, [2.5 * i for i in range(6)]))
    for source in (path, tmp_path):
        model = read_poses(source)
        assert model.has_times
        assert model.names[:2] == ("0.0000", "2.5000")
        assert_same(model.cam_from_world, poses)


def test_images_stand_in_natural_order(tmp_path: Path, poses: Tensor) -> None:
    names = ["10.jpg", "9.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    model = read_poses(write_text_model(tmp_path, poses, names))
    assert model.names == ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "9.jpg", "10.jpg")
    assert_same(model.cam_from_world[-1], poses[0])


def test_cameras_of_any_model_are_read(tmp_path: Path, poses: Tensor) -> None:
    camera = "1 THIN_PRISM_FISHEYE 640 480 400 410 320 240 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8"
    (lens,) = set(read_poses(write_text_model(tmp_path, poses, camera=camera)).lenses)
    assert lens is not None
    assert (lens.model, lens.focal) == ("THIN_PRISM_FISHEYE", (400.0, 410.0))


def test_images_that_colmap_did_not_register_are_missing(tmp_path: Path, poses: Tensor) -> None:
    model = pycolmap.Reconstruction(str(write_text_model(tmp_path / "all", poses)))
    model.deregister_frame(model.image(1).frame_id)
    model.write_binary(str(tmp_path))
    assert read_poses(tmp_path).names == names_of(6)[1:]


def test_an_empty_model_is_refused(tmp_path: Path, poses: Tensor) -> None:
    (write_text_model(tmp_path, poses) / "images.txt").write_text("")
    with pytest.raises(ValueError, match="must have images, got none"):
        read_poses(tmp_path)


@pytest.mark.parametrize(
    ("entries", "model", "focal"),
    [
        ({}, "PINHOLE", (500.0, 500.0)),
        ({"fl_y": 510}, "PINHOLE", (500.0, 510.0)),
        ({"k1": 0.1, "p2": 0.01}, "OPENCV", (500.0, 500.0)),
        ({"k1": 0.1, "k3": 0.01}, "FULL_OPENCV", (500.0, 500.0)),
        ({"k1": 0.1, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE", (500.0, 500.0)),
    ],
)
def test_intrinsics_of_transforms(
    entries: dict[str, Any],
    model: str,
    focal: tuple[float, float],
    tmp_path: Path,
    poses: Tensor,
) -> None:
    path = write_json(tmp_path / "transforms.json", transforms_of(poses, **entries))
    (lens,) = set(read_poses(path).lenses)
    assert lens is not None
    assert (lens.model, lens.focal, lens.width) == (model, focal, 640)


def test_blender_scenes_know_an_angle_of_view(tmp_path: Path, poses: Tensor) -> None:
    content = transforms_of(poses, camera_angle_x=math.pi / 2)
    del content["fl_x"]
    (lens,) = set(read_poses(write_json(tmp_path / "transforms.json", content)).lenses)
    assert lens is not None
    assert lens.focal == pytest.approx((320.0, 320.0))
    del content["w"]
    assert set(read_poses(write_json(tmp_path / "transforms.json", content)).lenses) == {None}


def test_intrinsics_of_co3d_are_pixels(tmp_path: Path, poses: Tensor) -> None:
    frames = co3d_frames(poses, "1_2_3")
    (lens,) = set(read_poses(write_jgz(tmp_path / "a.jgz", frames)).lenses)
    assert lens is not None
    assert lens.focal == pytest.approx((FOCAL, FOCAL))
    # Device coordinates point left and up.
    assert lens.center == pytest.approx((330.0, 235.0))
    for frame in frames:
        frame["viewpoint"]["intrinsics_format"] = "ndc_norm_image_bounds"
    (lens,) = set(read_poses(write_jgz(tmp_path / "a.jgz", frames)).lenses)
    assert lens is not None
    assert lens.focal == pytest.approx((FOCAL * 320 / 240, FOCAL))


def test_a_sequence_of_co3d_is_chosen_by_name(tmp_path: Path, poses: Tensor) -> None:
    frames = [*co3d_frames(poses[:2], "a"), *co3d_frames(poses[2:], "b")]
    path = write_jgz(tmp_path / "frame_annotations.jgz", frames)
    assert len(read_poses(path, sequence="b")) == 4
    with pytest.raises(ValueError, match=r"`sequence` must be one of the 2 .* a, b; got None"):
        read_poses(path)
    # The form of VGGT's evaluation: sequences by name, no image sizes.
    content = {
        "b": [{"filepath": frame["image"]["path"], **frame["viewpoint"]} for frame in frames[2:]]
    }
    model = read_poses(write_jgz(tmp_path / "apple_test.jgz", content))
    assert_same(model.cam_from_world, poses[2:])
    assert set(model.lenses) == {None}


def test_names_must_be_unique(tmp_path: Path, poses: Tensor) -> None:
    content = transforms_of(poses)
    content["frames"][1]["file_path"] = content["frames"][0]["file_path"]
    with pytest.raises(ValueError, match=r"must be unique, got 000\.jpg"):
        read_poses(write_json(tmp_path / "transforms.json", content))


def test_a_matrix_that_is_no_rotation_is_named(tmp_path: Path, poses: Tensor) -> None:
    content = transforms_of(poses)
    content["frames"][3]["transform_matrix"][0][0] += 0.5
    with pytest.raises(ValueError, match=r"rigid poses, got another matrix for images/003\.jpg\."):
        read_poses(write_json(tmp_path / "transforms.json", content))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "must be a transforms.json"),
        ("a.json", "{", "must be a transforms.json"),
        ("a.json", '{"frames": []}', "must have frames"),
        ("a.txt", "1 2 3\n", "must be a TUM trajectory"),
        ("a.txt", "", "got no line"),
        ("a.txt", "1 2 3 4 5 6 7 eight\n", "must hold numbers"),
        ("a.txt", "1 0 0 0 0 0 0 0\n", "must hold quaternions"),
        ("a.txt", "1 nan 0 0 0 0 0 1\n", "must hold rigid poses"),
        ("a.jgz", "no gzip", "must be annotations of Co3D"),
        ("cameras.txt", "1 PINHOLE 1 1 1 1 1 1\n", "cannot read the COLMAP model"),
    ],
)
def test_other_files_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, RuntimeError), match=message):
        read_poses(tmp_path / name)


def test_folders_without_poses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none of them"):
        read_poses(tmp_path)
    with pytest.raises(ValueError, match="There is no"):
        read_poses(tmp_path / "nowhere")
