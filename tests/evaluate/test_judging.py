# SPDX-License-Identifier: Apache-2.0
"""The commands as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from torch import Tensor

from ns_sparseattn.judging import Compare, Evaluate

from .conftest import rigid, tum_lines, turn, write_text_model


@pytest.fixture
def models(tmp_path: Path, poses: Tensor) -> tuple[Path, Path]:
    """An estimate whose third camera is turned by 2 degrees, and the truth with one image more."""
    estimate = poses[:5].clone()
    center = -poses[2, :, :3].T @ poses[2, :, 3]
    estimate[2] = rigid(turn((0, 0, 1), 2.0) @ poses[2, :, :3], center)
    return write_text_model(tmp_path / "scene", estimate), write_text_model(tmp_path / "gt", poses)


def test_the_table_says_what_counts(
    models: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scene, truth = models
    Evaluate(scene=scene, reference=truth).main()
    out = capsys.readouterr().out
    # 10 pairs of 15 have an estimate, 6 of these have no rotation error.
    assert re.search(r"RRA, rotation below +40\.0 +66\.7 +66\.7", out)
    assert "5 of 6 images, 10 pairs; matched by whole name." in out
    assert "Missing, counted as failures (5 pairs): 005.jpg." in out
    assert "Focal length off by 0.00 %" in out
    table = [line for line in out.splitlines() if re.search(r"RRA|RTA|AUC", line)]
    assert len(table) == 6
    assert all(len(line) <= 80 for line in table)


def test_json_goes_to_a_file_or_to_standard_output_alone(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, truth = models
    Evaluate(scene=scene, reference=truth, json=Path("-")).main()
    shown = json.loads(capsys.readouterr().out)
    Evaluate(scene=scene, reference=truth, json=tmp_path / "figures.json").main()
    assert "5 of 6 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text()) == shown
    assert shown["format"] == "ns_sparseattn evaluation"
    assert shown["missing"] == ["005.jpg"]
    assert shown["pairs"]["rotation"]["recall"]["1"] == pytest.approx(6 / 15)
    assert shown["pairs"]["rotation"]["max_deg"] == pytest.approx(2.0)
    assert shown["trajectory"]["rmse"] == pytest.approx(0.0, abs=1e-9)


def test_photos_restrict_the_reference(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, truth = models
    (tmp_path / "photos").mkdir()
    for index in range(5):
        (tmp_path / "photos" / f"{index:03d}.jpg").touch()
    Evaluate(scene=scene, reference=truth, photos=tmp_path / "photos").main()
    assert "5 of 5 images" in capsys.readouterr().out


def test_a_user_sees_a_sentence_and_exit_code_1(
    tmp_path: Path, poses: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_text_model(tmp_path / "scene", poses)
    (tmp_path / "groundtruth.txt").write_text(tum_lines(poses, [float(i) for i in range(6)]))
    with pytest.raises(SystemExit) as caught:
        Evaluate(scene=scene, reference=tmp_path / "nowhere").main()
    assert caught.value.code == 1
    assert "There is no" in capsys.readouterr().err


def test_two_scenes_side_by_side(
    models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scene, truth = models
    Compare(first=truth, second=scene).main()
    out = capsys.readouterr().out
    assert re.search(r"first: COLMAP model +6 +1 +0", out)
    assert re.search(r"second: COLMAP model +5 +1 +0", out)
    assert "left out: 005.jpg." in out
    assert re.search(r"RRA, rotation below +60\.0 +100\.0", out)
