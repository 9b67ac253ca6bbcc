# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.accuracy``: what sparse attention costs a trained network.

The shipped network runs on held-out scenes of the generator that it was trained with, dense and
under plans of many densities. Every plan sees the same scenes. Rows go to
``benchmarks/results/accuracy.jsonl`` in place of older ones of the same numbers of views; the
tables of docs/accuracy.md and its figures are made of them at the end.

Density is the share of (query, key) pairs of tokens that were computed, special tokens included:
that of the rows is measured, not asked for. Kept mass is the share of dense attention's probability
that falls on them. Random selection, which looks at nothing, is the floor.

Axes: ``B`` scenes, ``F`` views.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import tyro
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.random_selection import RandomSelection
from benchmarks.rows import replace
from ns_sparseattn.attention import (
    AttentionPlan,
    BlockSparsePolicy,
    FramePolicy,
    PaperPolicy,
    record_kept_mass,
)
from ns_sparseattn.evaluate.pairs import auc, pair_errors
from ns_sparseattn.models import VGGT, InferenceOptions, load_vggt
from ns_sparseattn.models.loading import trained_side
from ns_sparseattn.models.weights import VGGT_FAMILY
from training.config import CONFIGS
from training.heldout import HeldOutConfig, depth_errors, make_held_out
from training.targets import make_targets
from training.world import Views

Kind = Literal["random", "paper", "ours", "ours + means", "ours + means, early in photos"]
"""Ways to choose what is computed; the last keeps the first layers within photos."""

LIMITS_DEG = (1, 3, 5, 10, 30)
"""Limits of the areas under the curve."""
_TOKENS_AT_ONCE = 1 << 12
"""Tokens of one forward pass, about: bounds memory."""
_MASS_QUERIES = 64
"""Queries of each head and scene that kept mass is measured on."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare dense and sparse attention of the shipped network on held-out scenes."""

    weights: str = "tiny"
    """Weights, as ``--weights`` of the command takes them."""
    views: tuple[int, ...] = (8, 24, 64)
    """Numbers of views of a scene."""
    scenes: tuple[int, ...] = (24, 8, 4)
    """Scenes for each number of views."""
    densities: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05, 0.02)
    """Shares of the key blocks to keep."""
    blocks: tuple[int, ...] = (4, 16, 64)
    """Tokens of a key block. Published results use 64, more than a photo of this network has."""
    min_blocks: int = 12
    """Block sizes of which a scene has fewer are left out: nothing is to choose among them."""
    early_layers: int = 1
    """Layers within photos, of the kind that has such."""
    save: bool = True
    """Whether rows, tables and figures are written."""

    def main(self) -> None:
        """Measure all plans, print and write the rows, then tables and figures."""
        model, info = load_vggt(self.weights)
        weights = {"name": info.name, "sha256": info.sha256}
        side = trained_side(VGGT_FAMILY, self.weights) or model.config.image_size
        size = (round(0.75 * side / 14) * 14, side)
        rows: list[dict[str, Any]] = []
        print(
            "views block kind                           asked  real  mass  rotation AUC@5 @30  "
            "direction @30  depth"
        )
        for num_views, num_scenes in zip(self.views, self.scenes, strict=True):
            held_out = HeldOutConfig(num_scenes=num_scenes, num_frames=num_views, sizes=(size,))
            (batch,) = make_held_out(held_out, CONFIGS["cpu"].generator, "cpu")
            for facts, plan in self._plans(batch, model.config.depth):
                start = time.perf_counter()
                row = {"views": num_views, "scenes": num_scenes, "size": size, **facts}
                row |= measure(model, batch, plan)
                if facts["kind"] == "dense":
                    row |= {"own_photo_mass": own_photo_mass(model, batch)}
                row |= {"seconds": round(time.perf_counter() - start, 2), "weights": weights}
                rows.append({**row, "machine": describe("cpu")})
                _print(row)
        if self.save:
            replace("accuracy", rows, ("views", "kind", "block_k", "asked"))
            _document()

    def _plans(self, batch: Views, depth: int) -> Iterator[tuple[dict[str, Any], AttentionPlan]]:
        """Yield what to call a plan in its row, and the plan."""
        yield {"kind": "dense", "block_k": None, "asked": 1.0}, AttentionPlan.dense()
        for layers in range(1, depth + 1):
            plan = AttentionPlan(layers=dict.fromkeys(range(layers), FramePolicy()))
            yield {"kind": f"first {layers} in photos", "block_k": None, "asked": None}, plan
        height, width = (side // 14 for side in batch.images.shape[-2:])
        num_patches = batch.images.shape[1] * height * width
        for block_k in self.blocks:
            if num_patches < self.min_blocks * block_k:
                continue
            for kind in get_args(Kind):
                for density in self.densities:
                    facts = {"kind": kind, "block_k": block_k, "asked": density}
                    yield facts, make_plan(kind, density, block_k, self.early_layers)


def make_plan(kind: Kind, density: float, block_k: int, early_layers: int) -> AttentionPlan:
    """Return the plan of a kind that keeps a share of the key blocks.

    Args:
        kind: How blocks are chosen.
        density: Share of the key blocks to keep.
        block_k: Tokens of a key block.
        early_layers: Layers within photos, of the kind that has such.
    """
    if kind == "paper":
        return AttentionPlan(default=PaperPolicy(sparse_ratio=1.0 - density, block_k=block_k))
    policy = BlockSparsePolicy(
        max_density=density,
        block_k=block_k,
        coarse="means" in kind,
        selector=RandomSelection() if kind == "random" else None,
    )
    layers = range(early_layers) if "early" in kind else ()
    return AttentionPlan(default=policy, layers=dict.fromkeys(layers, FramePolicy()))


@torch.no_grad()
def measure(model: VGGT, batch: Views, plan: AttentionPlan) -> dict[str, Any]:
    """Run a network under a plan on scenes ``[B, F]`` and compare with the truth.

    Returns:
        Areas, medians and depth error over all scenes; density, kept mass and error of the output
        of every layer.
    """
    rotation, direction, larger, depths, layers = [], [], [], [], []
    for views in _chunks(batch):
        truth = make_targets(views)
        with record_kept_mass(num_queries=_MASS_QUERIES):
            output = model(views.images, plan=plan, options=InferenceOptions())
        assert output.cam_from_world is not None
        assert output.depth is not None
        for pose, reference in zip(output.cam_from_world, truth.cam_from_world, strict=True):
            errors = pair_errors(pose, reference)
            rotation.append(errors.rotation_deg)
            direction.append(errors.direction_deg)
            larger.append(errors.larger_deg)
        depths += depth_errors(output.depth, truth.depth, truth.valid)
        layers.append(([_layer_facts(layer) for layer in output.attention], len(views.depth)))
    return {
        "pairs": sum(map(len, rotation)),
        "rotation_auc": _areas(torch.cat(rotation)),
        "direction_auc": _areas(torch.cat(direction)),
        "pose_auc": _areas(torch.cat(larger)),
        "rotation_median_deg": round(float(torch.cat(rotation).median()), 3),
        "direction_median_deg": round(float(torch.cat(direction).nanmedian()), 3),
        "depth_error": round(float(torch.tensor(depths).median()), 4),
        **_over_scenes(layers),
    }


@torch.no_grad()
def own_photo_mass(model: VGGT, batch: Views) -> list[float]:
    """Return the share of dense attention's mass within the query's own photo, layer by layer."""
    masses = []
    for layer in range(model.config.depth):
        # The inputs of a layer do not depend on what is done in it.
        plan = AttentionPlan(layers={layer: FramePolicy()})
        total = 0.0
        for views in _chunks(batch):
            with record_kept_mass(num_queries=_MASS_QUERIES) as kept:
                model(views.images, plan=plan, heads=("camera",))
            total += float(kept[layer].mass.mean()) * len(views.depth)
        masses.append(round(total / len(batch.depth), 4))
    return masses


def _chunks(batch: Views) -> Iterator[Views]:
    """Yield so many scenes at once as memory and caches like."""
    num_scenes, num_views = batch.depth.shape[:2]
    tokens = num_views * batch.depth.shape[2] * batch.depth.shape[3] // 14**2
    for members in torch.arange(num_scenes).split(max(_TOKENS_AT_ONCE // tokens, 1)):
        yield batch.take(members)


def _layer_facts(layer: Any) -> dict[str, float | None]:
    kept = layer.kept_mass
    return {
        "density": layer.density,
        "kept_mass": kept.mean,
        "kept_mass_with_means": kept.mean_with_coarse,
        "output_error": kept.relative_error,
    }


def _over_scenes(
    chunks: list[tuple[list[dict[str, float | None]], int]],
) -> dict[str, Any]:
    """Average layers' figures over chunks of scenes, and densities and masses over layers."""
    num_scenes = sum(count for _, count in chunks)

    def mean(layer: int, name: str) -> float | None:
        values = [(facts[layer][name], count) for facts, count in chunks]
        if any(value is None for value, _ in values):
            return None
        return round(sum((value or 0.0) * count for value, count in values) / num_scenes, 4)

    names = chunks[0][0][0]
    layers = {name: [mean(i, name) for i in range(len(chunks[0][0]))] for name in names}
    return {
        "density": _mean(layers["density"]),
        "kept_mass": _mean(layers["kept_mass"]),
        "layers": layers,
    }


def _mean(values: list[float | None]) -> float:
    return round(sum(value or 0.0 for value in values) / len(values), 4)


def _areas(errors_deg: Tensor) -> dict[str, float]:
    """Return the area under the curve for each limit."""
    measured = errors_deg[~errors_deg.isnan()]
    return {str(limit): round(auc(measured, limit), 4) for limit in LIMITS_DEG}


def _print(row: dict[str, Any]) -> None:
    rotation, direction = row["rotation_auc"], row["direction_auc"]
    asked = "" if row["asked"] is None else f"{row['asked']:.2f}"
    print(
        f"{row['views']:5} {row['block_k'] or '':>5} {row['kind']:30} {asked:>5} "
        f"{row['density']:5.3f} {row['kept_mass']:5.3f} {rotation['5']:10.3f} {rotation['30']:7.3f}"
        f" {direction['30']:13.3f} {row['depth_error']:7.3f}",
        flush=True,
    )


def _document() -> None:
    """Write the tables and figures that are made of the rows."""
    # They look at this module's kinds of plans.
    from benchmarks import plot, table

    table.write_tables()
    plot.draw_accuracy_figures()


if __name__ == "__main__":
    tyro.cli(Bench).main()
