# SPDX-License-Identifier: Apache-2.0
"""The example of docs/adding-a-model.md adds a model to the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ns_sparseattn.testing.photos import write_hard_case

PAGE = Path(__file__).resolve().parents[2] / "docs/adding-a-model.md"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package, made of the page's two listings."""
    page = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (table,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    group, entry = re.fullmatch(r'\[project.entry-points."(.*)"\]\n(.*)\n', table).groups()  # type: ignore[union-attr]
    folder = tmp_path / "site"
    (folder / "flat_model-1.0.dist-info").mkdir(parents=True)
    (folder / "flat_model.py").write_text(code, encoding="utf-8")
    info = folder / "flat_model-1.0.dist-info"
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-model\nVersion: 1.0\n")
    return folder


def test_the_example_makes_a_scene(package: Path, tmp_path: Path, ns_sparseattn: Command) -> None:
    photos = write_hard_case(tmp_path / "photos", "two_images")
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path}
    scene = tmp_path / "scene"
    options = ("--weights", "seeded-small", "--device", "cpu", "--long-side", "112")
    options += ("--refine", "none")
    made = ns_sparseattn(
        "process", "flat", "--data", photos, "--output-dir", scene, *options, **variables
    )
    assert made.returncode == 0, made.stderr
    manifest = json.loads((scene / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == "flat"
    assert manifest["reference"] is None
    listed = ns_sparseattn("models", **variables).stdout
    assert "flat         flat (default)" in listed


def test_nerfstudio_offers_it(package: Path) -> None:
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    shown = subprocess.run(
        [Path(sys.executable).with_name("ns-process-data"), "sparse-flat", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )
    assert "Process photos with flat and sparse attention" in shown.stdout


def test_without_the_package_the_name_is_unknown(tmp_path: Path, ns_sparseattn: Command) -> None:
    refused = ns_sparseattn("process", "flat", "--data", tmp_path, "--output-dir", tmp_path / "s")
    assert refused.returncode == 2
    assert "invalid choice" in refused.stderr
