# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.generator``: views a second that the generator of training scenes makes.

Each run appends one row to ``benchmarks/results/generator.jsonl``: views with photo, depth and
cameras, textures made beforehand, without the first batch. The 20th, 50th and 80th percentiles are
over batches. The seconds of the processor beside those of the clock tell how loaded it was.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.machine import describe
from training.config import CONFIGS
from training.generator import Generator

RESULTS = Path(__file__).with_name("results") / "generator.jsonl"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the generator of a training run."""

    config: str = "cpu"
    """Run of `training.config` whose scenes are made."""
    device: str = "cpu"
    """Where."""
    threads: int = 1
    """Threads on a CPU; each renders views of its own."""
    batches: int = 8
    """Batches that are timed."""
    scenes: int = 8
    """Scenes of a batch."""

    def main(self) -> None:
        """Run, print the row, append it.

        Raises:
            ValueError: If there is no such run.
        """
        if self.config not in CONFIGS:
            raise ValueError(f"`config` must be one of {sorted(CONFIGS)}, got {self.config!r}.")
        torch.set_num_threads(self.threads)
        config = CONFIGS[self.config]
        size = config.pool.sizes[0]
        options = dataclasses.replace(config.generator.options, workers=self.threads)
        generator = Generator(
            dataclasses.replace(config.generator, options=options), seed=0, device=self.device
        )
        wall_s, cpu_s = [], []
        for batch in range(self.batches + 1):
            indices = torch.arange(batch * self.scenes, (batch + 1) * self.scenes)
            self._wait()
            wall, cpu = time.perf_counter(), time.process_time()
            generator.views(indices, size)
            self._wait()
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(time.process_time() - cpu)
        views = self.scenes * config.generator.num_views
        row = {
            "config": self.config,
            "size": [size[1], size[0]],
            "views_a_batch": views,
            **{
                f"views_per_s_p{percent}": round(
                    float(torch.tensor(wall_s[1:]).reciprocal().quantile(percent / 100)) * views, 1
                )
                for percent in (20, 50, 80)
            },
            "views_per_cpu_s": round(self.batches * views / sum(cpu_s[1:]), 1),
            "machine": describe(self.device),
        }
        print(json.dumps(row, indent=2))
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


if __name__ == "__main__":
    tyro.cli(Bench).main()
