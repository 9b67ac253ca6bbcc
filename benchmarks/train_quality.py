# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.train_quality``: what refinement is worth to a trained model, in PSNR.

For each set of photos with known cameras: the cameras are disturbed as in case a of
``benchmarks.refine``, and three scene folders are written, with the disturbed cameras, with these
refined, and with the true ones. On each nerfstudio's ``ns-train`` trains a small nerfacto on a CPU
for a few hundred steps, its camera optimiser off, and ``ns-eval`` measures the PSNR on every fourth
photo, which is not trained on. The scenes hold cameras alone, so that no difference comes from
points. Rows are in ``benchmarks/results/train_quality.jsonl``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks import rows, table
from benchmarks.machine import describe
from benchmarks.refine import judge, read_truth
from ns_sparseattn import export, frames
from ns_sparseattn.frames import Frames
from ns_sparseattn.options import ExportOptions, FrameOptions
from ns_sparseattn.refine import RefineOptions, refine_scene
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import NEAR, disturb
from ns_sparseattn.testing.synthetic import no_points
from ns_sparseattn.testing.torch_home import write_torch_home

METHOD = (
    *("nerfacto", "--vis", "tensorboard", "--mixed-precision", "False"),
    *("--machine.device-type", "cpu", "--machine.num-devices", "1"),
    *("--steps-per-eval-image", "0", "--steps-per-eval-batch", "0"),
    *("--steps-per-eval-all-images", "1000000", "--logging.local-writer.max-log-size", "0"),
    *("--pipeline.datamanager.num-processes", "1"),
    *("--pipeline.datamanager.train-num-rays-per-batch", "1024"),
    *("--pipeline.model.implementation", "torch"),
    *("--pipeline.model.eval-num-rays-per-chunk", "1024"),
    *("--pipeline.model.log2-hashmap-size", "15", "--pipeline.model.num-levels", "8"),
    *("--pipeline.model.max-res", "256"),
    *("--pipeline.model.hidden-dim", "32", "--pipeline.model.hidden-dim-color", "32"),
    *("--pipeline.model.num-proposal-samples-per-ray", "48", "24"),
    *("--pipeline.model.num-nerf-samples-per-ray", "16"),
    *("--pipeline.model.proposal-net-args-list.0.log2-hashmap-size", "12"),
    *("--pipeline.model.proposal-net-args-list.1.log2-hashmap-size", "12"),
    *("--pipeline.model.camera-optimizer.mode", "off"),
    *("--pipeline.model.use-appearance-embedding", "False"),
)
"""A nerfacto that a CPU trains in a minute."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Train on unrefined, refined and true cameras."""

    data: Path
    """Folder of the sets; each has images/ and a COLMAP model in gt/."""
    sets: tuple[str, ...] = ("tum_desk",)
    """Folders below `data`."""
    steps: int = 400
    """Steps of training."""
    eval_interval: int = 4
    """Every so many photos, one is not trained on."""
    downscale: int = 2
    """Photos are trained on at this share of their size."""
    seed: int = 0
    """Of the disturbance."""

    def main(self) -> None:
        """Measure all sets; print and keep the rows."""
        for name in self.sets:
            photos = frames.load(self.data / name / "images", FrameOptions())
            truth = read_truth(self.data / name / "gt", photos)
            start, _ = disturb(truth, NEAR, seed=self.seed)
            refined = refine_scene(start, photos, RefineOptions()).scene
            scenes = {"unrefined": start, "refined": refined, "true": truth}
            for kind, scene in scenes.items():
                row = self._row(name, kind, scene, photos, truth)
                print(json.dumps(row), flush=True)
                rows.replace("train_quality", [row], ("set", "cameras", "steps", "seed"))
        table.write_tables()

    def _row(
        self, name: str, kind: str, scene: Scene, photos: Frames, truth: Scene
    ) -> dict[str, object]:
        """Train on one scene, and evaluate."""
        with tempfile.TemporaryDirectory() as folder:
            cameras = replace(scene, points=no_points(), summaries=())
            written = export.write_scene(
                cameras, photos, Path(folder, "scene"), ExportOptions(num_downscales=2), manifest={}
            )
            start = time.perf_counter()
            config = self._train(Path(folder), written.root)
            seconds = time.perf_counter() - start
            results = _evaluate(Path(folder), config)
        return {
            "set": name,
            "cameras": kind,
            "seed": self.seed,
            "steps": self.steps,
            "num_photos": len(photos),
            "num_held_out": len(range(0, len(photos), self.eval_interval)),
            "pose_errors": judge(scene, truth),
            "psnr": round(results["psnr"], 3),
            "ssim": round(results["ssim"], 4),
            "train_s": round(seconds, 1),
            "machine": describe("cpu"),
        }

    def _train(self, folder: Path, scene: Path) -> Path:
        """Run ``ns-train`` and return its config file."""
        _run(
            folder,
            *("ns-train", *METHOD, "--max-num-iterations", str(self.steps)),
            *("--output-dir", str(folder / "outputs"), "--data", str(scene)),
            *("nerfstudio-data", "--downscale-factor", str(self.downscale)),
            *("--eval-mode", "interval", "--eval-interval", str(self.eval_interval)),
        )
        (config,) = (folder / "outputs").rglob("config.yml")
        return config


def _evaluate(folder: Path, config: Path) -> dict[str, float]:
    """Run ``ns-eval`` and return its results."""
    output = folder / "eval.json"
    _run(folder, "ns-eval", "--load-config", str(config), "--output-path", str(output))
    return json.loads(output.read_text(encoding="utf-8"))["results"]


def _run(folder: Path, command: str, *arguments: str) -> None:
    """Run one of nerfstudio's commands; what it says is shown if it fails.

    Raises:
        RuntimeError: If it fails.
    """
    home = folder / "torch"
    if not home.exists():
        write_torch_home(home)
    variables = {
        "TORCH_HOME": str(home),
        # nerfstudio's checkpoints hold more than weights.
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        # On few cores waiting threads cost more than they bring.
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [Path(sys.executable).with_name(command), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **variables},
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    tyro.cli(Bench).main()
