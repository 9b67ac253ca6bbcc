# SPDX-License-Identifier: Apache-2.0
"""COLMAP models: what is written is what pycolmap and we read back."""

from __future__ import annotations

import builtins
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.export import read_colmap, write_colmap
from ns_sparseattn.frames import Frames
from ns_sparseattn.scene.types import CameraModel, Points, Scene

NAMES = ["plain.png", "left/0.jpg", "right/0.jpg", "with blank/b c.png", "größe/日本.png"]


@pytest.fixture
def frames(tmp_path: Path, make_photo: Any, load_photos: Callable[..., Frames]) -> Frames:
    for index, name in enumerate(NAMES):
        make_photo(tmp_path / "photos" / name, (60 + index, 45), seed=index)
    return load_photos(tmp_path / "photos")


def assert_equal(got: Scene, want: Scene) -> None:
    assert got.cameras == want.cameras
    assert len(got.images) == len(want.images)
    for a, b in zip(got.images, want.images, strict=True):
        assert (a.image_id, a.name, a.camera_id) == (b.image_id, b.name, b.camera_id)
        torch.testing.assert_close(a.cam_from_world, b.cam_from_world, rtol=0, atol=1e-12)
    for field in dataclasses.fields(Points):
        a, b = getattr(got.points, field.name), getattr(want.points, field.name)
        assert a.dtype == b.dtype, field.name
        assert torch.equal(a, b), field.name


def without_points(scene: Scene) -> Scene:
    points = scene.points
    return dataclasses.replace(
        scene,
        points=Points(
            xyz=points.xyz[:0],
            rgb=points.rgb[:0],
            error=points.error[:0],
            obs_point=points.obs_point[:0],
            obs_image=points.obs_image[:0],
            obs_xy=points.obs_xy[:0],
        ),
    )


def without_observations(scene: Scene) -> Scene:
    points = dataclasses.replace(
        scene.points,
        obs_point=scene.points.obs_point[:0],
        obs_image=scene.points.obs_image[:0],
        obs_xy=scene.points.obs_xy[:0],
    )
    return dataclasses.replace(scene, points=points)


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_binary_round_trip_is_exact(
    frames: Frames, make_scene: Any, tmp_path: Path, model: CameraModel
) -> None:
    scene = make_scene(frames, model=model)
    write_colmap(scene, tmp_path / "model")
    assert_equal(read_colmap(tmp_path / "model"), scene)


def test_text_round_trip_is_exact(
    tmp_path: Path, make_photo: Any, load_photos: Callable[..., Frames], make_scene: Any
) -> None:
    for name in NAMES[:3]:
        make_photo(tmp_path / "photos" / name)
    scene = make_scene(load_photos(tmp_path / "photos"))
    write_colmap(scene, tmp_path / "model", text=True)
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".txt"}
    assert_equal(read_colmap(tmp_path / "model"), scene)


def test_text_warns_of_blanks(
    frames: Frames, make_scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_colmap(make_scene(frames), tmp_path, text=True)
    assert "with blank/b c.png" in caplog.text


@pytest.mark.parametrize("reduce", [without_points, without_observations])
def test_scene_without_points_or_observations(
    frames: Frames, make_scene: Any, tmp_path: Path, reduce: Callable[[Scene], Scene]
) -> None:
    scene = reduce(make_scene(frames))
    write_colmap(scene, tmp_path / "model")
    assert_equal(read_colmap(tmp_path / "model"), scene)


def test_pycolmap_reads_the_same_model(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    write_colmap(scene, tmp_path)
    model = pycolmap.Reconstruction(str(tmp_path))
    assert model.is_valid()
    assert {"cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert [model.images[i].name for i in sorted(model.images)] == [i.name for i in scene.images]
    assert model.num_points3D() == len(scene.points)
    assert model.compute_num_observations() == len(scene.points.obs_point)
    for index, image in enumerate(scene.images):
        read = model.image(image.image_id)
        assert len(read.points2D) == int((scene.points.obs_image == index).sum())
        for keypoint in read.points2D:
            projected = read.project_point(model.point3D(keypoint.point3D_id).xyz)
            assert projected is not None
            assert float(np.abs(projected - keypoint.xy).max()) < 0.01


def test_same_scene_gives_the_same_bytes(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_colmap(make_scene(frames), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_input_is_not_changed(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    write_colmap(scene, tmp_path)
    assert_equal(scene, make_scene(frames))


def test_model_is_found_in_a_scene_folder(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene = make_scene(frames)
    write_colmap(scene, tmp_path / "colmap/sparse/0")
    assert_equal(read_colmap(tmp_path), scene)


def test_folder_without_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold a COLMAP model"):
        read_colmap(tmp_path)


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "cameras.bin").write_bytes(b"nonsense")
    with pytest.raises(ReconstructionError, match="cannot read the COLMAP model"):
        read_colmap(tmp_path)


def test_other_camera_models_are_refused(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        camera_id=1, model="OPENCV_FISHEYE", width=8, height=6, params=[9, 9, 4, 3, 0, 0, 0, 0]
    )
    model.add_camera_with_trivial_rig(camera)
    model.write(str(tmp_path))
    with pytest.raises(ValueError, match="got OPENCV_FISHEYE"):
        read_colmap(tmp_path)


def test_keypoints_without_point_and_images_without_pose(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=8, height=6, params=[9, 9, 4, 3])
    model.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", camera_id=1, image_id=7)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    keypoints = [pycolmap.Point2D(np.array([x, 1.0])) for x in (1.0, 2.0)]
    model.image(7).points2D = pycolmap.Point2DList(keypoints)
    track = pycolmap.Track([pycolmap.TrackElement(7, 1)])
    model.add_point3D(np.array([0.0, 0.0, 1.0]), track, np.array([1, 2, 3], np.uint8))
    model.write(str(tmp_path))
    scene = read_colmap(tmp_path)
    assert scene.points.obs_xy.tolist() == [[2.0, 1.0]]
    assert scene.notes == ()


def test_no_images(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene = dataclasses.replace(without_points(make_scene(frames)), images=())
    with pytest.raises(ValueError, match="at least one image"):
        write_colmap(scene, tmp_path)


def test_poses_must_be_rotations(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    bad = dataclasses.replace(scene.images[0], cam_from_world=2 * torch.eye(3, 4).double())
    scene = dataclasses.replace(scene, images=(bad, *scene.images[1:]))
    with pytest.raises(ValueError, match="must hold rotations"):
        write_colmap(scene, tmp_path)


def test_numbers_must_be_finite(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    xyz = scene.points.xyz.clone()
    xyz[3, 1] = torch.nan
    scene = dataclasses.replace(scene, points=dataclasses.replace(scene.points, xyz=xyz))
    with pytest.raises(ValueError, match=r"scene.points.xyz.*finite"):
        write_colmap(scene, tmp_path)


def test_observations_must_be_sorted(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    flipped = dataclasses.replace(scene.points, obs_image=scene.points.obs_image.flip(0))
    with pytest.raises(ValueError, match="must be sorted"):
        write_colmap(dataclasses.replace(scene, points=flipped), tmp_path)


def test_observations_must_refer_to_images(frames: Frames, make_scene: Any, tmp_path: Path) -> None:
    scene: Scene = make_scene(frames)
    points = dataclasses.replace(scene.points, obs_image=scene.points.obs_image + 9)
    with pytest.raises(ValueError, match=r"obs_image.*indices below 5"):
        write_colmap(dataclasses.replace(scene, points=points), tmp_path)


def test_missing_pycolmap_names_the_command(
    frames: Frames, make_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pycolmap":
            raise ImportError("No module named 'pycolmap'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ReconstructionError, match="pip install 'pycolmap>=4'"):
        write_colmap(make_scene(frames), tmp_path)


def test_cut_off_file_is_noticed(
    frames: Frames, make_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = pycolmap.Reconstruction.write_binary

    def write_short(self: Any, folder: str) -> None:
        real_write(self, folder)
        path = Path(folder) / "points3D.bin"
        path.write_bytes(path.read_bytes()[:-5])

    monkeypatch.setattr(pycolmap.Reconstruction, "write_binary", write_short)
    with pytest.raises(OSError, match="is the disk full"):
        write_colmap(make_scene(frames), tmp_path)


def test_pictures_can_be_written_after_pycolmap_was_loaded() -> None:
    script = (
        "import io\n"
        "from ns_sparseattn.export.colmap import import_pycolmap\n"
        "import_pycolmap()\n"
        "from PIL import Image\n"
        "for _ in range(20):\n"
        "    Image.effect_noise((400, 300), 90).save(io.BytesIO(), 'PNG')\n"
    )
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
