# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/refinement.md, from the rows of ``benchmarks.refine`` and ``.train_quality``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import markdown

Rows = list[dict[str, Any]]


def refine_table(rows: Rows) -> str:
    """What disturbed cameras end at, beside pycolmap alone."""
    lines = []
    for row in sorted(rows, key=_place):
        after, peer = row["after"], row["pycolmap"]
        lines.append(
            (
                f"{row['set']} ({row['num_photos']})",
                row["case"],
                f"{row['before']['pair_deg']:.1f}",
                f"{after['rotation_deg']:.2f} / {after['direction_deg']:.2f}",
                f"{after['auc_5']:.1f}",
                f"{peer['rotation_deg']:.2f} / {peer['auc_5']:.1f}",
                "{} of {}".format(*row["wrong_flagged"]),
                "{} of {}".format(*row["good_flagged"]),
                f"{row['median_reprojection_px']:.2f}",
            )
        )
    head = "set (photos)|case|pair error before, deg|after: rotation / direction, deg|AUC@5"
    head += "|pycolmap: rotation, deg / AUC@5|wrong found|good flagged|reprojection, px"
    return markdown(head, lines, rows)


def refine_time_table(rows: Rows) -> str:
    """Seconds of case a beside those of pycolmap in the same run."""
    lines = []
    for row in sorted((row for row in rows if row["case"] == "a"), key=_place):
        peer, parts = row["pycolmap"], row["parts_s"]
        lines.append(
            (
                f"{row['set']} ({row['num_photos']})",
                f"{row['seconds']:.1f}",
                _seconds(parts, "features", "pairs", "audit", "adjust"),
                f"{peer['seconds']:.1f}",
                _seconds(peer["parts_s"], "features", "pairs", "mapper"),
                f"{row['seconds'] / peer['seconds']:.2f}",
                f"{row['cpu_s'] / peer['cpu_s']:.2f}",
                "no" if row.get("shared") else "yes",
            )
        )
    head = "set (photos)|s|of it features / pairs / audit / adjustment|pycolmap s"
    head += "|of it features / pairs / mapper|share|share of processor time|alone"
    return markdown(head, lines, rows)


def train_quality_table(rows: Rows) -> str:
    """PSNR on held-out photos by the cameras that were trained on."""
    lines = [
        (
            f"{row['set']} ({row['num_photos']}, {row['num_held_out']} held out)",
            row["cameras"],
            f"{row['pose_errors']['rotation_deg']:.2f}",
            f"{row['steps']}",
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
        )
        for row in rows
    ]
    head = "set (photos)|cameras|rotation error, deg|steps|PSNR, dB|SSIM"
    return markdown(head, lines, rows)


def _seconds(parts: dict[str, float], *names: str) -> str:
    return " / ".join(f"{parts[name]:.1f}" for name in names)


def _place(row: dict[str, Any]) -> tuple[bool, int, str, str]:
    """Real photos first, then rendered ones by their number."""
    is_rendered = row["set"].startswith("rendered-")
    return is_rendered, row["num_photos"] if is_rendered else 0, row["set"], row["case"]


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "refine": ("refine", refine_table),
    "refine_time": ("refine", refine_time_table),
    "train_quality": ("train_quality", train_quality_table),
}
"""Tables by name: the results file that they are made of, and how."""
