# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.process``: seconds and memory of the whole command, stage by stage.

The command runs in a process of its own, as a user would run it; times and peaks come from its
manifest, the total from the clock around it. Each run appends one row to
``benchmarks/results/process.jsonl``. With untrained weights the network does the same arithmetic as
with published ones; only what follows from plausible geometry (number of points) differs. Peak
memory does not depend on what else the machine does; times do, and ``--shared`` says so in the row.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.machine import describe
from benchmarks.rows import append
from ns_sparseattn.console import EXIT_UNTRUSTED
from ns_sparseattn.models.registry import ModelName
from ns_sparseattn.testing.synthetic import make_room, write_photos


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time one run of the command on a folder of photos."""

    data: Path | None = None
    """Folder of photos; by default sample views are rendered."""
    rendered: int = 8
    """Sample views of the demo's room to render, without `data`."""
    name: str = "rendered"
    """What the row calls the photos."""
    model: ModelName = "vggt"
    """Model that looks at the photos."""
    weights: str = "seeded"
    """Weights, as the command takes them; seeded is the full-size network."""
    device: str = "cpu"
    """Device, as the command takes it."""
    arguments: str = ""
    """Further arguments of the command: ``--arguments="--attention paper-s50"``."""
    shared: bool = False
    """Other work ran on the machine meanwhile, so that times are upper bounds."""
    save: bool = True
    """Append the row to benchmarks/results."""

    def main(self) -> None:
        """Run, print the row, append it."""
        with tempfile.TemporaryDirectory() as folder:
            scene = Path(folder) / "scene"
            data = self.data
            if data is None:
                data = Path(folder) / "photos"
                write_photos(make_room(num_views=self.rendered), data)
            command = [sys.executable, "-m", "ns_sparseattn", "process", self.model]
            command += ["--data", str(data), "--output-dir", str(scene)]
            command += ["--weights", self.weights, "--device", self.device]
            command += shlex.split(self.arguments)
            start = time.perf_counter()
            code = subprocess.run(command, check=False).returncode
            total_s = time.perf_counter() - start
            # Matches do not confirm what untrained weights make, but the scene is there.
            if code not in (0, EXIT_UNTRUSTED):
                raise SystemExit(code)
            manifest = json.loads((scene / "manifest.json").read_text(encoding="utf-8"))
        layers = manifest["attention"]
        row = {
            "model": self.model,
            "photos": self.name,
            "num_photos": len(manifest["photos"]),
            "photo_size": [manifest["photos"][0]["width"], manifest["photos"][0]["height"]],
            "weights": self.weights,
            "arguments": self.arguments,
            "shared": self.shared,
            "total_s": round(total_s, 1),
            "stages_s": {s["name"]: round(s["time_ms"] / 1e3, 2) for s in manifest["stages"]},
            "peak_memory_gib": round(manifest["peak_memory_gib"], 2),
            "global_attention_s": round(sum(layer["time_ms"] for layer in layers) / 1e3, 2),
            "mean_density": round(sum(layer["density"] for layer in layers) / len(layers), 4),
            "num_points": manifest["num_points"],
            "machine": describe(self.device),
        }
        print(json.dumps(row, indent=2))
        if self.save:
            append("process", [row])


if __name__ == "__main__":
    tyro.cli(Bench).main()
