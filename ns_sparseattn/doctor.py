# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn doctor``: what is installed, offered and missing here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

from rich.console import Console

from . import __version__

_PACKAGES = ("torch", "triton", "nerfstudio", "pycolmap", "pillow", "pillow-heif")
"""Distributions whose versions matter in a bug report."""
_OPTIONAL = {"triton", "pillow-heif"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print versions and devices, and whether anything needed is missing."""

    def main(self) -> None:
        """Print the report; exit with 1 if a needed package is missing."""
        from .attention.backends import native_build

        out = Console()
        rows = [("ns_sparseattn", __version__), ("python", platform.python_version())]
        missing = []
        for name in _PACKAGES:
            try:
                rows.append((name, importlib.metadata.version(name)))
            except importlib.metadata.PackageNotFoundError:
                rows.append((name, "not installed" + (" (optional)" if name in _OPTIONAL else "")))
                if name not in _OPTIONAL:
                    missing.append(name)
        rows += [
            ("device", _describe_device()),
            ("native attention kernel", native_build.describe()),
            ("ns-process-data sparse-vggt", _describe_hook()),
        ]
        for name, value in rows:
            out.print(f"{name:<28} {value}", markup=False, highlight=False, soft_wrap=True)
        if missing:
            out.print(f"Missing: pip install {' '.join(missing)}", markup=False, highlight=False)
            raise SystemExit(1)


def _describe_device() -> str:
    import torch

    from .models.compute import resolve_precision

    if not torch.cuda.is_available():
        is_bf16 = resolve_precision("auto", torch.device("cpu")) is not None
        return f"CPU, {torch.get_num_threads()} threads, runs in {'bf16' if is_bf16 else 'fp32'}"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
        f"compute capability {properties.major}.{properties.minor}"
    )


def _describe_hook() -> str:
    """Say whether the start-up hook that adds the sub-command is active in this interpreter."""
    if os.environ.get("NS_SPARSEATTN_NO_HOOK", "0") not in ("", "0"):
        return "off: NS_SPARSEATTN_NO_HOOK is set"
    if "_ns_sparseattn_hook" in sys.modules:
        return "active"
    return "not active: the package is not installed by pip, use ns-sparseattn process vggt instead"
