# SPDX-License-Identifier: Apache-2.0
"""Describe the machine that a row was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from ns_sparseattn.attention.backends.native_build import best_instructions

REPOSITORY = Path(__file__).resolve().parents[1]


def describe(device: str) -> dict[str, str | int | float]:
    """Return what a reader needs to judge a row: device, memory, versions, commit.

    Args:
        device: ``cpu`` or ``cuda``, as the run used it.
    """
    is_cuda = device.startswith("cuda")
    return {
        "kind": torch.device(device).type,
        "device": torch.cuda.get_device_name(device) if is_cuda else _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pycolmap": version("pycolmap"),
        **(_gpu(device) if is_cuda else {"instructions": best_instructions() or "baseline"}),
        "commit": _commit(),
    }


def _gpu(device: str) -> dict[str, str]:
    """Return what decides how fast the same kernels are on the same GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda or "unknown",
        "triton": version("triton"),
    }


def _cpu_name() -> str:
    """Return the processor's name; Linux is the one system that hides it from `platform`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit measured, with a plus sign if files differ from it."""
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
