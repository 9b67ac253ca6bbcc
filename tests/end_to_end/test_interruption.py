# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped, wherever, leaves no half scene, and the next one makes the same scene."""

from __future__ import annotations

import filecmp
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
from ns_sparseattn.testing.synthetic import make_room, write_photos

from .conftest import leftovers

TIMEOUT_S = 120


def arguments(photos: Path, scene: Path, *more: str) -> list[str]:
    paths = ["--data", str(photos), "--output-dir", str(scene)]
    return ["process", "vggt", *paths, "--weights", "seeded-small", "--long-side", "56", *more]


def start(scratch: Path, *command: str) -> subprocess.Popen[str]:
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [Path(sys.executable).with_name("ns-sparseattn"), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos that take a moment to write, since smaller copies are made of them."""
    view = draw_view((1800, 1200))
    for i in range(8):
        write_photo(tmp_path / f"photos/img_{i}.jpg", view.rotate(i))
    return tmp_path / "photos"


def stop_while_writing(photos: Path, scene: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal as soon as its staging folder is there, and wait for it."""
    run = start(photos.parent / "scratch", *arguments(photos, scene, "--refine", "none"))
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
    assert set(tmp_path.iterdir()) == {photos, tmp_path / "scratch"}
    assert not list((tmp_path / "scratch").iterdir())


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
    result = ns_sparseattn(*arguments(photos, scene, "--refine", "none"))
    assert result.returncode == 0, result.stderr
    assert is_scene_folder(scene)
    assert set(tmp_path.iterdir()) == {photos, scene, tmp_path / "scratch"}


STAGES = {
    "photos are loaded": "Loaded 8 photos",
    "the network has run": "depth:",
    "features are found": "Refinement, features",
    "pairs are matched": "Refinement, pairs",
    "poses are adjusted": "Adjustment:",
}
"""What the log says once a run has come so far."""


def kill_once_it_says(words: str, scratch: Path, *command: str) -> None:
    """Start a run, read its log up to some words, and kill it."""
    run = start(scratch, *command, "--verbose")
    assert run.stderr is not None
    assert any(words in line for line in run.stderr), f"It ended without saying {words!r}."
    run.kill()
    run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == -signal.SIGKILL


def test_killed_at_any_stage_and_run_again_it_ends_in_the_same_scene(
    tmp_path: Path, ns_sparseattn: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    photos, scratch = tmp_path / "photos", tmp_path / "scratch"
    write_photos(make_room(num_views=8, size=(320, 240), step_deg=9.0), photos)
    undisturbed = ns_sparseattn(*arguments(photos, tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    command = arguments(photos, tmp_path / "scene")
    for words in STAGES.values():
        kill_once_it_says(words, scratch, *command)
        assert set(tmp_path.iterdir()) == {photos, scratch, tmp_path / "undisturbed"}
    again = ns_sparseattn(*command)
    assert again.returncode == 0, again.stderr
    ours, theirs = tmp_path / "scene", tmp_path / "undisturbed"
    names = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert names == {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    # The manifest holds times, the config the folder's name.
    names -= {Path("manifest.json"), Path("config.json")}
    differing = [name for name in names if not filecmp.cmp(ours / name, theirs / name, False)]
    assert not differing
