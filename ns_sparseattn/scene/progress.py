# SPDX-License-Identifier: Apache-2.0
"""How the stages of a scene tell how far they are."""

from __future__ import annotations

from ..stages import Progress

__all__ = ["Progress", "report"]


def report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    """Call `progress` if there is one."""
    if progress is not None:
        progress(stage, done, total)
