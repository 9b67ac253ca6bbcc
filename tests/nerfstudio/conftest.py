# SPDX-License-Identifier: Apache-2.0
"""Photos and environments for nerfstudio's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ns_sparseattn.testing.photos import draw_view, write_photo


def write_views(folder: Path, num_views: int = 9, size: tuple[int, int] = (96, 64)) -> Path:
    """Write photos of a wall, taken one step after the other."""
    for i in range(num_views):
        write_photo(folder / f"img_{i}.jpg", draw_view(size, index=i))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of nine photos."""
    return write_views(tmp_path / "photos")


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of this environment, such as ``ns-train``."""

    def run(
        command: str, *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            [Path(sys.executable).with_name(command), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **settings, **variables},
        )

    return run
