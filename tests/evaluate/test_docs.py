# SPDX-License-Identifier: Apache-2.0
"""What ``docs/evaluation.md`` tells people to run can be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from torch import Tensor

from ns_sparseattn.evaluate import evaluate, read_poses
from ns_sparseattn.geometry import invert_rigid
from ns_sparseattn.judging import Compare, Evaluate

from .conftest import FOCAL, make_model, write_text_model

PAGE = Path(__file__).resolve().parents[2] / "docs/evaluation.md"
DOCS = PAGE.read_text(encoding="utf-8").replace("\\\n", "")
COMMANDS = re.findall(
    r"^    ns-sparseattn ((?:evaluate|compare) .*?)(?:\s+#.*)?$", DOCS, re.MULTILINE
)
PYTHON = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_there_are_commands_for_every_data_set() -> None:
    assert len(COMMANDS) == len(re.findall(r"ns-sparseattn (?:evaluate|compare) ", DOCS))
    assert len(COMMANDS) >= 8
    assert len(PYTHON) == 2


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    command, *arguments = shlex.split(line)
    kind: Any = {"evaluate": Evaluate, "compare": Compare}[command]
    tyro.cli(kind, args=arguments)


def test_matrices_become_a_reference(tmp_path: Path, poses: Tensor) -> None:
    names = [f"frame-{index:06d}.color.png" for index in range(len(poses))]
    for name, pose in zip(names, invert_rigid(poses), strict=True):
        matrix = torch.cat([pose, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)])
        np.savetxt(tmp_path / name.replace(".color.png", ".pose.txt"), matrix.numpy())
    program: dict[str, Any] = {"__name__": "docs"}
    exec(PYTHON[0], program)  # The test is about this very text.
    program["write_reference"](tmp_path)
    result = evaluate(make_model(poses, names=names), read_poses(tmp_path))
    assert result.pairs.larger.max_deg == pytest.approx(0.0, abs=1e-6)
    assert result.intrinsics is not None
    assert result.intrinsics.focal_max == pytest.approx(1 - FOCAL / 525.0)


def test_means_over_scenes(tmp_path: Path, poses: Tensor) -> None:
    truth = write_text_model(tmp_path / "gt", poses)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, count in zip(paths, (6, 4), strict=True):
        scene = write_text_model(tmp_path / path.stem, poses[:count])
        Evaluate(scene=scene, reference=truth, json=path).main()
    program: dict[str, Any] = {"__name__": "docs"}
    exec(PYTHON[1], program)
    # All 15 pairs of the one scene, 6 of 15 of the other.
    for kind, figure in (("larger", "auc_vggt"), ("rotation", "recall"), ("direction", "recall")):
        assert program["mean"](paths, kind, figure, "5") == pytest.approx(100 * (1 + 6 / 15) / 2)
    assert set(json.loads(paths[0].read_text())["pairs"]) >= {"larger", "rotation", "direction"}
