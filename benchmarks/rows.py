# SPDX-License-Identifier: Apache-2.0
"""Rows of results: one JSON object a line, each with the machine that it was measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def append(name: str, rows: Iterable[Mapping[str, Any]], results: Path = RESULTS) -> Path:
    """Append rows to a results file and return its path.

    Args:
        name: The file without its ending, for example ``attention``.
        rows: What to append.
        results: The folder of results.
    """
    path = results / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def replace(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    keys: tuple[str, ...],
    results: Path = RESULTS,
) -> Path:
    """Write rows in place of those that have the same values of some keys; return the path.

    For measurements whose rows are compared with each other: those of another run would mislead.

    Args:
        name: The file without its ending.
        rows: What to write.
        keys: Entries that decide which rows go.
        results: The folder of results.
    """
    rows = list(rows)
    new = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in read(name, results) if tuple(row[key] for key in keys) not in new]
    path = results / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    return append(name, [*kept, *rows], results)


def read(name: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of a results file, in the order in which they were measured."""
    path = results / f"{name}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
