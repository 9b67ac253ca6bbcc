# SPDX-License-Identifier: Apache-2.0
"""The command takes what is known of photos, and its scene holds it, whichever model runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn import cli
from ns_sparseattn.export import read_colmap
from ns_sparseattn.geometry import invert_rigid
from ns_sparseattn.models.registry import MODELS
from ns_sparseattn.testing.synthetic import SyntheticScene, make_room, write_photos

NUM_VIEWS, SIZE = 3, (96, 72)
OPTIONS = ("--weights", "seeded-small", "--device", "cpu", "--long-side", "56")
UNREFINED = ("--refine", "none")


@dataclass(frozen=True)
class Capture:
    """Photos and files of what is known about them."""

    scene: SyntheticScene
    photos: Path
    transforms: Path
    depth: Path


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    folder = tmp_path_factory.mktemp("capture")
    scene = make_room(num_views=NUM_VIEWS, size=SIZE)
    write_photos(scene, folder / "photos")
    names = sorted(path.name for path in (folder / "photos").iterdir())
    (folder / "depth").mkdir()
    frames = []
    for name, view in zip(names, scene.views, strict=True):
        world_from_cam = invert_rigid(view.cam_from_world.double())
        world_from_cam = world_from_cam * torch.tensor([1.0, -1.0, -1.0, 1.0])
        frames.append(
            {
                "file_path": name,
                "transform_matrix": [*world_from_cam.tolist(), [0.0, 0.0, 0.0, 1.0]],
            }
        )
        millimetres = np.full(SIZE[::-1], 3000, dtype=np.uint16)
        Image.fromarray(millimetres).save((folder / "depth" / name).with_suffix(".png"))
    content = {"w": SIZE[0], "h": SIZE[1], "fl_x": 80.0, "fl_y": 81.0, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return Capture(scene, folder / "photos", folder / "transforms.json", folder / "depth")


@pytest.fixture
def run(
    capture: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run ``ns-sparseattn process`` in this process; returns exit code and what it printed."""
    logger = logging.getLogger("ns_sparseattn")
    before = logger.handlers, logger.level, logger.propagate

    def command(model: str, *arguments: str | Path) -> tuple[int, str]:
        paths = ("--data", capture.photos, "--output-dir", tmp_path / "scene", *OPTIONS)
        argv = ["ns-sparseattn", "process", model, *paths, *arguments]
        monkeypatch.setattr(sys, "argv", [str(value) for value in argv])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    monkeypatch.setenv("COLUMNS", "200")
    yield command
    logger.handlers, logger.level, logger.propagate = before


def manifest(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "scene/manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", MODELS)
def test_the_scene_holds_what_is_known(
    run: Callable[..., tuple[int, str]], capture: Capture, tmp_path: Path, model: str
) -> None:
    known = ("--intrinsics", capture.transforms, "--poses", capture.transforms)
    code, printed = run(model, *known, "--metric-poses", "--depth", capture.depth, *UNREFINED)
    assert code == 0, printed
    scene = read_colmap(tmp_path / "scene")
    for image, view in zip(scene.images, capture.scene.views, strict=True):
        assert torch.allclose(image.cam_from_world, view.cam_from_world.double(), atol=1e-4)
    (camera,) = scene.cameras
    assert camera.params == pytest.approx((80.0, 81.0, 48.0, 36.0), abs=1e-3)
    said = manifest(tmp_path)
    assert said["world"]["reason"] == "The world is that of the poses given."
    assert said["scale"] == "metric"
    names = [path.name for path in sorted(capture.photos.iterdir())]
    assert said["reference"] in names if MODELS[model].has_reference else not said["reference"]
    # All depth is 3 m, and views may disagree by two per cent.
    for image in scene.images:
        in_cam = scene.points.xyz @ image.cam_from_world[:, :3].T + image.cam_from_world[:, 3]
        own = scene.points.obs_point[scene.points.obs_image == image.image_id - 1]
        if len(own):
            assert bool(((in_cam[own, 2] - 3).abs() < 0.1).all())


def test_refinement_leaves_what_is_known_to_the_last_digit(
    run: Callable[..., tuple[int, str]], capture: Capture, tmp_path: Path
) -> None:
    content = json.loads(capture.transforms.read_text())
    view = capture.scene.views[0]
    focal = {"fl_x": float(view.intrinsics[0, 0]), "fl_y": float(view.intrinsics[1, 1])}
    (tmp_path / "t.json").write_text(json.dumps({**content, **focal}))
    known = ("--intrinsics", tmp_path / "t.json", "--poses", tmp_path / "t.json")
    code, printed = run("vggt", *known)
    assert code == 0, printed
    scene = read_colmap(tmp_path / "scene")
    said = manifest(tmp_path)["refinement"]
    assert said["is_refined"]
    assert said["is_trusted"]
    for image, view in zip(scene.images, capture.scene.views, strict=True):
        torch.testing.assert_close(
            image.cam_from_world, view.cam_from_world.double(), rtol=0.0, atol=1e-6
        )
    (camera,) = scene.cameras
    assert camera.params[:2] == pytest.approx(tuple(focal.values()), abs=1e-3)
    assert len(scene.points) > 30


@pytest.mark.parametrize("model", ["pi3x", "mapanything"])
def test_the_network_hears_what_it_is_told(
    run: Callable[..., tuple[int, str]], capture: Capture, tmp_path: Path, model: str
) -> None:
    centres = []
    for arguments in ((), ("--depth", capture.depth, "--intrinsics", capture.transforms)):
        code, printed = run(model, *arguments, "--overwrite", "--world", "model", *UNREFINED)
        assert code == 0, printed
        poses = torch.stack([i.cam_from_world for i in read_colmap(tmp_path / "scene").images])
        centres.append(poses[..., :3])
    # Depth and intrinsics of the scene do not turn its cameras: the network did.
    assert not torch.allclose(centres[0], centres[1], atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_masked_halves_make_no_points(
    run: Callable[..., tuple[int, str]], capture: Capture, tmp_path: Path, model: str
) -> None:
    (tmp_path / "masks").mkdir()
    for path in capture.photos.iterdir():
        mask = Image.new("L", SIZE, 255)
        mask.paste(0, (0, 0, 48, 72))
        mask.save(tmp_path / "masks" / f"{path.stem}.png")
    code, printed = run(model, "--masks", tmp_path / "masks", *UNREFINED)
    assert code == 0, printed
    points = read_colmap(tmp_path / "scene").points
    assert len(points) > 0
    assert float(points.obs_xy[:, 0].min()) > 40


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("poses", "are of other photos: they have names such as"),
        ("intrinsics", "are singular: focal lengths must be positive, got 0 and 81."),
        ("depth", "has 48 x 36 pixels, its photo"),
        ("mask", "has 48 x 36 pixels, its photo has 96 x 72"),
        ("reference", "`reference` must be auto, first or the name of a photo such as"),
        ("weights", "does not hold the weights of Pi3X"),
    ],
)
def test_wrong_input_is_one_sentence(
    run: Callable[..., tuple[int, str]],
    capture: Capture,
    tmp_path: Path,
    wrong: str,
    sentence: str,
) -> None:
    content = json.loads(capture.transforms.read_text())
    stem = sorted(capture.photos.iterdir())[0].stem
    if wrong == "poses":
        for index, frame in enumerate(content["frames"]):
            frame["file_path"] = f"other_{index}.png"
        (tmp_path / "t.json").write_text(json.dumps(content))
        arguments = ("--poses", tmp_path / "t.json")
    elif wrong == "intrinsics":
        (tmp_path / "t.json").write_text(json.dumps({**content, "fl_x": 0}))
        arguments = ("--intrinsics", tmp_path / "t.json")
    elif wrong == "depth":
        np.save(tmp_path / f"{stem}.npy", np.ones((36, 48)))
        arguments = ("--depth", tmp_path)
    elif wrong == "mask":
        (tmp_path / "masks").mkdir()
        Image.new("L", (48, 36)).save(tmp_path / f"masks/{stem}.png")
        arguments = ("--masks", tmp_path / "masks")
    elif wrong == "reference":
        arguments = ("--reference", "nobody.jpg")
    else:
        family = MODELS["pi3"].family
        model = family.make_seeded(family.seeded["seeded-small"](), 0)
        torch.save(model.state_dict(), tmp_path / "pi3.pt")
        arguments = ("--weights", tmp_path / "pi3.pt")
    code, printed = run("pi3x", *arguments)
    assert code == 1
    assert sentence in printed
    assert "Traceback" not in printed
    assert printed.count("Error:") == 1
    assert not (tmp_path / "scene").exists()
