# SPDX-License-Identifier: Apache-2.0
"""``python -m training.plot DIR``: draw a run's log, as ``log.png`` beside it or elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.log import read_rows

_LOSSES = ("camera", "depth", "points", "matching", "attention", "tracks", "geometry")
_SCORES = {
    "rotation_auc_30": "rotation AUC@30",
    "rotation_auc_5": "rotation AUC@5",
    "direction_auc_30": "direction AUC@30",
}


def plot_run(folder: Path, output: Path | None = None) -> Path:
    """Draw losses and held-out scores over the minutes of training.

    Args:
        folder: Of the run.
        output: Picture to write, if not beside the log.

    Returns:
        The picture.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If there is no log.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: `pip install matplotlib`.") from error
    rows = read_rows(folder)
    steps = [row for row in rows if row["kind"] == "train"]
    scores = [row for row in rows if row["kind"] == "held_out"]
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    losses, held_out = figure.subplots(1, 2)
    for name in _LOSSES:
        losses.plot(_minutes(steps), [row[name] for row in steps], label=name)
    losses.set(xlabel="minutes of training", ylabel="loss", title="training", yscale="symlog")
    losses.legend()
    for name, label in _SCORES.items():
        held_out.plot(_minutes(scores), [row[name] for row in scores], marker="o", label=label)
    if scores:
        chance = scores[-1]["constant_rotation_auc_30"]
        held_out.axhline(chance, linestyle=":", color="grey", label="AUC@30 of one pose for all")
    held_out.set(xlabel="minutes of training", title="held-out scenes", ylim=(0.0, 1.0))
    held_out.legend()
    path = output or folder / "log.png"
    figure.savefig(path, dpi=120)
    return path


def _minutes(rows: list[dict[str, Any]]) -> list[float]:
    return [row["minutes"] for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="picture to write instead of log.png there")
    args = parser.parse_args(arguments)
    try:
        print(plot_run(args.folder, args.output))
    except (ModuleNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
