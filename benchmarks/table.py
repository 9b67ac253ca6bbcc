# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.table``: write the README's table from the committed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import REPOSITORY
from benchmarks.process import RESULTS

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- benchmarks.table: begin -->", "<!-- benchmarks.table: end -->"


def read_rows(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of a results file, in the order in which they were measured."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of rows, and one line for each machine that they were measured on."""
    lines = [
        "| photos | weights | attention | total s | network s | of it global attention s "
        "| scene + export s | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        stages = row["stages_s"]
        network = sum(stages[name] for name in ("encoder", "attention", "camera", "depth"))
        scene = row["total_s"] - network - stages["load photos"] - stages["load weights"]
        kind = "dense" if row["mean_density"] == 1.0 else f"density {row['mean_density']:.2f}"
        width, height = row["photo_size"]
        lines.append(
            f"| {row['photos']}, {row['num_photos']} at {width} x {height} | {row['weights']} "
            f"| {kind} | {row['total_s']:.0f} | {network:.0f} | {row['global_attention_s']:.0f} "
            f"| {scene:.0f} | {row['peak_memory_gib']:.1f} |"
        )
    machines = {
        f"{m['device']}, {m['cores']} cores, {m['memory_gib']:.0f} GiB, torch {m['torch']}"
        for m in (row["machine"] for row in rows)
    }
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(machines))}."])


def insert(readme: str, table: str) -> str:
    """Return the README with its table replaced.

    Raises:
        ValueError: If the README lacks the markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The README must contain {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(insert(text, make_table(read_rows())), encoding="utf-8")
