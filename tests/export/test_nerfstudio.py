# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's two dataparsers load a scene folder with the cameras and points of the scene."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ns_sparseattn.export import SceneFolder, write_nerfstudio, write_scene
from ns_sparseattn.frames import Frames
from ns_sparseattn.geometry import invert_rigid, project, transform_points
from ns_sparseattn.options import ExportOptions
from ns_sparseattn.scene.types import Points, Scene

pytestmark = pytest.mark.usefixtures("torchvision")

Parse = Callable[..., Any]


@pytest.fixture(params=["nerfstudio-data", "colmap"])
def parse(request: pytest.FixtureRequest, torchvision: object) -> Parse:
    """Run one of the dataparsers on all images of a folder."""
    assert torchvision
    from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    def run(folder: SceneFolder, factor: int | None = 1, load_points: bool = True) -> Any:
        if request.param == "colmap":
            masks = None if folder.masks is None else Path("masks")
            config = ColmapDataParserConfig(
                data=folder.root,
                downscale_factor=factor,
                eval_mode="all",
                masks_path=masks,
                load_3D_points=load_points,
            )
        else:
            config = NerfstudioDataParserConfig(
                data=folder.root,
                downscale_factor=factor,
                eval_mode="all",
                load_3D_points=load_points,
            )
        return config.setup().get_dataparser_outputs("train")

    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    scene: Scene
    folder: SceneFolder


def write(tmp_path: Path, scene: Scene, frames: Frames) -> Written:
    folder = write_scene(scene, frames, tmp_path / "scene", ExportOptions(), manifest={})
    return Written(scene=scene, folder=folder)


@pytest.fixture(params=["one camera", "several cameras", "masks", "sub-folders", "rotated"])
def written(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_photo: Any,
    load_photos: Callable[..., Frames],
    make_scene: Any,
) -> Written:
    photos, masks = tmp_path / "photos", None
    for index in range(5):
        size = (121, 83) if request.param in ("one camera", "masks") else (121 + 7 * index, 83)
        folder = ("left/", "right/", "")[index % 3] if request.param == "sub-folders" else ""
        orientation = 6 if request.param == "rotated" and index % 2 else None
        number = index // 3 if request.param == "sub-folders" else index
        name = f"{folder}{number}.jpg"
        make_photo(photos / name, size, seed=index, orientation=orientation)
        if request.param == "masks" and index:
            masks = tmp_path / "mask files"
            make_photo((masks / name).with_suffix(".png"), size, mode="1", seed=index)
    frames = load_photos(photos, masks)
    one_camera = request.param in ("one camera", "masks")
    return write(tmp_path, make_scene(frames, one_camera=one_camera), frames)


def in_world(outputs: Any) -> tuple[Tensor, Tensor | None]:
    """Undo what a parser did to the world: ``cam_from_world`` ``[I, 3, 4]`` and points."""
    transform, scale = outputs.dataparser_transform.double(), outputs.dataparser_scale
    rotation, shift = transform[:, :3], transform[:, 3]
    poses = outputs.cameras.camera_to_worlds.double()
    world_from_cam = torch.cat(
        [
            rotation.T @ poses[..., :3] * torch.tensor([1.0, -1.0, -1.0]),
            (rotation.T @ (poses[..., 3] / scale - shift).T).T[..., None],
        ],
        dim=-1,
    )
    points = outputs.metadata.get("points3D_xyz")
    if points is not None:
        points = (points.double() / scale - shift) @ rotation
    return invert_rigid(world_from_cam), points


def read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def index_of_images(outputs: Any, written: Written) -> list[int]:
    """Find which image of the scene each file of a parser is, by its content."""
    files = [written.folder.images / image.name for image in written.scene.images]
    return [
        next(i for i, file in enumerate(files) if file.samefile(name))
        for name in outputs.image_filenames
    ]


def test_cameras_are_those_of_the_scene(written: Written, parse: Parse) -> None:
    outputs = parse(written.folder)
    order = index_of_images(outputs, written)
    assert sorted(order) == list(range(len(written.scene.images)))
    poses, _ = in_world(outputs)
    for row, index in enumerate(order):
        image = written.scene.images[index]
        camera = written.scene.camera_of(image)
        torch.testing.assert_close(poses[row], image.cam_from_world, rtol=0, atol=5e-6)
        loaded = outputs.cameras[row]
        assert (int(loaded.width), int(loaded.height)) == (camera.width, camera.height)
        assert read_image(outputs.image_filenames[row]).size == (camera.width, camera.height)
        got = [float(value) for value in (loaded.fx, loaded.fy, loaded.cx, loaded.cy)]
        named = camera.named_params
        assert got == pytest.approx([named[key] for key in ("fx", "fy", "cx", "cy")], rel=1e-6)
        assert not loaded.distortion_params.any()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_smaller_copies_fit_the_cameras(written: Written, parse: Parse, factor: int) -> None:
    order = index_of_images(parse(written.folder), written)
    outputs = parse(written.folder, factor)
    for row, index in enumerate(order):
        image = written.scene.images[index]
        camera = written.scene.camera_of(image)
        loaded = outputs.cameras[row]
        size = (camera.width // factor, camera.height // factor)
        assert (int(loaded.width), int(loaded.height)) == size
        assert float(loaded.fx) == pytest.approx(camera.named_params["fx"] / factor)
        # The same photo, block by block, up to what JPEG loses; another one differs by 60.
        small = np.asarray(read_image(outputs.image_filenames[row])).astype(float)
        full = np.asarray(read_image(written.folder.images / image.name)).astype(float)
        full = full[: size[1] * factor, : size[0] * factor]
        blocks = full.reshape(size[1], factor, size[0], factor, 3).mean((1, 3))
        assert small.shape == blocks.shape
        assert np.abs(small - blocks).mean() < 4


def test_masks_are_found(written: Written, parse: Parse) -> None:
    for factor in (1, 2):
        outputs = parse(written.folder, factor)
        if written.folder.masks is None:
            assert outputs.mask_filenames is None
            continue
        for image, mask in zip(outputs.image_filenames, outputs.mask_filenames, strict=True):
            with Image.open(image) as opened, Image.open(mask) as opened_mask:
                assert opened_mask.size == opened.size
                assert opened_mask.mode == "L"
                assert set(np.unique(np.asarray(opened_mask))) <= {0, 255}
            assert image.stem == mask.stem


def test_seed_points_are_those_of_the_scene(written: Written, parse: Parse) -> None:
    outputs = parse(written.folder)
    _, points = in_world(outputs)
    assert points is not None
    torch.testing.assert_close(points, written.scene.points.xyz, rtol=0, atol=5e-6)
    rgb = outputs.metadata["points3D_rgb"].int()
    # nerfstudio rounds the colours of a PLY file down.
    assert int((rgb - written.scene.points.rgb.int()).abs().max()) <= 1


def test_large_photos_choose_smaller_copies_by_themselves(
    tmp_path: Path,
    make_photo: Any,
    load_photos: Callable[..., Frames],
    make_scene: Any,
    parse: Parse,
) -> None:
    for index in range(2):
        make_photo(tmp_path / f"photos/sub {index}/a.jpg", (1700, 40), seed=index)
    frames = load_photos(tmp_path / "photos")
    outputs = parse(write(tmp_path, make_scene(frames), frames).folder, None)
    assert [int(camera.width) for camera in outputs.cameras] == [850, 850]
    files = [read_image(path) for path in outputs.image_filenames]
    assert [file.size for file in files] == [(850, 20)] * 2
    assert files[0].tobytes() != files[1].tobytes()


def test_transforms_project_known_points(written: Written) -> None:
    """Read the JSON file as its format says, without nerfstudio."""
    content = json.loads(written.folder.transforms.read_text())
    assert "applied_scale" not in content
    saved_from_world = torch.tensor(content["applied_transform"], dtype=torch.float64)
    points = written.scene.points
    for frame in content["frames"]:
        index = frame["colmap_im_id"] - 1
        saved_from_cam = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        in_saved = transform_points(saved_from_world, points.xyz)
        in_opengl = transform_points(invert_rigid(saved_from_cam[:3]), in_saved)
        intrinsics = {key: frame.get(key, content.get(key)) for key in ("fl_x", "fl_y", "cx", "cy")}
        matrix = torch.tensor(
            [
                [intrinsics["fl_x"], 0.0, intrinsics["cx"]],
                [0.0, intrinsics["fl_y"], intrinsics["cy"]],
                [0.0, 0.0, 1.0],
            ],
            dtype=torch.float64,
        )
        pixels, _ = project(in_opengl * torch.tensor([1.0, -1.0, -1.0]), matrix)
        rows = points.obs_image == index
        error = pixels[points.obs_point[rows]] - points.obs_xy[rows]
        assert float(error.abs().max()) < 0.01


def test_same_keys_as_nerfstudio_writes(written: Written, tmp_path: Path) -> None:
    from nerfstudio.process_data.colmap_utils import colmap_to_json

    output = tmp_path / "theirs"
    output.mkdir()
    colmap_to_json(written.folder.colmap, output)
    ours = json.loads(written.folder.transforms.read_text())
    theirs = json.loads((output / "transforms.json").read_text())
    assert set(theirs) <= set(ours)
    assert ours["applied_transform"] == theirs["applied_transform"]
    by_id = {frame["colmap_im_id"]: frame for frame in ours["frames"]}
    for frame in theirs["frames"]:
        mine = by_id[frame["colmap_im_id"]]
        np.testing.assert_allclose(
            mine["transform_matrix"], frame["transform_matrix"], rtol=0, atol=1e-12
        )
        for key in ("fl_x", "fl_y", "cx", "cy", "k1", "p2", "w", "h", "camera_model"):
            assert mine.get(key, ours.get(key)) == frame.get(key, theirs.get(key))


def test_distortion_is_handed_on(
    tmp_path: Path,
    make_photo: Any,
    load_photos: Callable[..., Frames],
    make_scene: Any,
    parse: Parse,
) -> None:
    for index in range(3):
        make_photo(tmp_path / f"photos/{index}.png", seed=index)
    frames = load_photos(tmp_path / "photos")
    scene: Scene = make_scene(frames, model="OPENCV", one_camera=True)
    params = (*scene.cameras[0].params[:4], 0.1, -0.02, 0.003, 0.004)
    camera = dataclasses.replace(scene.cameras[0], params=params)
    outputs = parse(write(tmp_path, dataclasses.replace(scene, cameras=(camera,)), frames).folder)
    want = torch.tensor([0.1, -0.02, 0.0, 0.0, 0.003, 0.004])
    torch.testing.assert_close(outputs.cameras.distortion_params[0], want)


@pytest.fixture
def without_points(
    tmp_path: Path, make_photo: Any, load_photos: Callable[..., Frames], make_scene: Any
) -> Written:
    for index in range(3):
        make_photo(tmp_path / f"photos/{index}.png", seed=index)
    frames = load_photos(tmp_path / "photos")
    scene: Scene = make_scene(frames)
    rows = torch.zeros(0, 3, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    points = Points(
        xyz=rows,
        rgb=rows.to(torch.uint8),
        error=rows[:, 0],
        obs_point=none,
        obs_image=none,
        obs_xy=rows[:, :2],
    )
    return write(tmp_path, dataclasses.replace(scene, points=points), frames)


def test_scene_without_points_loads(without_points: Written, parse: Parse) -> None:
    outputs = parse(without_points.folder, load_points=False)
    assert len(outputs.cameras) == 3


def test_scene_without_points_starts_from_random_ones(
    without_points: Written, parse: Parse, request: pytest.FixtureRequest
) -> None:
    if "colmap" in request.node.name:
        # nerfstudio's own limit, which the log and the documentation name.
        with pytest.raises((RuntimeError, IndexError)):
            parse(without_points.folder)
    else:
        assert "points3D_xyz" not in parse(without_points.folder).metadata


def test_points_without_tracks_load(
    tmp_path: Path,
    make_photo: Any,
    load_photos: Callable[..., Frames],
    make_scene: Any,
    parse: Parse,
) -> None:
    for index in range(3):
        make_photo(tmp_path / f"photos/{index}.png", seed=index)
    frames = load_photos(tmp_path / "photos")
    scene: Scene = make_scene(frames)
    points = dataclasses.replace(
        scene.points,
        obs_point=scene.points.obs_point[:0],
        obs_image=scene.points.obs_image[:0],
        obs_xy=scene.points.obs_xy[:0],
    )
    outputs = parse(write(tmp_path, dataclasses.replace(scene, points=points), frames).folder)
    assert len(outputs.metadata["points3D_xyz"]) == len(points)


def test_point_file_holds_float32_exactly(written: Written, tmp_path: Path) -> None:
    points = dataclasses.replace(written.scene.points, xyz=written.scene.points.xyz * 1e-7)
    scene = dataclasses.replace(written.scene, points=points)
    paths = {image.name: image.name for image in scene.images}
    write_nerfstudio(scene, tmp_path, paths)
    lines = (tmp_path / "sparse_pc.ply").read_text().splitlines()
    rows = np.array([line.split() for line in lines[lines.index("end_header") + 1 :]], np.float64)
    x, y, z = points.xyz.numpy().T
    np.testing.assert_array_equal(
        rows[:, :3].astype(np.float32), np.stack([x, z, -y], 1).astype(np.float32)
    )
    np.testing.assert_array_equal(rows[:, 3:], points.rgb.numpy())
