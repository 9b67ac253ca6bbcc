# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, drawn with matplotlib's Agg canvas: no display, no global state.

Axes: ``L`` layers, ``H`` heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..attention import BlockMap
from .block_picture import draw_block_map
from .report import HeadReport, LayerReport, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_MAP_SIDE = 192
"""Cells of a block map's picture at most, per side: about the pixels that a panel has."""
_MAX_BINS = 50
"""Bins of a histogram of list lengths at most."""
_MAX_LABELS = 24
"""Labelled layers or heads along an axis at most."""
_LEAST_RANGE = 0.01
"""Range of a colour scale at least: differences below that are not to look like much."""
_BLUE, _ORANGE, _GREY = "#2a6f97", "#e07a1f", "#8d99a6"


@dataclass(frozen=True)
class _Panel:
    """One heat map of layers and heads."""

    title: str
    values: NDArray[np.float64]  # [L, H]
    colours: str
    low: float
    high: float


def draw_heads(report: Report, path: Path) -> None:
    """Draw density, kept mass and output error of every layer and head as heat maps."""
    panels = _panels(report)
    num_layers, num_heads = len(report.layers), report.num_heads
    panel_width = max(2.9, 0.13 * num_heads + 1.4)
    figure = _figure(panel_width * len(panels), max(2.4, 0.17 * num_layers + 1.3))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        image = ax.imshow(
            panel.values, aspect="auto", cmap=panel.colours, vmin=panel.low, vmax=panel.high
        )
        ax.set_title(panel.title, fontsize=9)
        ax.set_xlabel("head")
        ax.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=ax, format="%.2g")
    axes[0].set_ylabel("global layer")
    axes[0].set_yticks(range(num_layers), _labels(report.layers), fontsize=8)
    _save(figure, path)


def draw_times(report: Report, path: Path) -> None:
    """Draw the milliseconds of every layer, block selection apart."""
    layers = report.layers
    figure = _figure(max(5.5, 0.24 * len(layers) + 1.2), 3.2)
    ax = figure.subplots()
    sparse = [layer for layer in layers if layer.lists is not None]
    others = [layer for layer in layers if layer.lists is None]
    for group, label, colour in (
        (others, "dense, or within frames", _GREY),
        (sparse, "block-sparse", _BLUE),
    ):
        rest = [layer.time_ms - layer.selection_ms for layer in group]
        if group:
            ax.bar([layer.layer for layer in group], rest, color=colour, label=label)
    if sparse:
        ax.bar(
            [layer.layer for layer in sparse],
            [layer.selection_ms for layer in sparse],
            bottom=[layer.time_ms - layer.selection_ms for layer in sparse],
            color=_ORANGE,
            label="block selection",
        )
    ax.set_xlabel("global layer")
    ax.set_ylabel("time, ms")
    ax.set_xticks([layer.layer for layer in layers], _labels(layers), fontsize=8)
    total = sum(layer.time_ms for layer in layers)
    ax.set_title(f"Global attention: {total:,.0f} ms in all", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    _save(figure, path)


def draw_list_lengths(report: Report, path: Path) -> None:
    """Draw how long the lists of query blocks are: over all layers, and layer by layer."""
    layers = [layer for layer in report.layers if layer.lists is not None]
    num_bins = min(_MAX_BINS, max(layer.lists.num_key_blocks for layer in layers if layer.lists))
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    histograms = np.stack([_histogram(layer, edges) for layer in layers])
    figure = _figure(6.0, max(3.6, 0.15 * len(layers) + 2.6))
    heights = [1.6, max(1.0, 0.15 * len(layers))]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    top.stairs(histograms.mean(0), edges, fill=True, color=_BLUE)
    top.set_ylabel("share of lists")
    top.set_title("Length of the lists of query blocks", fontsize=10)
    top.spines[["top", "right"]].set_visible(False)
    image = bottom.pcolormesh(edges, np.arange(len(layers) + 1), histograms, cmap="Blues", vmin=0.0)
    bottom.set_yticks(np.arange(len(layers)) + 0.5, _labels(layers), fontsize=8)
    bottom.invert_yaxis()
    bottom.set_ylabel("global layer")
    bottom.set_xlabel("share of the key blocks that a list may name")
    figure.colorbar(image, ax=bottom, label="share of lists", format="%.2g")
    _save(figure, path)


def draw_block_maps(layer: LayerReport, block_map: BlockMap, path: Path) -> None:
    """Draw the block maps of all heads of one layer as small multiples."""
    num_heads = block_map.num_heads
    num_columns = math.ceil(math.sqrt(num_heads))
    num_rows = math.ceil(num_heads / num_columns)
    figure = _figure(1.75 * num_columns + 1.1, 1.95 * num_rows + 0.8)
    axes = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    image = None
    for head, ax in enumerate(axes.flat):
        if head >= num_heads:
            ax.set_axis_off()
            continue
        picture = draw_block_map(block_map, head, max_side=_MAP_SIDE)
        image = ax.imshow(
            picture.numpy(),
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            aspect="auto",
            interpolation="nearest",
            extent=(0, block_map.num_k_blocks, block_map.num_q_blocks, 0),
        )
        density = layer.heads[head].density_mean
        ax.set_title(f"head {head}, density {density:.2f}", fontsize=7)
        ax.tick_params(labelsize=6)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True, nbins=5)
    figure.suptitle(f"Layer {layer.layer}: {layer.policy}", fontsize=9)
    figure.supxlabel("key block; special tokens last", fontsize=8)
    figure.supylabel("query block; special tokens last", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    bar.set_label("share computed", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _save(figure, path)


def _panels(report: Report) -> list[_Panel]:
    """Return the heat maps that a report has numbers for."""
    density = _grid(report, lambda head: head.density_mean)
    mass = _grid(report, lambda head: head.kept_mass_mean)
    error = _grid(report, lambda head: head.relative_error)
    least_mass = min(float(mass.min()), 1.0 - _LEAST_RANGE)
    panels = [
        _Panel("Density:\nshare of keys attended to", density, "viridis", 0.0, 1.0),
        _Panel("Kept mass:\nshare of dense attention", mass, "viridis", least_mass, 1.0),
    ]
    if any(layer.kept_mass.mean_with_coarse is not None for layer in report.layers):
        with_coarse = _grid(report, _mass_with_coarse)
        panels.append(
            _Panel(
                "Kept mass with the means\nof left-out blocks",
                with_coarse,
                "viridis",
                least_mass,
                1.0,
            )
        )
    most_error = max(float(error.max()), _LEAST_RANGE)
    panels.append(
        _Panel("Error of the output,\nrelative to its norm", error, "OrRd", 0.0, most_error)
    )
    return panels


def _grid(report: Report, value: Callable[[HeadReport], float]) -> NDArray[np.float64]:
    """Return a number of every head of every layer, ``[L, H]``."""
    return np.array([[value(head) for head in layer.heads] for layer in report.layers])


def _mass_with_coarse(head: HeadReport) -> float:
    # A layer without a coarse term has nothing beside what it lists.
    coarse = head.kept_mass_with_coarse_mean
    return head.kept_mass_mean if coarse is None else coarse


def _histogram(layer: LayerReport, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a layer's lists that have a length, as a share of all blocks, per bin."""
    assert layer.lists is not None
    counts = np.array(layer.lists.counts, dtype=np.float64)
    lengths = np.arange(len(counts)) / max(layer.lists.num_key_blocks, 1)
    # A length between two bins belongs to the lower one, so that 0.25 is not drawn right of it.
    sums, _ = np.histogram(np.maximum(lengths - 1e-9, 0.0), bins=edges, weights=counts)
    return sums / max(counts.sum(), 1.0)


def _labels(layers: Sequence[LayerReport]) -> list[str]:
    """Return the numbers of layers as tick labels, empty in between if there are many."""
    step = math.ceil(len(layers) / _MAX_LABELS)
    return ["" if i % step else str(layer.layer) for i, layer in enumerate(layers)]


def _figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # The same bytes for the same numbers: without the version of matplotlib.
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
