# SPDX-License-Identifier: Apache-2.0
"""The twin without lens distortion: photos, masks, observations and cameras go together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from ns_sparseattn.cli import Undistort
from ns_sparseattn.errors import BrokenPhotoError, ReconstructionError
from ns_sparseattn.export import (
    SceneFolder,
    is_scene_folder,
    photos,
    read_colmap,
    read_manifest,
    write_scene,
    write_undistorted,
)
from ns_sparseattn.export.undistort import straighten
from ns_sparseattn.frames import Frames, load
from ns_sparseattn.options import ExportOptions, FrameOptions
from ns_sparseattn.scene.types import Camera, CameraModel, Scene

SIZE = (160, 120)
DISTORTIONS: dict[CameraModel, tuple[float, ...]] = {
    "SIMPLE_RADIAL": (140.0, 81.0, 59.0, -0.12),
    "OPENCV": (140.0, 144.0, 81.0, 59.0, 0.08, -0.05, 0.004, -0.003),
}
FEW = ExportOptions(num_downscales=1)


def pattern(seen: np.ndarray) -> np.ndarray:
    """Colours ``[..., 3]`` of directions ``[..., 2]``: smooth, and different everywhere."""
    x, y = seen[..., 0], seen[..., 1]
    waves = [np.sin(5 * x + 1), np.cos(4 * y), np.sin(3 * (x + y))]
    return np.stack([127.5 + 120 * wave for wave in waves], axis=-1)


def directions(camera: Camera) -> np.ndarray:
    """What each pixel of a camera sees, ``[H, W, 2]``."""
    model = pycolmap.Camera(
        model=camera.model, width=camera.width, height=camera.height, params=list(camera.params)
    )
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    seen = np.asarray(model.cam_from_img(np.stack([x, y], axis=-1).reshape(-1, 2)))
    return seen.reshape(camera.height, camera.width, 2)


def make_camera(model: CameraModel) -> Camera:
    return Camera(
        camera_id=1, model=model, width=SIZE[0], height=SIZE[1], params=DISTORTIONS[model]
    )


@dataclasses.dataclass(frozen=True)
class Bent:
    """Photos of one camera with distortion, and a scene of them."""

    frames: Frames
    scene: Scene
    root: Path

    def write(self, **options: Any) -> SceneFolder:
        return write_scene(
            self.scene,
            self.frames,
            self.root / "scene",
            ExportOptions(num_downscales=1, **options),
            manifest={"model": "test"},
            config={"seed": 1},
        )


@pytest.fixture(params=DISTORTIONS)
def bent(request: pytest.FixtureRequest, tmp_path: Path, make_scene: Callable[..., Scene]) -> Bent:
    camera = make_camera(request.param)
    pixels = np.round(pattern(directions(camera))).astype(np.uint8)
    (tmp_path / "photos/left").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "photos/a.png")
    Image.fromarray(pixels).save(tmp_path / "photos/left/b.png")
    mask = np.full((SIZE[1], SIZE[0]), 255, dtype=np.uint8)
    mask[:, :60] = 0
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    frames = load(tmp_path / "photos", FrameOptions(long_side=56, masks=tmp_path / "masks"))
    scene = make_scene(frames, model="PINHOLE", one_camera=True)
    return Bent(frames, dataclasses.replace(scene, cameras=(camera,)), tmp_path)


def check_twin(root: Path, bent: Bent) -> None:
    """Everything in the twin is what its PINHOLE camera sees."""
    twin = read_colmap(root)
    (camera,) = twin.cameras
    assert camera.model == "PINHOLE"
    for name in ("a.png", "left/b.png", "left__b.png"):
        pixels = np.asarray(Image.open(root / "images" / name)).astype(float)
        assert pixels.shape == (camera.height, camera.width, 3)
        # Rounding twice, and interpolation of a smooth pattern.
        assert np.abs(pixels - pattern(directions(camera))).max() < 2.5
    with Image.open(root / "images_2/a.png") as smaller:
        assert smaller.size == (camera.width // 2, camera.height // 2)
    transforms = json.loads((root / "transforms.json").read_text())
    assert (transforms["k1"], transforms["p1"]) == (0.0, 0.0)
    assert (transforms["w"], transforms["h"]) == (camera.width, camera.height)
    for image, original in zip(twin.images, bent.scene.images, strict=True):
        torch.testing.assert_close(image.cam_from_world, original.cam_from_world)
    torch.testing.assert_close(twin.points.xyz, bent.scene.points.xyz)


def test_process_writes_a_twin_beside(bent: Bent) -> None:
    written = bent.write(undistort=True)
    twin = written.root / "undistorted"
    assert written.undistorted == twin
    check_twin(twin, bent)
    assert is_scene_folder(twin)
    # The scene itself is what it is without the option.
    assert read_colmap(written.root).cameras == bent.scene.cameras
    original = (bent.frames.frames[0].path).read_bytes()
    assert (written.images / "a.png").read_bytes() == original
    manifest = read_manifest(written.root)
    assert manifest is not None
    assert "undistorted" in manifest["contents"]
    # A folder that this tool wrote may be replaced.
    bent.write(undistort=True, overwrite=True)


def test_a_written_scene_gets_a_twin(bent: Bent) -> None:
    written = bent.write()
    before = sorted(path.relative_to(written.root) for path in written.root.rglob("*"))
    twin = write_undistorted(written.root, bent.root / "twin", FEW)
    check_twin(twin.root, bent)
    assert sorted(path.relative_to(written.root) for path in written.root.rglob("*")) == before
    manifest = read_manifest(twin.root)
    assert manifest is not None
    assert manifest["model"] == "test"
    assert manifest["undistorted_from"] == str(written.root)
    assert {photo["how"] for photo in manifest["photos"]} == {"undistorted copy"}
    assert json.loads((twin.root / "config.json").read_text()) == {"seed": 1}


def test_both_ways_give_the_same_files(bent: Bent) -> None:
    beside = bent.write(undistort=True).undistorted
    assert beside is not None
    other = write_undistorted(beside.parent, bent.root / "twin", FEW).root
    names = sorted(path.relative_to(beside) for path in beside.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    pictures = [name for name in names if name.suffix == ".png"]
    assert len(pictures) == 12
    for name in pictures:
        assert (beside / name).read_bytes() == (other / name).read_bytes(), name
    # Reading a pose back rounds it once more, in the last bits of its quaternion.
    for image, same in zip(read_colmap(beside).images, read_colmap(other).images, strict=True):
        torch.testing.assert_close(image.cam_from_world, same.cam_from_world, rtol=0, atol=1e-12)


def test_masks_are_bent_with_their_photos(bent: Bent) -> None:
    twin = bent.write(undistort=True).undistorted
    assert twin is not None
    (camera,) = read_colmap(twin).cameras
    mask = np.asarray(Image.open(twin / "masks/a.png"))
    assert set(np.unique(mask)) == {0, 255}
    # Where the straight pixel lies in the bent photo decides, but for the border's own pixels.
    model = pycolmap.Camera(
        model=bent.scene.cameras[0].model,
        width=SIZE[0],
        height=SIZE[1],
        params=list(bent.scene.cameras[0].params),
    )
    rays = directions(camera).reshape(-1, 2)
    source = np.asarray(model.img_from_cam(np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0)))
    x = source[:, 0].reshape(mask.shape)
    assert (mask[x < 59] == 0).all()
    assert (mask[x > 62] == 255).all()
    assert (np.asarray(Image.open(twin / "masks/left/b.png")) == 255).all()


def test_observations_move_with_the_pixels(bent: Bent) -> None:
    straight, undistortions = straighten(bent.scene)
    model = pycolmap.Camera(
        model=bent.scene.cameras[0].model,
        width=SIZE[0],
        height=SIZE[1],
        params=list(bent.scene.cameras[0].params),
    )
    assert set(undistortions) == {1}
    fx, fy, cx, cy = straight.cameras[0].params
    rays = (straight.points.obs_xy.numpy() - [cx, cy]) / [fx, fy]
    back = np.asarray(model.img_from_cam(np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0)))
    np.testing.assert_allclose(back, bent.scene.points.obs_xy.numpy(), atol=1e-6)


def test_a_scene_without_distortion_keeps_its_photos(
    tmp_path: Path, make_photo: Any, load_photos: Any, make_scene: Any, caplog: Any
) -> None:
    make_photo(tmp_path / "photos/a.jpg")
    frames = load_photos(tmp_path / "photos")
    scene = make_scene(frames, model="OPENCV")
    written = write_scene(scene, frames, tmp_path / "scene", FEW, manifest={})
    twin = write_undistorted(written.root, tmp_path / "twin", FEW)
    (camera,) = read_colmap(twin.root).cameras
    assert camera.model == "PINHOLE"
    torch.testing.assert_close(camera.intrinsics, scene.cameras[0].intrinsics)
    assert (twin.images / "a.jpg").read_bytes() == (tmp_path / "photos/a.jpg").read_bytes()
    assert "has lens distortion" in caplog.text


def test_evaluation_photos_stay_so(
    tmp_path: Path, make_photo: Any, make_scene: Callable[..., Scene]
) -> None:
    make_photo(tmp_path / "train/a.jpg", seed=1)
    make_photo(tmp_path / "eval/b.jpg", seed=2)
    frames = load(tmp_path / "train", FrameOptions(long_side=56), eval_data=tmp_path / "eval")
    written = write_scene(make_scene(frames), frames, tmp_path / "scene", FEW, manifest={})
    twin = write_undistorted(written.root, tmp_path / "twin", FEW)
    for name in ("test_list.txt", "train_list.txt"):
        assert (twin.root / name).read_bytes() == (written.root / name).read_bytes()
    for folder in (written, twin):
        transforms = json.loads(folder.transforms.read_text())
        assert transforms["train_filenames"] == ["images/train__a.jpg"]
        assert transforms["test_filenames"] == ["images/eval__b.jpg"]


def test_a_folder_that_is_no_scene_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`scene_dir` must be a scene folder of this tool"):
        write_undistorted(tmp_path, tmp_path / "twin", FEW)
    assert not (tmp_path / "twin").exists()


def test_a_twin_inside_its_scene_is_refused(bent: Bent) -> None:
    root = bent.write().root
    with pytest.raises(ValueError, match="must not lie in"):
        write_undistorted(root, root / "twin", FEW)


def test_a_photo_that_was_replaced_is_named_and_nothing_is_left(bent: Bent) -> None:
    root = bent.write().root
    (root / "images/a.png").unlink()
    Image.new("RGB", (30, 20)).save(root / "images/a.png")
    with pytest.raises(BrokenPhotoError, match="from 160 x 120 to 30 x 20 pixels"):
        write_undistorted(root, bent.root / "twin", FEW)
    assert not (bent.root / "twin").exists()
    assert not [path for path in bent.root.iterdir() if path.name.startswith(".")]


def test_a_model_that_was_replaced_is_named(bent: Bent, make_photo: Any) -> None:
    root = bent.write().root
    model = pycolmap.Reconstruction(str(root / "colmap/sparse/0"))
    model.image(1).name = "other.png"
    shutil.rmtree(root / "colmap/sparse/0")
    (root / "colmap/sparse/0").mkdir()
    model.write_binary(str(root / "colmap/sparse/0"))
    with pytest.raises(ReconstructionError, match=r"does not list other\.png"):
        write_undistorted(root, bent.root / "twin", FEW)


def test_an_interrupted_twin_leaves_the_scene_out_as_well(
    bent: Bent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "encode_upright", fail)
    with pytest.raises(KeyboardInterrupt):
        bent.write(undistort=True)
    assert sorted(path.name for path in bent.root.iterdir()) == ["masks", "photos"]


def test_a_lens_that_cannot_be_undone_is_named(bent: Bent) -> None:
    folding = Camera(
        camera_id=1, model="SIMPLE_RADIAL", width=160, height=120, params=(20.0, 80.0, 60.0, -9.0)
    )
    scene = dataclasses.replace(bent.scene, cameras=(folding,))
    with pytest.raises(ReconstructionError, match="camera 1|Camera 1"):
        straighten(scene)


def test_the_command_says_where_the_twin_is_or_what_is_wrong(
    bent: Bent, capsys: pytest.CaptureFixture[str]
) -> None:
    root, twin = bent.write().root, bent.root / "twin"
    Undistort(scene=root, output_dir=twin, num_downscales=1).main()
    assert f"Scene: {twin}" in capsys.readouterr().out
    check_twin(twin, bent)
    with pytest.raises(SystemExit) as caught:
        Undistort(scene=root, output_dir=twin).main()
    assert caught.value.code == 1
    assert "already holds a scene" in capsys.readouterr().err
