# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(head: str, lines: Iterable[Sequence[str]], rows: Iterable[dict[str, Any]]) -> str:
    """Return a table, and one line for the machines that the rows were measured on.

    Args:
        head: Titles with bars between them.
        lines: Cells.
        rows: The rows that the cells are made of; without any there is no table.
    """
    rows = list(rows)
    if not rows:
        return "Not measured yet."
    machines = {
        f"{m['device']}, {m['cores']} cores, {m['memory_gib']:.0f} GiB, torch {m['torch']}"
        for m in (row["machine"] for row in rows)
    }
    return f"{table(head.split('|'), lines)}\n\nMeasured on: {'; '.join(sorted(machines))}."


def table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    body = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)
