# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.photos --data DIR``: poses of the shipped network on real photos.

Each set, of photos with known cameras, runs through the whole pipeline twice: as it is predicted,
and refined. Both are judged by the set's reference, as ``ns-sparseattn evaluate`` does. A set is a
folder with ``images/`` and a COLMAP model in ``gt/``. One row a set goes to
``benchmarks/results/photos.jsonl``, in place of an older one.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.accuracy import LIMITS_DEG
from benchmarks.machine import describe
from benchmarks.rows import replace as replace_rows
from ns_sparseattn.evaluate import evaluate, read_poses
from ns_sparseattn.export import read_manifest
from ns_sparseattn.pipeline import ProcessOptions, WeightsOptions, process
from ns_sparseattn.refine import RefineOptions


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Judge prediction and refined scene on sets of photos."""

    data: Path
    """Folder of the sets."""
    sets: tuple[str, ...] = ("synth_table", "synth_room", "tum_desk", "lund_door")
    """Folders below `data`."""
    weights: str = "tiny"
    """Weights, as ``--weights`` of the command takes them."""
    scenes: Path | None = None
    """Folder to keep the scenes in."""
    save: bool = True
    """Whether rows and tables are written."""

    def main(self) -> None:
        """Run all sets; print the rows, and write them with the table of docs/accuracy.md."""
        rows = []
        for name in self.sets:
            with tempfile.TemporaryDirectory() as scratch:
                rows.append(self._row(name, self.scenes or Path(scratch)))
            print(json.dumps(rows[-1]), flush=True)
        if self.save:
            replace_rows("photos", rows, ("set",))
            from benchmarks import table

            table.write_tables()

    def _row(self, name: str, folder: Path) -> dict[str, Any]:
        options = ProcessOptions(
            data=self.data / name / "images",
            output_dir=folder / name,
            weights=WeightsOptions(weights=self.weights, device="cpu"),
            refine=RefineOptions(refine="none"),
        )
        start = time.perf_counter()
        raw = process(replace(options, output_dir=folder / f"{name}-predicted"))
        prediction_s = time.perf_counter() - start
        start = time.perf_counter()
        refined = process(replace(options, refine=RefineOptions(accept_untrusted=True)))
        total_s = time.perf_counter() - start
        reference = self.data / name / "gt"
        refinement = (read_manifest(refined.folder.root) or {})["refinement"]
        return {
            "set": name,
            "photos": len(refined.scene.images),
            "weights": {"name": raw.weights.name, "sha256": raw.weights.sha256},
            "prediction": _figures(raw.folder.root, reference),
            "scene": _figures(refined.folder.root, reference),
            "source": refinement["source"],
            "is_trusted": refined.is_trusted,
            "points": len(refined.scene.points),
            "prediction_s": round(prediction_s, 1),
            "total_s": round(total_s, 1),
            "machine": describe("cpu"),
        }


def _figures(scene: Path, reference: Path) -> dict[str, Any]:
    """Judge a scene by a reference."""
    pairs = evaluate(read_poses(scene), read_poses(reference)).pairs
    figures: dict[str, Any] = {}
    for kind in ("rotation", "direction"):
        curve = getattr(pairs, kind)
        figures[f"{kind}_auc"] = {str(limit): round(curve.auc[limit], 4) for limit in LIMITS_DEG}
        figures[f"{kind}_median_deg"] = round(curve.median_deg, 3)
    return figures


if __name__ == "__main__":
    tyro.cli(Bench).main()
