# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/accuracy.md, from rows of `benchmarks.accuracy` and `benchmarks.photos`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from benchmarks.accuracy import LIMITS_DEG, Kind
from benchmarks.markdown import markdown

Rows = list[dict[str, Any]]

_SHOWN_BLOCK = 16
"""Nearest to the part of a photo that published blocks hold in large networks, of which there are
enough in a photo to choose among."""
_HELD_DENSITY = 0.25
"""Density at which sparse attention is to be as good as dense."""
_LOW_DENSITY = 0.1
"""Density at which ours is to beat the published selection at `_HELD_DENSITY`."""
_MARGIN = 0.01
"""Difference of areas that counts as none."""


def dense_table(rows: Rows) -> str:
    """The network as it was trained, by number of views."""
    lines = [
        (
            str(row["views"]),
            str(row["scenes"]),
            " / ".join(_area(row["rotation_auc"][str(limit)]) for limit in LIMITS_DEG),
            " / ".join(_area(row["direction_auc"][str(limit)]) for limit in LIMITS_DEG),
            f"{row['rotation_median_deg']:.1f}",
            f"{row['direction_median_deg']:.1f}",
            f"{row['depth_error']:.3f}",
        )
        for row in _of_kind(rows, "dense")
    ]
    limits = "/".join(map(str, LIMITS_DEG))
    head = (
        f"views|scenes|rotation AUC@{limits}|direction AUC@{limits}|rotation, median degrees"
        "|direction, median degrees|depth error"
    )
    return markdown(head, lines, rows)


def early_table(rows: Rows) -> str:
    """How many of the first layers may keep within photos, all others dense."""
    lines = []
    for dense in _of_kind(rows, "dense"):
        views = dense["views"]
        early = [
            row
            for row in rows
            if row["views"] == views and row["kind"].startswith("first ") and row["asked"] is None
        ]
        for name in ("rotation", "direction"):
            cells = [_area(row[f"{name}_auc"]["30"]) for row in (dense, *early)]
            lines.append((str(views), f"{name} AUC@30", *cells))
    depth = len(rows[0]["layers"]["density"]) if rows else 0
    return markdown(
        "|".join(["views", "layers within photos:", *map(str, range(depth + 1))]), lines, rows
    )


def density_table(rows: Rows) -> str:
    """What each selection keeps and loses, by density."""
    lines = []
    asked = sorted({row["asked"] for row in rows if row["block_k"]}, reverse=True)
    for dense in _of_kind(rows, "dense"):
        views = dense["views"]
        lines.append((str(views), "", "dense", _figures(dense), *[""] * len(asked)))
        for block in sorted({row["block_k"] for row in rows if row["views"] == views} - {None}):
            for kind in get_args(Kind):
                found = {
                    row["asked"]: row
                    for row in rows
                    if (row["views"], row["block_k"], row["kind"]) == (views, block, kind)
                }
                cells = [_figures(found[share]) if share in found else "" for share in asked]
                lines.append((str(views), str(block), kind, "", *cells))
    head = "|".join(["views", "block", "selection", "1", *(f"{share:g}" for share in asked)])
    return markdown(head, lines, rows)


def layers_table(rows: Rows) -> str:
    """Where dense attention looks, and what a quarter of the blocks keeps, layer by layer."""
    lines = []
    for dense in _of_kind(rows, "dense"):
        views = dense["views"]
        lines.append((str(views), "own photo, dense", *map(_area, dense["own_photo_mass"])))
        block = shown_block([row for row in rows if row["views"] == views])
        for kind in ("random", "paper", "ours"):
            (row,) = [
                row
                for row in rows
                if (row["views"], row["block_k"], row["kind"], row["asked"])
                == (views, block, kind, _HELD_DENSITY)
            ]
            name = f"kept by {kind} at {_HELD_DENSITY:g}"
            lines.append((str(views), name, *map(_area, row["layers"]["kept_mass"])))
    depth = len(rows[0]["layers"]["density"]) if rows else 0
    return markdown("|".join(["views", "mass", *(f"layer {i}" for i in range(depth))]), lines, rows)


def claims_table(rows: Rows) -> str:
    """Whether sparse attention holds what it should, with the figures."""
    lines = []
    for dense in _of_kind(rows, "dense"):
        views = dense["views"]
        for block in sorted({row["block_k"] for row in rows if row["views"] == views} - {None}):

            def find(kind: Kind, asked: float, views: int = views, block: int = block) -> Any:
                (row,) = [
                    row
                    for row in rows
                    if (row["views"], row["block_k"], row["kind"], row["asked"])
                    == (views, block, kind, asked)
                ]
                return row

            ours, low = find("ours + means", _HELD_DENSITY), find("ours + means", _LOW_DENSITY)
            paper = find("paper", _HELD_DENSITY)
            floor = find("random", _HELD_DENSITY)
            for name, limit in (("rotation", "5"), ("rotation", "30"), ("direction", "30")):
                values = [row[f"{name}_auc"][limit] for row in (dense, ours, low, paper, floor)]
                lines.append(
                    (
                        str(views),
                        str(block),
                        f"{name} AUC@{limit}",
                        *map(_area, values),
                        "yes" if values[1] >= values[0] - _MARGIN else "no",
                        "yes" if values[2] > values[3] else "no",
                    )
                )
    head = (
        f"views|block|figure|dense|ours + means, {_HELD_DENSITY:g}|ours + means, {_LOW_DENSITY:g}"
        f"|paper, {_HELD_DENSITY:g}|random, {_HELD_DENSITY:g}"
        f"|ours at {_HELD_DENSITY:g} within {_MARGIN:g} of dense"
        f"|ours at {_LOW_DENSITY:g} better than paper at {_HELD_DENSITY:g}"
    )
    return markdown(head, lines, rows)


def photos_table(rows: Rows) -> str:
    """Photos with known cameras: the prediction as it is, and the refined scene."""
    lines = []
    for row in rows:
        for stage in ("prediction", "scene"):
            figures = row[stage]
            lines.append(
                (
                    f"{row['set']} ({row['photos']})",
                    "prediction" if stage == "prediction" else f"scene, from {row['source']}",
                    _area(figures["rotation_auc"]["5"]),
                    _area(figures["rotation_auc"]["30"]),
                    _area(figures["direction_auc"]["30"]),
                    f"{figures['rotation_median_deg']:.2f}",
                    f"{figures['direction_median_deg']:.2f}",
                    "" if stage == "prediction" else ("yes" if row["is_trusted"] else "no"),
                    f"{row['prediction_s' if stage == 'prediction' else 'total_s']:.0f}",
                )
            )
    head = (
        "photos|poses|rotation AUC@5|rotation AUC@30|direction AUC@30|rotation, median degrees"
        "|direction, median degrees|trusted|seconds"
    )
    return markdown(head, lines, rows)


_NETWORK_STAGES = ("reference", "encoder", "attention", "camera", "depth")


def time_table(rows: Rows) -> str:
    """The whole command on the shipped weights: start of Python, imports and weights included."""
    rows = [row for row in rows if row["weights"] == "tiny"]
    lines = []
    for row in rows:
        stages = row["stages_s"]
        building = stages.get("refine and build", stages.get("build scene", 0.0))
        width, height = row["photo_size"]
        lines.append(
            (
                f"{row['num_photos']} at {width} x {height}",
                row["arguments"] or "-",
                f"{row['total_s']:.1f}",
                f"{stages['load weights']:.1f}",
                f"{sum(stages.get(stage, 0.0) for stage in _NETWORK_STAGES):.1f}",
                f"{building:.1f}",
                f"{row['peak_memory_gib']:.1f}",
            )
        )
    head = "photos|options|seconds in all|weights|network|refinement and scene|peak GiB"
    return markdown(head, lines, rows)


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "accuracy_dense": ("accuracy", dense_table),
    "accuracy_early": ("accuracy", early_table),
    "accuracy_density": ("accuracy", density_table),
    "accuracy_layers": ("accuracy", layers_table),
    "accuracy_claims": ("accuracy", claims_table),
    "photos": ("photos", photos_table),
    "tiny_time": ("process", time_table),
}
"""Tables by name: the results file that they are made of, and how."""


def shown_block(rows: Rows) -> int:
    """Return the size of the key blocks that figures and the table of layers show."""
    blocks = {row["block_k"] for row in rows} - {None}
    return _SHOWN_BLOCK if _SHOWN_BLOCK in blocks else min(blocks)


def _of_kind(rows: Rows, kind: str) -> Rows:
    return sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["views"])


def _area(value: float) -> str:
    return f"{value:.3f}"


def _figures(row: dict[str, Any]) -> str:
    """Return density and mass that were reached, and the areas of rotation and direction."""
    areas = (row["rotation_auc"]["5"], row["rotation_auc"]["30"], row["direction_auc"]["30"])
    return f"{row['density']:.2f}, {row['kept_mass']:.2f}: " + " / ".join(
        f"{area:.2f}" for area in areas
    )
