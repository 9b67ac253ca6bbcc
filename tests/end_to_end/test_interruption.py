# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped while it writes leaves no half scene, and the next one succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ns_sparseattn.export import is_scene_folder
from ns_sparseattn.testing.photos import draw_view, write_photo

from .conftest import leftovers

TIMEOUT_S = 120


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos that take a moment to write, since smaller copies are made of them."""
    view = draw_view((1800, 1200))
    for i in range(8):
        write_photo(tmp_path / f"photos/img_{i}.jpg", view.rotate(i))
    return tmp_path / "photos"


def arguments(photos: Path, scene: Path) -> list[str]:
    paths = ["--data", str(photos), "--output-dir", str(scene)]
    return ["process", "vggt", *paths, "--weights", "seeded-small", "--long-side", "56"]


def stop_while_writing(photos: Path, scene: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal as soon as its staging folder is there, and wait for it."""
    run = subprocess.Popen(
        [Path(sys.executable).with_name("ns-sparseattn"), *arguments(photos, scene)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + TIMEOUT_S
    while not leftovers(scene.parent):
        assert run.poll() is None, "It ended before it could be stopped."
        assert time.monotonic() < end
        time.sleep(0.002)
    run.send_signal(number)
    _, errors = run.communicate(timeout=TIMEOUT_S)
    return run.returncode, errors


def test_interrupt_while_writing_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    code, errors = stop_while_writing(photos, tmp_path / "scene", signal.SIGINT)
    assert code == 130
    assert "Interrupted. Nothing was written." in errors
    assert "Traceback" not in errors
    assert set(tmp_path.iterdir()) == {photos}


def test_killed_run_leaves_no_scene_and_the_next_one_cleans_up(
    photos: Path,
    tmp_path: Path,
    ns_sparseattn: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    scene = tmp_path / "scene"
    code, _ = stop_while_writing(photos, scene, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not scene.exists()
    assert len(leftovers(tmp_path)) == 1
    result = ns_sparseattn(*arguments(photos, scene))
    assert result.returncode == 0, result.stderr
    assert is_scene_folder(scene)
    assert set(tmp_path.iterdir()) == {photos, scene}
