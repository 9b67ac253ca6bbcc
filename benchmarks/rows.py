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


def read(name: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of a results file, in the order in which they were measured."""
    path = results / f"{name}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
