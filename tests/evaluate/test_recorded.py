# SPDX-License-Identifier: Apache-2.0
"""Recorded COLMAP models with figures that other code computed for them (``results.json``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ns_sparseattn.evaluate import evaluate, read_poses

SETS = ("lund_door", "synth_table", "tum_desk", "synth_room")


@pytest.mark.parametrize("name", SETS)
def test_truth_against_itself_is_perfect(name: str, shared: Path) -> None:
    truth = read_poses(shared / "data" / name / "gt")
    result = evaluate(truth, truth)
    for curve in (result.pairs.rotation, result.pairs.direction, result.pairs.larger):
        assert set(curve.auc.values()) == set(curve.recall.values()) == {1.0}
        assert curve.max_deg == 0.0
    assert result.trajectory is not None
    assert result.trajectory.rmse_share < 1e-9
    assert result.intrinsics is not None
    assert result.intrinsics.focal_max == 0.0


@pytest.mark.parametrize("name", SETS)
def test_recorded_models_get_the_recorded_figures(name: str, shared: Path) -> None:
    folder = shared / "data" / name
    recorded = json.loads((folder / "reference_colmap/results.json").read_text())
    expected = recorded["delivered_size"]["eval"]
    result = evaluate(read_poses(folder / "reference_colmap/sparse"), read_poses(folder / "gt"))
    assert result.num_images == expected["gt_images"]
    assert result.num_images - len(result.missing) == expected["registered"]
    pairs = result.pairs
    areas = [100 * pairs.larger.auc[limit] for limit in (5, 10, 30)]
    assert areas == pytest.approx(expected["auc_max_all_pairs@5/10/30"], abs=0.006)
    if not result.missing:
        # The recorded areas of one kind leave missing images out.
        for curve, key in ((pairs.rotation, "auc_rot"), (pairs.direction, "auc_trans")):
            areas = [100 * curve.auc[limit] for limit in (5, 10, 30)]
            assert areas == pytest.approx(expected[f"{key}@5/10/30"], abs=0.006)
    assert pairs.rotation.median_deg == pytest.approx(expected["pair_rot_deg_median"], abs=1e-3)
    assert pairs.direction.median_deg == pytest.approx(expected["pair_trans_deg_median"], abs=1e-3)
    assert result.trajectory is not None
    assert result.trajectory.rmse == pytest.approx(expected["ate_rmse"], rel=1e-3)


def test_a_pure_rotation_is_judged_by_rotation(shared: Path) -> None:
    truth = read_poses(shared / "data/hard/pure_rotation/gt")
    result = evaluate(truth, truth)
    assert result.pairs.num_without_direction == result.pairs.num_pairs == 45
    assert result.pairs.larger.auc[1] == 1.0
