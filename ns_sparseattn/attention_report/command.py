# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn attention-report``: run a model on photos and draw its attention."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import tyro
from rich.console import Console

from .. import __version__, frames
from ..attention import (
    AttentionPlan,
    BlockMap,
    DensePolicy,
    FramePolicy,
    KeptMass,
    record_kept_mass,
)
from ..attention.patterns import BlockPattern
from ..console import set_up_logging, stage_progress, user_errors
from ..frames.discover import find_photos
from ..models.compute import InferenceOptions
from ..models.loading import load_model
from ..models.registry import ModelName, find_model
from ..options import FrameOptions, check_range
from ..pipeline import UNVERIFIED_NOTE, AttentionOptions, WeightsOptions
from ..stages import Progress, StageRecorder
from .folder import check_report_folder, write_report
from .report import Report, make_report

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """Run a model on photos and report what its global attention keeps, by layer and head."""

    model: tyro.conf.Positional[ModelName] = "vggt"
    """The model that looks at the photos."""
    data: Path
    """Folder of photos (sub-folders included), or one photo."""
    output_dir: Path
    """Folder to write attention-report.json and its pictures to; must not exist yet, or be empty,
    unless `overwrite` is set."""
    max_frames: int | None = None
    """Photos to use at most, spread evenly over the folder; all by default."""
    long_side: int | None = FrameOptions.long_side
    """Longest side of the network's input, pixels. None: what the weights were trained at."""
    skip_broken: bool = False
    """Leave out files that cannot be read instead of stopping."""
    weights: WeightsOptions = field(default_factory=WeightsOptions)
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    num_queries: int = 256
    """Queries sampled in each head to compare with dense attention."""
    seed: int = 0
    """Which queries are sampled."""
    map_layer: int | None = None
    """Global layer whose block maps are drawn, from 0; by default that in the middle of those that
    have maps."""
    overwrite: bool = False
    """Replace an existing report."""
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def __post_init__(self) -> None:
        if self.max_frames is not None:
            check_range("max_frames", self.max_frames, 1, 1_000_000)
        check_range("num_queries", self.num_queries, 1, 1_000_000)
        if self.map_layer is not None:
            check_range("map_layer", self.map_layer, 0, 1_000)
        # Checks its own fields.
        FrameOptions(long_side=self.long_side)

    def main(self) -> None:
        """Write the report and print a summary."""
        with user_errors(verbose=self.verbose):
            set_up_logging(verbose=self.verbose)
            with stage_progress() as progress:
                report, files = self.run(progress)
        _print_summary(report, self.output_dir, files)

    def run(self, progress: Progress | None = None) -> tuple[Report, tuple[str, ...]]:
        """Write the report.

        Args:
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            The report, and the names of the files in its folder.

        Raises:
            ValueError: If an option, a photo or the weights are unusable; the message says which
                and what to do.
            ReconstructionError: If the photos do not fit in memory.
            OSError: If the folder cannot be written.
        """
        target = check_report_folder(self.output_dir, self.data, overwrite=self.overwrite)
        device = self.weights.resolve_device()
        entry = find_model(self.model)
        recorder = StageRecorder(device, progress)
        with recorder.stage("load photos") as done:
            found = [photo.path for photo in find_photos(self.data).photos]
            chosen = found if self.max_frames is None else _spread(found, self.max_frames)
            photos = frames.load(
                chosen,
                entry.sized(
                    FrameOptions(long_side=self.long_side, skip_broken=self.skip_broken),
                    self.weights.weights,
                ),
                progress=done,
            )
        with recorder.stage("load weights", 1) as done:
            model, weights = load_model(
                entry.family,
                self.weights.weights,
                commercial=self.weights.commercial,
                device=device,
            )
            done(1)
        num_layers = model.config.num_global_layers
        plan = self.attention.plan(self.model, self.weights.weights).fitted_to(num_layers)
        map_layer = self._choose_map_layer(plan, num_layers)
        with record_kept_mass(
            num_queries=self.num_queries,
            seed=self.seed,
            patterns_of=() if map_layer is None else (map_layer,),
        ) as masses:
            prediction = model.predict(
                photos.images,
                plan=plan,
                options=self.inference,
                progress=progress,
            )
        report = make_report(prediction.attention, masses)
        width, height = photos.network_size
        facts = {
            "version": __version__,
            "model": self.model,
            "weights": weights,
            "notes": [] if weights.verified else [UNVERIFIED_NOTE],
            "photos": list(photos.names),
            "num_photos_found": len(found),
            "network_size": {"width": width, "height": height},
            "attention": self.attention,
            "inference": self.inference,
            "num_queries": self.num_queries,
            "seed": self.seed,
            "machine": _machine(device),
        }
        with recorder.stage("write report"):
            files = write_report(
                report,
                target,
                facts=facts,
                map_of=_map_of(map_layer, masses),
                overwrite=self.overwrite,
            )
        return report, files

    def _choose_map_layer(self, plan: AttentionPlan, num_layers: int) -> int | None:
        """Return the layer whose block maps to draw; none if no layer can have any."""
        with_maps = [
            layer
            for layer in range(num_layers)
            if not isinstance(plan.policy(layer), DensePolicy | FramePolicy)
        ]
        if self.map_layer is None:
            return with_maps[len(with_maps) // 2] if with_maps else None
        if self.map_layer not in with_maps:
            raise ValueError(
                f"`map_layer` must be a block-sparse layer of this plan, one of {with_maps}, "
                f"got {self.map_layer}."
            )
        return self.map_layer


def _map_of(layer: int | None, masses: Mapping[int, KeptMass]) -> tuple[int, BlockMap] | None:
    """Return a layer and its block map, unless it turned out dense."""
    if layer is None:
        return None
    pattern = masses[layer].pattern
    return (layer, pattern.block_map) if isinstance(pattern, BlockPattern) else None


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return so many items at most, evenly spread; the first is always among them."""
    if len(items) <= number:
        return list(items)
    return [items[i * len(items) // number] for i in range(number)]


def _machine(device: torch.device) -> dict[str, object]:
    """Say what times were taken on."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "torch": torch.__version__,
    }


def _print_summary(report: Report, output_dir: Path, files: Sequence[str]) -> None:
    """Print what was found, on standard output."""
    layers = report.layers
    worst = min(layers, key=lambda layer: layer.kept_mass.mean)
    density = sum(layer.density for layer in layers) / len(layers)
    mass = sum(layer.kept_mass.mean for layer in layers) / len(layers)
    time_ms = sum(layer.time_ms for layer in layers)
    selection_ms = sum(layer.selection_ms for layer in layers)
    lines = (
        f"{len(layers)} global layers of {report.num_heads} heads: mean density {density:.2f}, "
        f"mean kept mass {mass:.3f}, {time_ms:,.0f} ms, {selection_ms:,.0f} of them selection.",
        f"Least is kept by layer {worst.layer} ({worst.policy}): mass {worst.kept_mass.mean:.3f}, "
        f"5 per cent of the queries below {worst.kept_mass.p5:.3f}, "
        f"relative error {worst.kept_mass.relative_error:.3f}.",
        f"Report: {output_dir} ({', '.join(files)})",
    )
    out = Console(file=sys.stdout)
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
