# SPDX-License-Identifier: Apache-2.0
"""Recorded outputs of networks that were told something follow from each thing that was told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ns_sparseattn.testing.golden import check_file


def agreeing_outputs(path: Path, tmp_path: Path, *, untold: str | None = None) -> dict[str, bool]:
    """Whether each output agrees with a file, also if part of what was told is withheld."""
    with np.load(path) as stored:
        arrays = dict(stored)
    if untold is not None:
        withheld = [name for name in arrays if name.startswith("in_") and untold in name]
        assert withheld
        for name in withheld:
            del arrays[name]
    copy = tmp_path / path.name
    np.savez(copy, **arrays)
    return {r.array: r.ok for r in check_file(copy) if r.array.startswith("out_")}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        # Each frame of these was told something else.
        ("pi3x_small_wide_partial", ["pose", "depth", "ray"]),
        # No depth is told without intrinsics, so those of a frame without depth are withheld.
        ("map_small_partial", ["camera_poses", "depth_z", "view0_intrinsics"]),
        ("map_small_v1_all", ["camera_poses", "depth_z"]),
        ("map_small_all_nonmetric", ["is_metric_scale"]),
    ],
)
def test_each_thing_told_is_heard(
    golden_folder: Path, tmp_path: Path, name: str, parts: list[str]
) -> None:
    path = golden_folder / f"{name}.npz"
    agree = agreeing_outputs(path, tmp_path)
    assert agree
    assert all(agree.values())
    for part in parts:
        assert not any(agreeing_outputs(path, tmp_path, untold=part).values()), part
