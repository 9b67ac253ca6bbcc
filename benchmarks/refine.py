# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.refine``: how far refinement brings disturbed cameras, and what it costs.

For each set of photos with known cameras: the cameras are disturbed in a seeded way (case a: a few
degrees; b: the same and a tenth of the images placed wrongly altogether; c: all of them wrong),
refined, and judged against the truth. pycolmap's exhaustive matching and incremental mapping run on
the same photos in the same process, with as many threads. Each set and case has one row in
``benchmarks/results/refine.jsonl``, that of its last run. Seconds are the clock's; ``cpu_s`` is the
processor time of all threads, which other load on the machine changes less. The tables of
docs/refinement.md are then made anew of all rows.

Sets are folders with ``images/`` and a COLMAP model in ``gt/``, or ``rendered-N``: N views of the
synthetic room, which are run in case a alone.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from benchmarks import rows, table
from benchmarks.machine import describe
from ns_sparseattn import frames
from ns_sparseattn.evaluate.pairs import auc, pair_errors
from ns_sparseattn.export.colmap import import_pycolmap
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.refine import (
    MatchOptions,
    RefineMode,
    RefineOptions,
    contradiction,
    refine_scene,
)
from ns_sparseattn.refine.database import quiet_colmap
from ns_sparseattn.scene.types import Camera, PosedImage, Scene
from ns_sparseattn.testing.disturb import NEAR, SOME_WRONG, USELESS, Disturbance, disturb
from ns_sparseattn.testing.synthetic import make_room, no_points, true_scene

Case = Literal["a", "b", "c"]
CASES: dict[Case, Disturbance] = {"a": NEAR, "b": SOME_WRONG, "c": USELESS}

_ROOM_STEP_DEG = 7.0
"""Largest angle between neighbours of a rendered set; more views share a full circle."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Refine disturbed cameras of known scenes."""

    data: Path | None = None
    """Folder of the sets; not needed for rendered ones."""
    sets: tuple[str, ...] = (
        *("lund_door", "synth_table", "tum_desk", "synth_room"),
        *("rendered-12", "rendered-24", "rendered-48", "rendered-96"),
    )
    """Folders below `data`, or rendered-N."""
    cases: tuple[Case, ...] | None = None
    """Disturbances; None: all, but for sets where only some make sense."""
    seed: int = 0
    """Of the disturbances."""
    mode: RefineMode = "fast"
    """As ``--refine``."""
    threads: int = 2
    """CPU threads, of both."""
    shared: bool = False
    """Other work ran on the machine meanwhile; the rows and the table say so."""

    def main(self) -> None:
        """Run all sets and cases; print and append the rows."""
        for name in self.sets:
            with tempfile.TemporaryDirectory() as folder:
                photos, truth = self._load(name, Path(folder))
                peer, peer_scene = run_pycolmap(photos, truth, self.threads)
                print(f"{name}: pycolmap alone {json.dumps(peer)}", flush=True)
                for case in self.cases or _cases(name):
                    row = self._row(name, case, photos, truth, peer_scene) | {"pycolmap": peer}
                    print(json.dumps({k: v for k, v in row.items() if k != "pycolmap"}), flush=True)
                    rows.replace("refine", [row], ("set", "case", "mode", "seed"))
        table.write_tables()

    def _load(self, name: str, folder: Path) -> tuple[frames.Frames, Scene]:
        """Return the photos of a set and its true cameras."""
        if name.startswith("rendered-"):
            return render_room(int(name.removeprefix("rendered-")), folder)
        if self.data is None:
            raise ValueError(f"`data` must be the folder that holds {name}, got nothing.")
        photos = frames.load(self.data / name / "images", FrameOptions())
        return photos, read_truth(self.data / name / "gt", photos)

    def _row(
        self, name: str, case: Case, photos: frames.Frames, truth: Scene, peer: Scene | None
    ) -> dict[str, object]:
        """Refine one disturbed scene."""
        start_scene, wrong = disturb(truth, CASES[case], seed=self.seed)
        options = RefineOptions(refine=self.mode, match=MatchOptions(match_threads=self.threads))
        start, start_cpu = time.perf_counter(), time.process_time()
        refined = refine_scene(start_scene, photos, options)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        flagged = set(refined.before.names("contradicted", "unmatched"))
        errors = refined.scene.points.error
        return {
            "set": name,
            "case": case,
            "seed": self.seed,
            "mode": self.mode,
            "num_photos": len(photos),
            "before": judge(start_scene, truth),
            "after": judge(refined.scene, truth),
            "source": refined.source,
            "is_trusted": refined.after.is_trusted,
            "wrong_flagged": [len(flagged & set(wrong)), len(wrong)],
            "good_flagged": [len(flagged - set(wrong)), len(photos) - len(wrong)],
            "median_reprojection_px": _round(float(errors.median())) if len(errors) else None,
            "num_points": len(refined.scene.points),
            "num_pairs": refined.num_pairs,
            "num_placed": len(refined.placed),
            "seconds": _round(seconds),
            "cpu_s": _round(cpu_s),
            "parts_s": {part: _round(value) for part, value in refined.times_s.items()},
            "contradicts_pycolmap": None
            if peer is None
            else contradiction(peer, start_scene, options.audit) is not None,
            "shared": self.shared,
            "machine": describe("cpu"),
        }


def _cases(name: str) -> tuple[Case, ...]:
    """Return the disturbances of a set.

    Without a usable prediction tum_desk and synth_room are what pycolmap makes of them, which is
    wrong.
    """
    if name.startswith("rendered-"):
        return ("a",)
    return ("a", "b") if name in ("tum_desk", "synth_room") else ("a", "b", "c")


def judge(scene: Scene, truth: Scene) -> dict[str, float]:
    """Compare the poses of a scene, one per image, with the truth; degrees and per cent."""
    return judge_poses(_poses(scene), _poses(truth), num_missing=0)


def judge_poses(poses: Tensor, truth: Tensor, *, num_missing: int) -> dict[str, float]:
    """Median pair errors and areas; pairs of missing images count as failed in the areas."""
    errors = pair_errors(poses, truth, num_missing_images=num_missing)
    larger = torch.cat([errors.larger_deg, torch.full((errors.num_missing,), 180.0).double()])
    return {
        "rotation_deg": _round(float(errors.rotation_deg.median())),
        "direction_deg": _round(float(errors.direction_deg.nanmedian())),
        "pair_deg": _round(float(larger.nanmedian())),
        "auc_5": _round(100.0 * auc(larger[~larger.isnan()], 5.0)),
        "auc_30": _round(100.0 * auc(larger[~larger.isnan()], 30.0)),
    }


def run_pycolmap(
    photos: frames.Frames, truth: Scene, threads: int
) -> tuple[dict[str, object], Scene | None]:
    """Run pycolmap alone on the photos' files: default features, exhaustive matching, mapping.

    Returns:
        Time and errors, and its model if it placed any two images.
    """
    pycolmap = import_pycolmap()
    with tempfile.TemporaryDirectory() as scratch, quiet_colmap():
        database, root = Path(scratch) / "database.db", photos.frames[0].path.parent
        extraction = pycolmap.FeatureExtractionOptions()
        matching = pycolmap.FeatureMatchingOptions()
        mapping = pycolmap.IncrementalPipelineOptions()
        for options in (extraction, matching, mapping):
            options.num_threads = threads
        mapping.random_seed = 0
        mapping.extract_colors = False
        times: dict[str, float] = {}
        start_cpu = time.process_time()

        def timed(part: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments, **named)
            times[part] = _round(time.perf_counter() - start)
            return result

        device = pycolmap.Device.cpu
        timed(
            "features",
            pycolmap.extract_features,
            str(database),
            str(root),
            camera_mode=pycolmap.CameraMode.SINGLE,
            extraction_options=extraction,
            device=device,
        )
        timed(
            "pairs",
            pycolmap.match_exhaustive,
            str(database),
            matching_options=matching,
            device=device,
        )
        models = timed(
            "mapper", pycolmap.incremental_mapping, str(database), str(root), scratch, mapping
        )
        seconds = _round(sum(times.values()))
        cpu_s = _round(time.process_time() - start_cpu)
        facts = {"seconds": seconds, "cpu_s": cpu_s, "parts_s": times, "num_photos": len(photos)}
        if not models:
            return {**facts, "registered": 0}, None
        best = max(models.values(), key=lambda model: model.num_reg_images())
        return _judge_pycolmap(best, photos, truth, facts)


def _judge_pycolmap(
    model: Any, photos: frames.Frames, truth: Scene, facts: dict[str, Any]
) -> tuple[dict[str, object], Scene | None]:
    """Compare the images that pycolmap placed with the truth."""
    by_name = {
        model.image(image_id).name: model.image(image_id) for image_id in model.reg_image_ids()
    }
    placed = [i for i, frame in enumerate(photos.frames) if frame.path.name in by_name]
    poses = torch.stack(
        [
            torch.from_numpy(by_name[photos.frames[i].path.name].cam_from_world().matrix())
            for i in placed
        ]
    )
    figures = judge_poses(poses, _poses(truth)[placed], num_missing=len(photos) - len(placed))
    facts = {**facts, "registered": len(placed), **figures}
    images = tuple(
        replace(truth.images[i], cam_from_world=pose) for i, pose in zip(placed, poses, strict=True)
    )
    return facts, replace(truth, images=images) if len(placed) > 1 else None


def render_room(num_views: int, folder: Path) -> tuple[frames.Frames, Scene]:
    """Render views of the synthetic room to files."""
    room = make_room(num_views=num_views, step_deg=min(_ROOM_STEP_DEG, 360.0 / num_views))
    for view in room.views:
        pixels = room.photo(view).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / view.name, quality=95)
    photos = frames.load(folder, FrameOptions())
    return photos, true_scene(room, photos)


def read_truth(folder: Path, photos: frames.Frames) -> Scene:
    """Read true poses and pinhole parameters, images in the order of the photos."""
    model = import_pycolmap().Reconstruction(str(folder))
    by_name = {image.name: image for image in model.images.values()}
    cameras = tuple(
        Camera(
            camera_id=camera.camera_id,
            model="PINHOLE",
            width=camera.width,
            height=camera.height,
            params=(
                camera.focal_length_x,
                camera.focal_length_y,
                camera.principal_point_x,
                camera.principal_point_y,
            ),
        )
        for camera in model.cameras.values()
    )
    images = tuple(
        PosedImage(
            image_id=index + 1,
            name=name,
            camera_id=by_name[name].camera_id,
            cam_from_world=torch.from_numpy(np.array(by_name[name].cam_from_world().matrix())),
        )
        for index, name in enumerate(photos.names)
    )
    return Scene(cameras=cameras, images=images, points=no_points())


def _poses(scene: Scene) -> Tensor:
    return torch.stack([image.cam_from_world for image in scene.images]).double()


def _round(value: float) -> float:
    return round(value, 3) if math.isfinite(value) else value


if __name__ == "__main__":
    tyro.cli(Bench).main()
