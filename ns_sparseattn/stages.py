# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of the stages of one run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .prediction import StageRecord

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit is whatever the stage counts."""


class StageRecorder:
    """Record, log and report the stages of one run in order."""

    def __init__(self, device: torch.device, progress: Progress | None = None) -> None:
        self._device = device
        self._progress = progress
        self._records: list[StageRecord] = []

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """What each finished stage cost, in order."""
        return tuple(self._records)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Measure one stage.

        Args:
            name: What the stage is called in records, logs and progress.
            total: How much there is to do, as far as it is known; ``None`` for a stage that shows
                no progress of its own.

        Yields:
            A function to be called as ``report(done)`` or, once the total is known better, as
            ``report(done, total)``.
        """

        def report(done: int, of: int | None = total) -> None:
            if self._progress is not None and of is not None:
                self._progress(name, done, of)

        report(0)
        self._synchronize()
        start = time.perf_counter()
        yield report
        self._synchronize()
        record = StageRecord(
            name=name,
            time_ms=(time.perf_counter() - start) * 1e3,
            peak_memory_gib=_peak_memory_gib(self._device),
        )
        self._records.append(record)
        logger.info(
            "%s: %.1f s, peak memory %.2f GiB", name, record.time_ms / 1e3, record.peak_memory_gib
        )

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # Does not exist on Windows.
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
