# SPDX-License-Identifier: Apache-2.0
"""``ns-process-data sparse-vggt`` works beside nerfstudio's own sub-commands, which stay as is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ns_sparseattn.export import is_scene_folder

OURS = {"sparse-vggt", "sparse-pi3", "sparse-pi3x", "sparse-mapanything"}
SMALL = ("--weights", "seeded-small", "--long-side", "56", "--refine", "none")


def arguments(photos: Path, scene: Path) -> tuple[str, ...]:
    return ("sparse-vggt", "--data", str(photos), "--output-dir", str(scene))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run ``ns-process-data`` in this process, which the start-up hook serves as well."""
    from nerfstudio.scripts.process_data import entrypoint

    logger = logging.getLogger("ns_sparseattn")
    before = logger.handlers, logger.level, logger.propagate

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ns-process-data", *arguments])
        try:
            entrypoint()
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        return 0

    monkeypatch.setenv("COLUMNS", "200")
    yield run
    logger.handlers, logger.level, logger.propagate = before


def test_real_command_makes_a_scene(
    run: Callable[..., subprocess.CompletedProcess[str]], photos: Path, tmp_path: Path
) -> None:
    result = run("ns-process-data", *arguments(photos, tmp_path / "scene"), *SMALL)
    assert result.returncode == 0, result.stderr
    assert "9 images posed" in result.stdout
    assert is_scene_folder(tmp_path / "scene")


def test_error_is_exit_code_1_with_a_sentence_and_without_a_traceback(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # nerfstudio's own sub-commands end with 0 on most errors.
    (tmp_path / "empty").mkdir()
    assert command(*arguments(tmp_path / "empty", tmp_path / "scene"), *SMALL) == 1
    errors = capsys.readouterr().err
    assert "holds no photos: it is empty." in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "scene").exists()
    assert command(*arguments(tmp_path / "empty", tmp_path / "scene"), *SMALL, "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err


def test_unusable_command_line_is_exit_code_2(
    command: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments(photos, tmp_path / "scene"), "--density", "0.5") == 2
    assert "have no effect" in capsys.readouterr().err


def test_help_lists_the_flags_that_nerfstudio_users_know(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sparse-vggt", "--help") == 0
    shown = capsys.readouterr().out
    for flag in ("--data", "--output-dir", "--eval-data", "--verbose", "--num-downscales"):
        assert flag in shown
    assert "--camera-type" in shown


HELP = """
import contextlib, io, json, sys, typing
from nerfstudio.scripts import process_data

names = [typing.get_args(member)[1].name for member in typing.get_args(process_data.Commands)]
helps = {}
for name in names:
    sys.argv = ["ns-process-data", name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        process_data.entrypoint()
    helps[name] = shown.getvalue()
print("HELP", json.dumps(helps))
"""


def test_help_of_every_other_sub_command_is_the_same_with_and_without_ours() -> None:
    def helps(**variables: str) -> dict[str, str]:
        result = subprocess.run(
            [sys.executable, "-c", HELP],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **variables},
        )
        return json.loads(result.stdout.partition("HELP")[2])

    with_ours = helps()
    without = helps(NS_SPARSEATTN_NO_HOOK="1")
    assert set(with_ours) - set(without) == OURS
    for name in OURS:
        assert "--weights" in with_ours[name]
        assert "--model" not in with_ours[name]
    assert {"images", "video", "polycam", "record3d"} <= set(without)
    for name, shown in without.items():
        assert f"usage: ns-process-data {name}" in shown
        assert with_ours[name] == shown
