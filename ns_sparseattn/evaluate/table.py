# SPDX-License-Identifier: Apache-2.0
"""An evaluation as a table and sentences for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .comparison import Comparison, ModelFacts
from .evaluation import Evaluation, PairFigures
from .pairs import THRESHOLDS_DEG

_MAX_NAMED = 5
"""Image names shown in a line."""


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print an evaluation.

    Args:
        evaluation: What to show.
        console: Where to.
    """
    _print_title(evaluation, console)
    _print_body(evaluation, console)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print two models side by side, and then how far the second is from the first.

    Args:
        comparison: What to show.
        console: Where to.
    """
    _print_title(comparison.difference, console)
    console.print(_facts_table((comparison.first, comparison.second)))
    _print_body(comparison.difference, console)


def _print_title(evaluation: Evaluation, console: Console) -> None:
    title = f"{evaluation.estimate} against {evaluation.reference}"
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)


def _print_body(evaluation: Evaluation, console: Console) -> None:
    console.print(_pair_table(evaluation.pairs))
    for line in _sentences(evaluation):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _pair_table(pairs: PairFigures) -> Table:
    """Show areas and shares in per cent, per threshold."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    table.add_column("per cent", no_wrap=True)
    for limit in THRESHOLDS_DEG:
        table.add_column(f"@{limit}", justify="right")
    table.add_column("median", justify="right")
    table.add_column("max", justify="right")
    rows = (
        ("AUC, larger of both", pairs.larger.auc, pairs.larger),
        ("AUC, rotation", pairs.rotation.auc, pairs.rotation),
        ("AUC, direction", pairs.direction.auc, pairs.direction),
        ("RRA, rotation below", pairs.rotation.recall, None),
        ("RTA, direction below", pairs.direction.recall, None),
        ("AUC as VGGT has it", pairs.larger.auc_vggt, None),
    )
    for name, shares, curve in rows:
        ends = ("", "") if curve is None else (_deg(curve.median_deg), _deg(curve.max_deg))
        table.add_row(name, *(_per_cent(shares[limit]) for limit in THRESHOLDS_DEG), *ends)
    return table


def _sentences(evaluation: Evaluation) -> list[str]:
    num_posed = evaluation.num_images - len(evaluation.missing)
    pairs = evaluation.pairs
    lines = [
        f"{num_posed} of {_count(evaluation.num_images, 'image')}, "
        f"{_count(pairs.num_pairs, 'pair')}; matched by {evaluation.matched_by}."
    ]
    if evaluation.missing:
        lines.append(
            f"Missing, counted as failures ({_count(pairs.num_missing, 'pair')}): "
            f"{_some(evaluation.missing)}."
        )
    if evaluation.extra:
        lines.append(f"Not in {evaluation.reference}, not judged: {_some(evaluation.extra)}.")
    if evaluation.unmatched:
        lines.append(f"Not in {evaluation.estimate}, left out: {_some(evaluation.unmatched)}.")
    if pairs.num_without_direction:
        lines.append(
            f"{_count(pairs.num_without_direction, 'pair')} of reference cameras at one place: "
            "only rotations are judged there."
        )
    if evaluation.trajectory is not None:
        error = evaluation.trajectory
        lines.append(
            f"ATE {error.rmse:.4g} (rmse; median {error.median:.4g}, max {error.max:.4g}), "
            f"{100 * error.rmse_share:.3f} % of the extent {error.extent:.4g}; scale "
            f"{error.scale:.4g}."
        )
    if evaluation.intrinsics is not None:
        lens = evaluation.intrinsics
        lines.append(
            f"Focal length off by {100 * lens.focal_median:.2f} % (median; max "
            f"{100 * lens.focal_max:.2f} %), principal point by {lens.center_median_px:.2f} px "
            f"(max {lens.center_max_px:.2f} px)."
        )
    if evaluation.pixels is not None:
        pixels = evaluation.pixels
        behind = f", {pixels.num_behind} behind the camera" if pixels.num_behind else ""
        lines.append(
            f"Reference points move by {pixels.median_px:.2f} px (median of "
            f"{pixels.num_observations} observations; 90 % below {pixels.percentile_90_px:.2f} px"
            f"{behind})."
        )
    return [*lines, *(f"Note: {note}" for note in evaluation.notes)]


def _facts_table(models: Sequence[ModelFacts]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2))
    for name in ("model", "images", "cameras", "points", "images a point", "focal length"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for rank, facts in zip(("first", "second"), models, strict=True):
        focal = "" if facts.median_focal_px is None else f"{facts.median_focal_px:.1f} px"
        table.add_row(
            f"{rank}: {facts.kind}",
            str(facts.num_images),
            str(facts.num_cameras),
            str(facts.num_points),
            f"{facts.images_per_point:.2f}" if facts.num_points else "",
            focal,
        )
    return table


def _per_cent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def _deg(angle: float) -> str:
    return "" if math.isnan(angle) else f"{angle:.3f}°"


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
