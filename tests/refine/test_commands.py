# SPDX-License-Identifier: Apache-2.0
"""Refinement inside the pipeline, and the audit of COLMAP models, as users call them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ns_sparseattn import cli, pipeline
from ns_sparseattn import frames as photo_frames
from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.export import read_colmap, write_colmap
from ns_sparseattn.frames import Frames
from ns_sparseattn.models import WeightsInfo
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import NEAR, USELESS, disturb
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    true_scene,
    write_photos,
)

KNOWN = WeightsInfo(name="exact", source="test", licence="none", commercial=True, verified=True)
SMALL = ("--long-side", "112", "--match-threads", "1")


class NearModel:
    """Stands in for a network that is right about depth and a few degrees off in its cameras."""

    config = SimpleNamespace(patch_size=14)

    def __init__(self, room: SyntheticScene, photos: Frames) -> None:
        self._room, self._photos = room, photos

    def encode(self, images: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return tokens by which no photo is nearer to the others than the rest."""
        del options
        patches = (images.shape[-2] // 14) * (images.shape[-1] // 14)
        return torch.ones(1, len(images), patches, 8)

    def predict(self, images: torch.Tensor, **options: Any) -> Prediction:
        """Return exact depth through disturbed cameras, in the order of the images given."""
        del options
        order = [
            next(i for i, photo in enumerate(self._photos.images) if torch.equal(photo, image))
            for image in images
        ]
        exact = exact_prediction(self._room, self._photos)
        scene, _ = disturb(true_scene(self._room, self._photos), NEAR, seed=0)
        intrinsics = exact.intrinsics.clone()
        intrinsics[:, :2, :2] *= NEAR.focal_factor
        poses = torch.stack([image.cam_from_world for image in scene.images]).float()
        return replace(
            exact,
            cam_from_world=poses[order],
            intrinsics=intrinsics[order],
            depth=exact.depth[order],
            confidence=exact.confidence[order],
        )


@pytest.fixture(scope="module")
def photos(room: SyntheticScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room") / "images"
    write_photos(room, folder, orientations=(1, 6), has_exif_focal=False)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["ns-sparseattn", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def error_deg(scene: Scene, truth: Scene) -> float:
    poses = {image.name: image.cam_from_world for image in scene.images}
    ours = torch.stack([poses[image.name] for image in truth.images])
    theirs = torch.stack([image.cam_from_world for image in truth.images])
    return float(pair_errors(ours, theirs).larger_deg.median())


def test_the_pipeline_refines_writes_and_says_so(
    room: SyntheticScene,
    photos: Path,
    truth: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = photo_frames.load(photos, FrameOptions(long_side=112))
    model = NearModel(room, loaded)
    monkeypatch.setattr(pipeline, "load_model", lambda *args, **kwargs: (model, KNOWN))
    scene = tmp_path / "scene"
    process = ("process", "vggt", "--data", photos, "--output-dir", scene, "--device", "cpu")
    sized = (*SMALL, "--resize", "fit")
    code = run(monkeypatch, *process, *sized, "--keep-database")
    assert code == 0
    written = read_colmap(scene)
    assert error_deg(written, truth) < 0.3
    # Photos turned by EXIF are of the same camera: features are found on upright pixels.
    assert [camera.model for camera in written.cameras] == ["SIMPLE_RADIAL"]
    manifest = json.loads((scene / "manifest.json").read_text(encoding="utf-8"))["refinement"]
    assert manifest["source"] == "prediction"
    assert manifest["is_trusted"]
    assert {image["verdict"] for image in manifest["audit"]} == {"good"}
    transforms = json.loads((scene / "transforms.json").read_text(encoding="utf-8"))
    assert transforms["k1"] == pytest.approx(written.cameras[0].named_params["k1"])
    # The database that was kept serves the audit of the scene; COLMAP can go on from it.
    assert (scene / "colmap/database.db").is_file()
    capsys.readouterr()
    assert run(monkeypatch, "audit", scene, "--json", "-") == 0
    audit = json.loads(capsys.readouterr().out)["audit"]
    assert audit["is_trusted"]
    assert len(audit["images"]) == len(truth.images)


def test_an_untrusted_scene_is_written_and_exits_with_3_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ns_sparseattn.testing.photos import write_hard_case

    two = write_hard_case(tmp_path / "photos", "two_images")
    small = ("--weights", "seeded-small", "--device", "cpu", "--long-side", "56")
    process = ("process", "vggt", "--data", two, *small)
    assert run(monkeypatch, *process, "--output-dir", tmp_path / "a") == 3
    assert "cannot be trusted" in capsys.readouterr().err
    assert (tmp_path / "a" / "colmap/sparse/0/cameras.bin").is_file()
    accepted = (*process, "--output-dir", tmp_path / "b", "--accept-untrusted")
    assert run(monkeypatch, *accepted) == 0
    assert "cannot be trusted" in capsys.readouterr().err
    unasked = (*process, "--output-dir", tmp_path / "c", "--refine", "none")
    assert run(monkeypatch, *unasked) == 0
    assert "cannot be trusted" not in capsys.readouterr().err


def test_audit_judges_any_model_by_its_photos(
    room: SyntheticScene,
    photos: Path,
    truth: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del room
    write_colmap(truth, tmp_path / "good", text=True)
    write_colmap(disturb(truth, USELESS, seed=0)[0], tmp_path / "bad")
    where = ("--images", photos, "--match-threads", "1")
    assert run(monkeypatch, "audit", tmp_path / "good", *where) == 0
    assert "The scene can be trusted: 7 of 7 images are good." in capsys.readouterr().out
    assert run(monkeypatch, "audit", tmp_path / "bad", *where) == 3
    assert "cannot be trusted" in capsys.readouterr().out
    reference = ("--reference", tmp_path / "bad")
    assert run(monkeypatch, "audit", tmp_path / "good", *where, *reference) == 3
    assert "contradicts the prediction" in capsys.readouterr().out


def test_audit_says_what_is_missing(
    truth: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "audit", tmp_path) == 1
    assert "must hold a COLMAP model" in capsys.readouterr().err
    write_colmap(truth, tmp_path / "model")
    assert run(monkeypatch, "audit", tmp_path / "model") == 1
    assert "name it with --images" in capsys.readouterr().err
