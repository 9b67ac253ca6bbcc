# SPDX-License-Identifier: Apache-2.0
"""Times of repeated calls, on the CPU's clock or the GPU's, and their peak memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch

_LOOK_EVERY_S = 0.01
"""How often a CPU run's memory is looked at; shorter peaks may be missed."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Percentiles of the times of one call, and the memory that it took beyond its inputs."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int
    peak_gib: float


def measure(
    call: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int = 1
) -> Timing:
    """Call something repeatedly.

    On a GPU each call is timed with events, and the caches are as the call before left them, as
    they are in a layer of a network.

    Args:
        call: What to measure.
        device: Where it runs.
        repeats: Calls that count.
        warm_up: Calls before them.
    """
    for _ in range(warm_up):
        call()
    peak_gib, times = 0.0, []
    for _ in range(repeats):
        with _watch_memory(device) as watch:
            times.append(_time_ms(call, device))
        peak_gib = max(peak_gib, watch.peak_gib)
    p20, p50, p80 = (float(p) for p in np.percentile(times, (20, 50, 80)))
    return Timing(
        p20_ms=round(p20, 4),
        p50_ms=round(p50, 4),
        p80_ms=round(p80, 4),
        repeats=repeats,
        peak_gib=round(peak_gib, 3),
    )


def _time_ms(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event)


@dataclass
class _Watch:
    peak_gib: float = 0.0


@contextmanager
def _watch_memory(device: torch.device) -> Iterator[_Watch]:
    """Measure how far memory rises inside: the allocator's on a GPU, else the process's."""
    watch = _Watch()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield watch
        watch.peak_gib = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(_LOOK_EVERY_S):
            watch.peak_gib = max(watch.peak_gib, (process.memory_info().rss - before) / 2**30)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield watch
    finally:
        done.set()
        watcher.join()
