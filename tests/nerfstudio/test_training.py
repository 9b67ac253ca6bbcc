# SPDX-License-Identifier: Apache-2.0
"""``ns-train`` and ``ns-eval`` run on a scene folder, and on photos through the dataparser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ns_sparseattn.export import is_scene_folder
from ns_sparseattn.nerfstudio.scene_cache import CACHE_FOLDER
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.pipeline import ProcessOptions, WeightsOptions, process
from ns_sparseattn.testing.torch_home import write_torch_home

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]

METHOD = (
    # The one that starts fastest and needs no GPU.
    "vanilla-nerf",
    *("--machine.device-type", "cpu"),
    *("--machine.num-devices", "1"),
    *("--mixed-precision", "False"),
    *("--vis", "tensorboard"),
    *("--max-num-iterations", "3"),
    *("--steps-per-eval-image", "0"),
    *("--steps-per-eval-batch", "0"),
    *("--logging.local-writer.max-log-size", "0"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "16"),
    *("--pipeline.model.num-coarse-samples", "4"),
    *("--pipeline.model.num-importance-samples", "4"),
)


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of torch.hub with an AlexNet."""
    return write_torch_home(tmp_path_factory.mktemp("torch") / "home")


def train(run: Run, torch_home: Path, folder: Path, data: Path, *parser: str) -> Path:
    """Train for three steps and return the config file of the model."""
    result = run(
        "ns-train",
        *(*METHOD, "--output-dir", folder / "outputs", "--data", data, *parser),
        cwd=folder,
        TORCH_HOME=str(torch_home),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (config,) = (folder / "outputs").rglob("config.yml")
    assert list(config.parent.rglob("*.ckpt"))
    return config


def test_scene_folder_trains(run: Run, torch_home: Path, photos: Path, tmp_path: Path) -> None:
    process(
        ProcessOptions(
            data=photos,
            output_dir=tmp_path / "scene",
            weights=WeightsOptions(weights="seeded-small"),
            frames=FrameOptions(long_side=112),
        )
    )
    train(
        run, torch_home, tmp_path, tmp_path / "scene", "nerfstudio-data", "--eval-mode", "interval"
    )


def test_photos_train_and_evaluate_through_the_dataparser(
    run: Run, torch_home: Path, photos: Path, tmp_path: Path
) -> None:
    parser = ("sparse-vggt-data", "--weights", "seeded-small", "--long-side", "112")
    parser += ("--accept-untrusted", "True")
    config = train(run, torch_home, tmp_path, photos, *parser)
    (scene,) = (path for path in (photos / CACHE_FOLDER).iterdir() if path.is_dir())
    assert is_scene_folder(scene)
    made = scene.stat().st_ino

    result = run(
        *("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json"),
        cwd=tmp_path,
        TORCH_HOME=str(torch_home),
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 0
    # The scene is the one that the model was trained on.
    assert "All DONE" not in result.stdout
    assert scene.stat().st_ino == made
