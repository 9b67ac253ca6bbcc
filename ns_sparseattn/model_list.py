# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn models``: which models and weights there are, and what they allow."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console

from .models import shipped
from .models.hub import cached_weights
from .models.registry import ModelEntry, find_model, model_names
from .models.weight_set import WeightSet


@dataclass(frozen=True, kw_only=True)
class ListedWeights:
    """One named set of weights of one model."""

    entry: ModelEntry
    weights: WeightSet
    is_default: bool
    """Whether it is taken if none is named."""
    is_downloaded: bool
    """Whether its file is in the hub's cache on this machine, or ships with the package."""

    @property
    def told(self) -> str:
        """What the network can be told beside photos, a phrase."""
        order = ("intrinsics", "poses", "depth")
        return ", ".join(kind for kind in order if kind in self.entry.told) or "photos alone"


def list_weights() -> tuple[ListedWeights, ...]:
    """Return all named weights of all models, without any download.

    Raises:
        ValueError: If a package that brings a model is broken.
    """
    listed = []
    for name in model_names():
        entry = find_model(name)
        sets, default = entry.family.named_sets()
        listed += [
            ListedWeights(
                entry=entry,
                weights=weights,
                is_default=weights.name == default,
                is_downloaded=_is_here(weights),
            )
            for weights in sets.values()
        ]
    return tuple(listed)


def _is_here(weights: WeightSet) -> bool:
    if weights.repo_id is None:
        return (shipped.FOLDER / weights.filename).is_file()
    return cached_weights(weights.repo_id, weights.filename) is not None


@dataclass(frozen=True, kw_only=True)
class ListModels:
    """List the models and their weights: licence, size, what they can be told, if downloaded."""

    def main(self) -> None:
        """Print the table; nothing is downloaded."""
        from .console import user_errors

        with user_errors(verbose=False):
            listed = list_weights()
        rows = [_TITLES, *(_cells(row) for row in listed)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        out = Console(file=sys.stdout)
        for cells in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
        out.print(
            "\nEvery model takes --intrinsics, --poses and --depth: what a network cannot be told "
            "holds in the scene. Read the page of a licence: huggingface.co/OWNER/NAME.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


_SMALL_GB = 0.1
"""Smaller files are listed to the megabyte."""
_TITLES = (
    "model",
    "weights",
    "GB",
    "can be told",
    "scale",
    "licence of the weights",
    "commercial use",
    "downloaded",
)


def _cells(row: ListedWeights) -> tuple[str, ...]:
    weights = row.weights
    return (
        row.entry.name,
        weights.name + (" (default)" if row.is_default else ""),
        f"{weights.size_gb:.1f}" if weights.size_gb >= _SMALL_GB else f"{weights.size_gb:.3f}",
        row.told,
        row.entry.scale,
        weights.licence,
        "yes" if weights.commercial_use else "no",
        ("shipped" if weights.repo_id is None else "yes") if row.is_downloaded else "no",
    )
