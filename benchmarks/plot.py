# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.plot``: draw the figures of the docs from the committed rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # Before pyplot: there may be no screen.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy_tables import shown_block
from benchmarks.machine import REPOSITORY
from benchmarks.rows import read

IMAGES = REPOSITORY / "docs/images"
_STYLES = {"native": "tab:blue", "gather": "tab:orange", "triton": "tab:green", "flex": "tab:red"}

Rows = list[dict[str, Any]]


def draw_speed_up(rows: Rows, path: Path) -> None:
    """Draw the speed-up over dense attention by density, one panel for each length and dtype."""
    sparse = [row for row in rows if row["lists"] == "selected" and not _is_limited(row)]
    panels = sorted({(row["dtype"], row["tokens"]) for row in sparse if row["tokens"] >= 8192})
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 3.2), sharey=True, squeeze=False
    )
    for axes, (dtype, tokens) in zip(all_axes[0], panels, strict=True):
        of_panel = [row for row in sparse if (row["dtype"], row["tokens"]) == (dtype, tokens)]
        _draw_panel(axes, of_panel)
        axes.set_title(f"{tokens} tokens, {dtype}", fontsize=10)
        axes.set_xlabel("density")
    all_axes[0][0].set_ylabel("speed-up over dense attention,\nselection included")
    all_axes[0][-1].legend(fontsize=8)
    _save(figure, path)


def _is_limited(row: dict[str, Any]) -> bool:
    """Return whether a CPU was told to do without what it has for bfloat16."""
    return row["machine"].get("instructions", "avx512_bf16") != "avx512_bf16"


def _draw_panel(axes: Axes, rows: Rows) -> None:
    for backend in sorted({row["what"] for row in rows}):
        for coarse, line in ((False, "--"), (True, "-")):
            curve = sorted(
                (row["density"], row["speed_up_with_selection"])
                for row in rows
                if row["what"] == backend and row["coarse"] == coarse
            )
            if curve:
                axes.plot(
                    *zip(*curve, strict=True),
                    line,
                    marker=".",
                    color=_STYLES.get(backend, "black"),
                    label=backend + (" + coarse" if coarse else ""),
                )
    densities = sorted({row["density"] for row in rows})
    axes.plot(densities, [1 / d for d in densities], ":", color="grey", label="1 / density")
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(densities, [f"{density:.2g}" for density in densities])
    axes.minorticks_off()


def draw_selection(rows: Rows, path: Path) -> None:
    """Draw the output's error by density, for each order of patches, with and without coarse."""
    frames = max(row["frames"] for row in rows)
    densities = sorted({row["density"] for row in rows})
    kinds = ("diffuse", "medium", "peaked")
    figure, all_axes = plt.subplots(1, len(kinds), figsize=(10.5, 3.2), sharey=True)
    colours = {"raster": "tab:red", "hilbert": "tab:orange", "tiles": "tab:blue"}
    for axes, kind in zip(all_axes, kinds, strict=True):
        for order, colour in colours.items():
            of_curve = sorted(
                (row["density"], row["error"], row["error_coarse"])
                for row in rows
                if (row["frames"], row["sharpness"], row["order"]) == (frames, kind, order)
            )
            density, plain, coarse = zip(*of_curve, strict=True)
            axes.plot(density, plain, "--", marker=".", color=colour, label=order)
            axes.plot(density, coarse, "-", marker=".", color=colour, label=f"{order} + coarse")
        axes.set_title(f"{kind} attention", fontsize=10)
        axes.set_xlabel("density")
        axes.set_xscale("log")
        axes.set_xticks(densities, [f"{d:.2g}" for d in densities])
        axes.minorticks_off()
    all_axes[0].set_ylabel("relative error of the output")
    all_axes[-1].legend(fontsize=8)
    _save(figure, path)


_KIND_STYLES = {
    "random": ("grey", ":"),
    "paper": ("tab:red", "-"),
    "ours": ("tab:orange", "-"),
    "ours + means": ("tab:blue", "-"),
    "ours + means, early in photos": ("tab:green", "--"),
}
_DENSITY_TICKS = (0.1, 0.2, 0.3, 0.5)
_FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "rotation AUC@5": lambda row: row["rotation_auc"]["5"],
    "rotation AUC@30": lambda row: row["rotation_auc"]["30"],
    "direction AUC@30": lambda row: row["direction_auc"]["30"],
    "depth error": lambda row: row["depth_error"],
    "kept mass": lambda row: row["kept_mass"],
}


def draw_accuracy(rows: Rows, path: Path) -> None:
    """Draw poses, depth and kept mass of a trained network by density; a column for each views."""
    views = sorted({row["views"] for row in rows})
    block = shown_block(rows)
    figure, all_axes = plt.subplots(
        len(_FIGURES),
        len(views),
        figsize=(3.6 * len(views), 2.3 * len(_FIGURES)),
        squeeze=False,
        sharex="col",
    )
    for column, count in enumerate(views):
        of_views = [row for row in rows if row["views"] == count]
        (dense,) = [row for row in of_views if row["kind"] == "dense"]
        for axes, (title, value) in zip(all_axes[:, column], _FIGURES.items(), strict=True):
            axes.axhline(value(dense), color="black", linewidth=0.8, label="dense")
            for kind, (colour, line) in _KIND_STYLES.items():
                curve = sorted(
                    (row["density"], value(row))
                    for row in of_views
                    if (row["kind"], row["block_k"]) == (kind, block)
                )
                axes.plot(*zip(*curve, strict=True), line, marker=".", color=colour, label=kind)
            axes.set_xscale("log")
            axes.set_xticks(_DENSITY_TICKS, [f"{share:g}" for share in _DENSITY_TICKS])
            axes.minorticks_off()
            if column == 0:
                axes.set_ylabel(title)
        all_axes[0][column].set_title(f"{count} views", fontsize=10)
        all_axes[-1][column].set_xlabel("share of token pairs computed")
    # Where no curve is near: nothing keeps much mass at low density.
    all_axes[-1][-1].legend(fontsize=6, loc="lower right")
    _save(figure, path)


def draw_layers(rows: Rows, path: Path) -> None:
    """Draw where dense attention looks and what a quarter of the blocks keeps, by layer."""
    views = sorted({row["views"] for row in rows})
    block = shown_block(rows)
    figure, all_axes = plt.subplots(
        1, len(views), figsize=(3.6 * len(views), 3.0), sharey=True, squeeze=False
    )
    for axes, count in zip(all_axes[0], views, strict=True):
        of_views = [row for row in rows if row["views"] == count]
        (dense,) = [row for row in of_views if row["kind"] == "dense"]
        layers = range(len(dense["own_photo_mass"]))
        axes.bar(layers, dense["own_photo_mass"], color="lightgrey", label="in the query's photo")
        for kind in ("random", "paper", "ours"):
            colour, line = _KIND_STYLES[kind]
            (row,) = [
                row
                for row in of_views
                if (row["kind"], row["block_k"], row["asked"]) == (kind, block, 0.25)
            ]
            axes.plot(
                layers,
                row["layers"]["kept_mass"],
                line,
                marker=".",
                color=colour,
                label=f"kept by {kind}",
            )
        axes.set_title(f"{count} views, a quarter of the blocks", fontsize=10)
        axes.set_xlabel("global layer")
        axes.set_ylim(0.0, 1.0)
    all_axes[0][0].set_ylabel("share of attention mass")
    all_axes[0][-1].legend(fontsize=7)
    _save(figure, path)


def draw_accuracy_figures() -> None:
    """Draw the figures of docs/accuracy.md."""
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    rows = read("accuracy")
    if rows:
        draw_accuracy(rows, IMAGES / "accuracy.svg")
        draw_layers(rows, IMAGES / "accuracy-layers.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The date would make every run another file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    draw_selection(read("selection"), IMAGES / "selection.svg")
    if read("attention"):
        draw_speed_up(read("attention"), IMAGES / "attention.svg")
    draw_accuracy_figures()
