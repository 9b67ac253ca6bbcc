# SPDX-License-Identifier: Apache-2.0
"""The log of a run: one JSON object a line, appended and flushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "log.jsonl"


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    with (folder / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, without those that a resumed run has made again.

    A run that was killed may have logged steps after its last checkpoint; it logs them again when
    it resumes. Rows of a step at or after the step that it resumed from are therefore dropped.

    Raises:
        ValueError: If there is no log.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {NAME}; give the folder of a training run.")
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "start":
            rows = [kept for kept in rows if kept["step"] <= row["step"]]
        rows.append(row)
    return rows
