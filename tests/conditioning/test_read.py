# SPDX-License-Identifier: Apache-2.0
"""What is known is read from every kind of file, and what does not fit is said in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn.conditioning import Known, KnownOptions, load_known
from ns_sparseattn.frames import ExifCamera
from ns_sparseattn.models.registry import MODELS

from .conftest import Room, true_intrinsics, write_depth, write_transforms


def read(room: Room, **options: object) -> Known:
    known = load_known(KnownOptions(**options), room.photos)  # type: ignore[arg-type]
    assert known is not None
    return known


def write_cameras(room: Room, folder: Path, *, factor: int = 1, model: str = "PINHOLE") -> Path:
    k = true_intrinsics(room) / factor
    width, height = (side // factor for side in room.photos.frames[0].size)
    folder.mkdir(exist_ok=True)
    extra = " 0.1 0 0 0" if model == "OPENCV" else ""
    (folder / "cameras.txt").write_text(
        f"# A comment.\n1 {model} {width} {height} {k[0, 0]} {k[1, 1]} {k[0, 2]} {k[1, 2]}{extra}\n"
    )
    return folder


def write_yaml(room: Room, path: Path, *, matrix: list[float] | None = None) -> Path:
    k = true_intrinsics(room)
    if matrix is None:
        # OpenCV's pixels have their centre at integers.
        k[:2, 2] -= 0.5
        matrix = k.flatten().tolist()
    width, height = room.photos.frames[0].size
    path.write_text(
        f"%YAML:1.0\n---\nimage_width: {width}\nimage_height: {height}\n"
        "camera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n"
        f"   data: {matrix}\n"
        "distortion_coefficients: !!opencv-matrix\n   rows: 1\n   cols: 5\n   dt: d\n"
        "   data: [ 0., 0., 0., 0., 0. ]\n"
    )
    return path


@pytest.mark.parametrize("kind", ["cameras.txt", "folder", "smaller", "transforms", "yaml"])
def test_intrinsics(room: Room, tmp_path: Path, kind: str) -> None:
    path = {
        "cameras.txt": lambda: write_cameras(room, tmp_path) / "cameras.txt",
        "folder": lambda: write_cameras(room, tmp_path),
        "smaller": lambda: write_cameras(room, tmp_path, factor=2),
        "transforms": lambda: write_transforms(room, tmp_path / "transforms.json"),
        "yaml": lambda: write_yaml(room, tmp_path / "camera.yaml"),
    }[kind]()
    known = read(room, intrinsics=str(path))
    assert not known.notes
    for matrix in known.intrinsics:
        assert matrix is not None
        assert torch.allclose(matrix, true_intrinsics(room), atol=1e-4)


def test_intrinsics_of_a_model_with_images(room: Room, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    k = true_intrinsics(room)
    width, height = room.photos.frames[0].size
    params = [float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])]
    camera = pycolmap.Camera(
        camera_id=1, model="PINHOLE", width=width, height=height, params=params
    )
    model.add_camera_with_trivial_rig(camera)
    for index in (0, 2):
        image = pycolmap.Image(name=room.photos.names[index], camera_id=1, image_id=index + 1)
        pose = pycolmap.Rigid3d(room.truth.cam_from_world[index].double().numpy())
        model.add_image_with_trivial_frame(image, pose)
    model.write(str(tmp_path))
    known = read(room, intrinsics=str(tmp_path), poses=tmp_path)
    assert [matrix is not None for matrix in known.intrinsics] == [True, False, True, False, False]
    assert known.posed == (0, 2)
    pose = known.cam_from_world[2]
    assert pose is not None
    assert torch.allclose(pose.float(), room.truth.cam_from_world[2], atol=1e-5)
    assert "No intrinsics are known from" in known.notes[0]
    assert "No pose is known from" in known.notes[1]


def test_intrinsics_from_exif(room: Room) -> None:
    frames = tuple(
        replace(frame, exif=ExifCamera(focal_length_px=150.0 if index else None))
        for index, frame in enumerate(room.photos.frames)
    )
    known = load_known(KnownOptions(intrinsics="exif"), replace(room.photos, frames=frames))
    assert known is not None
    assert known.intrinsics[0] is None
    assert known.intrinsics[1] is not None
    assert known.intrinsics[1].tolist() == [[150, 0, 80], [0, 150, 60], [0, 0, 1]]
    bare = tuple(replace(frame, exif=ExifCamera()) for frame in room.photos.frames)
    with pytest.raises(ValueError, match="No photo states a focal length in its EXIF"):
        load_known(KnownOptions(intrinsics="exif"), replace(room.photos, frames=bare))


def test_distortion_is_left_out_and_said(room: Room, tmp_path: Path) -> None:
    known = read(room, intrinsics=str(write_cameras(room, tmp_path, model="OPENCV")))
    assert "lens distortion" in known.notes[0]


@pytest.mark.parametrize("kind", ["npy", "png"])
def test_depth(room: Room, tmp_path: Path, kind: str) -> None:
    known = read(room, depth=write_depth(room, tmp_path / "depth", kind=kind))
    for depth in known.depth:
        assert depth is not None
        assert depth.shape == room.photos.images.shape[2:]
        assert not depth[:13].any()
        assert torch.allclose(depth[15:], torch.tensor(2.0))


def test_depth_has_the_unit_given_and_may_be_partial(room: Room, tmp_path: Path) -> None:
    folder = write_depth(room, tmp_path / "depth", kind="png")
    (folder / Path(room.photos.names[1]).with_suffix(".png")).unlink()
    known = read(room, depth=folder, depth_unit=0.01)
    assert known.depth[0] is not None
    assert float(known.depth[0].max()) == pytest.approx(20.0)
    assert known.depth[1] is None
    assert known.notes == (f"No depth is known for {room.photos.names[1]}.",)


def test_networks_are_told_what_they_take(room: Room, tmp_path: Path) -> None:
    transforms = write_transforms(room, tmp_path / "transforms.json")
    folder = write_depth(room, tmp_path / "depth")
    known = read(room, intrinsics=str(transforms), poses=transforms, depth=folder)
    frames = room.photos.frames
    assert known.priors(frames, MODELS["vggt"]) == [None] * 5
    for prior in known.priors(frames, MODELS["pi3x"]):
        assert prior is not None
        assert prior.intrinsics is not None
        assert torch.allclose(prior.intrinsics, room.truth.intrinsics[0], atol=1e-3)
        assert prior.cam_from_world is not None
        assert prior.depth is not None
        assert not prior.is_pose_metric
    alone = read(room, depth=folder)
    assert alone.priors(frames, MODELS["mapanything"]) == [None] * 5
    assert all(prior is not None for prior in alone.priors(frames, MODELS["pi3x"]))


def test_files_of_other_photos_are_named(room: Room, tmp_path: Path) -> None:
    others = [f"other_{i}.jpg" for i in range(5)]
    path = write_transforms(room, tmp_path / "transforms.json", names=others)
    with pytest.raises(
        ValueError, match=r"The poses in .*transforms.json are of other photos: they"
    ):
        read(room, poses=path)
    with pytest.raises(
        ValueError, match=r"The intrinsics in .* are of other photos: they have names such as othe"
    ):
        read(room, intrinsics=str(path))
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth/other.npy", np.ones((120, 160)))
    with pytest.raises(ValueError, match=r"The depth maps in .*depth are of other photos: they"):
        read(room, depth=tmp_path / "depth")


def test_singular_intrinsics_are_refused(room: Room, tmp_path: Path) -> None:
    content = json.loads(write_transforms(room, tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**content, "fl_x": 0.0}))
    with pytest.raises(ValueError, match=r"of .* in .*t.json are singular: focal lengths must be"):
        read(room, intrinsics=str(tmp_path / "t.json"))
    path = write_yaml(room, tmp_path / "c.yaml", matrix=[0.0] * 9)
    with pytest.raises(ValueError, match=r"The matrix in .*c.yaml must be \[\[fx, 0, cx\]"):
        read(room, intrinsics=str(path))


def test_intrinsics_of_another_shape_are_refused(room: Room, tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 120 160 100 100 60 80\n")
    with pytest.raises(
        ValueError, match="are of pictures of 120 x 160 pixels, the photo has 160 x"
    ):
        read(room, intrinsics=str(tmp_path / "cameras.txt"))


def test_fisheye_lenses_are_refused(room: Room, tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("1 OPENCV_FISHEYE 160 120 100 100 80 60 0 0 0 0\n")
    with pytest.raises(ValueError, match="are of a fisheye lens"):
        read(room, intrinsics=str(tmp_path / "cameras.txt"))


def test_depth_of_another_size_or_kind_is_refused(room: Room, tmp_path: Path) -> None:
    stem = Path(room.photos.names[0]).stem
    np.save(tmp_path / f"{stem}.npy", np.ones((60, 80)))
    with pytest.raises(ValueError, match=r"has 80 x 60 pixels, its photo .* has 160 x 120"):
        read(room, depth=tmp_path)
    np.save(tmp_path / f"{stem}.npy", -np.ones((120, 160)))
    with pytest.raises(ValueError, match="must hold depth of 0 or more, got -1"):
        read(room, depth=tmp_path)
    (tmp_path / f"{stem}.npy").unlink()
    Image.new("L", (160, 120)).save(tmp_path / f"{stem}.png")
    with pytest.raises(ValueError, match="its pixels are of the kind L, not 16-bit gray"):
        read(room, depth=tmp_path)


def test_missing_files_are_named(room: Room, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file of intrinsics .*gone.txt"):
        read(room, intrinsics=str(tmp_path / "gone.txt"))
    with pytest.raises(ValueError, match=r"There is no .*gone"):
        read(room, poses=tmp_path / "gone")
    with pytest.raises(ValueError, match=r"The folder of depth .*gone does not exist"):
        read(room, depth=tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no .png and no .npy files"):
        read(room, depth=tmp_path)


def test_poses_from_an_images_txt_that_stands_alone(room: Room, tmp_path: Path) -> None:
    first, last = room.photos.names[0], room.photos.names[4]
    path = tmp_path / "images.txt"
    # The second image's line of points is left out, the first one's is empty.
    path.write_text(
        f"# IMAGE_ID, QW, ...\n1 1 0 0 0 1 2 3 1 {first}\n\n2 0 0 2 0 4 5 6 1 {last}\n"
        f"3 1 0 0 0 7 8 9 1 other.jpg\n3.0 4.0 -1\n"
    )
    for source in (path, tmp_path):
        known = read(room, poses=source)
        assert known.posed == (0, 4)
        pose = known.cam_from_world[4]
        assert pose is not None
        assert pose.tolist() == [[-1, 0, 0, 4], [0, 1, 0, 5], [0, 0, -1, 6]]
    path.write_text(f"1 0 0 0 0 1 2 3 1 {first}\n")
    with pytest.raises(ValueError, match=f"images.txt must hold poses, got none for {first}"):
        read(room, poses=path)
    path.write_text("1 1 0 0 0 1 2 3\n")
    with pytest.raises(ValueError, match="images.txt has a line that is no image: '1 1 0 0"):
        read(room, poses=path)


def test_a_model_without_points_is_enough(room: Room, tmp_path: Path) -> None:
    write_cameras(room, tmp_path)
    (tmp_path / "images.txt").write_text(f"1 1 0 0 0 1 2 3 1 {room.photos.names[1]}\n\n")
    known = read(room, poses=tmp_path, intrinsics=str(tmp_path))
    assert known.posed == (1,)
    assert known.intrinsics[1] is not None
    assert torch.allclose(known.intrinsics[1], true_intrinsics(room), atol=1e-4)
    assert known.intrinsics[0] is None


def test_entries_that_share_a_name_are_refused(room: Room, tmp_path: Path) -> None:
    stem = Path(room.photos.names[0]).stem
    for suffix in ("npy", "png"):
        write_depth(room, tmp_path / suffix, kind=suffix)
    (tmp_path / "npy" / f"{stem}.npy").rename(tmp_path / "png" / f"{stem}.npy")
    with pytest.raises(ValueError, match="do not tell which photo each is of"):
        read(room, depth=tmp_path / "png")
    names = [room.photos.names[0]] * 2
    path = write_transforms(room, tmp_path / "transforms.json", names=names)
    with pytest.raises(ValueError, match="must be of different photos, got .* more than once"):
        read(room, intrinsics=str(path))
    with pytest.raises(ValueError, match="must be unique"):
        read(room, poses=path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"K: [[80, 0, 80], [0, 80, 60], [0, 0, 1]]\nimage_width: wide\n", "is no OpenCV calib"),
        (b"K: [[80, 0, 80], [0, 80, 60], [0, 0, 1]]\ndistortion_model: equidistant\n", "fisheye"),
        (b"", "it holds no names and values"),
        (b"a: 1\n", "must hold a 3 x 3 matrix under one of camera_matrix"),
        (b"\xff\xfe\x00", "must be a text file of intrinsics, got a binary one"),
    ],
)
def test_unusable_calibrations_are_named(
    room: Room, tmp_path: Path, text: bytes, sentence: str
) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=sentence) as refused:
        read(room, intrinsics=str(path))
    assert str(path) in str(refused.value)


def test_intrinsics_that_are_no_numbers_are_named(room: Room, tmp_path: Path) -> None:
    content = json.loads(write_transforms(room, tmp_path / "t.json").read_text())
    for value in ("long", None):
        (tmp_path / "t.json").write_text(json.dumps({**content, "fl_x": value}))
        with pytest.raises(ValueError, match=r"t.json must hold numbers as the intrinsics of"):
            read(room, intrinsics=str(tmp_path / "t.json"))


def test_a_principal_point_outside_the_picture_is_noted(room: Room, tmp_path: Path) -> None:
    path = write_transforms(room, tmp_path / "t.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "cx": 700.0}))
    (note,) = read(room, intrinsics=str(path)).notes
    assert "lies outside the picture of" in note


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="`depth_unit` has no effect without `depth`"):
        KnownOptions(depth_unit=0.1)
    with pytest.raises(ValueError, match="`metric_poses` has no effect without `poses`"):
        KnownOptions(metric_poses=True)
