# SPDX-License-Identifier: Apache-2.0
"""Our Pi3 and Pi3X against recorded outputs of the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from .golden_files import assert_file_agrees


@pytest.mark.parametrize("name", ["pi3_small_native", "pi3x_small_wide_partial", "units_pi3"])
def test_small_files_are_within_tolerance(golden_folder: Path, name: str) -> None:
    assert_file_agrees(golden_folder / f"{name}.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "pi3_small_wide",
        "pi3x_small_native_images",
        "pi3x_small_wide_images",
        "pi3x_small_wide_all",
        "pi3x_small_wide_pose",
    ],
)
def test_other_small_files_are_within_tolerance(shared: Path, name: str) -> None:
    assert_file_agrees(shared / "models" / "golden_a" / f"{name}.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "pi3_full_outputs",
        "pi3_full_outputs_layers",
        "pi3x_full_all",
        "pi3x_full_all_layers",
        "pi3x_full_images",
        "pi3x_full_images_layers",
    ],
)
def test_full_size_files_are_within_tolerance(shared: Path, name: str) -> None:
    assert_file_agrees(shared / "models" / "golden_a" / f"{name}.npz")
