# SPDX-License-Identifier: Apache-2.0
"""Times of repeated calls, on the CPU's clock or the GPU's, and their peak memory."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What ``/proc/self/clear_refs`` takes to forget the peak so far (proc(5))."""
_LOOK_EVERY_S = 0.01
"""How often memory is looked at where the system keeps no peak; shorter ones may be missed."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Percentiles of the times of one call, and the memory that it took beyond its inputs."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int
    peak_gib: float
    """The highest of all calls."""


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
    with watch_memory(device) as memory:
        times = [_time_ms(call, device) for _ in range(repeats)]
    p20, p50, p80 = (float(p) for p in np.percentile(times, (20, 50, 80)))
    return Timing(
        p20_ms=round(p20, 4),
        p50_ms=round(p50, 4),
        p80_ms=round(p80, 4),
        repeats=repeats,
        peak_gib=round(memory.peak_gib, 3),
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
class Memory:
    """How far memory rose."""

    peak_gib: float = 0.0


@contextmanager
def watch_memory(device: torch.device) -> Iterator[Memory]:
    """Measure how far memory rises inside: torch's allocator on a GPU, else the whole process.

    The value is set when the context ends. On Linux the kernel keeps the peak; elsewhere a thread
    looks now and then.
    """
    memory = Memory()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield memory
        memory.peak_gib = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        return
    _give_back_free_memory()
    if not _reset_peak():
        with _sampled(memory):
            yield memory
        return
    before = _status_gib("VmRSS")
    yield memory
    memory.peak_gib = max(_status_gib("VmHWM") - before, 0.0)


def _give_back_free_memory() -> None:
    """Return the allocator's free memory to the system, where it is glibc's.

    What it keeps would be used again by what is measured, which would then seem to take nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _STATUS.exists() else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _reset_peak() -> bool:
    """Let the process's peak begin anew; say whether this system can."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
        return _status_gib("VmHWM") > 0
    except OSError:
        return False


def _status_gib(name: str) -> float:
    """Return a size that Linux tells of the process; 0 if it does not tell."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**20
    return 0.0


@contextmanager
def _sampled(memory: Memory) -> Iterator[None]:
    """Look at the memory of the process now and then."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(_LOOK_EVERY_S):
            memory.peak_gib = max(memory.peak_gib, (process.memory_info().rss - before) / 2**30)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
