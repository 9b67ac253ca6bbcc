# SPDX-License-Identifier: Apache-2.0
"""Random selection is the floor, rows of a run replace those of the last, tables say it right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from benchmarks.accuracy import Kind, make_plan, measure
from benchmarks.accuracy_tables import claims_table, density_table
from benchmarks.random_selection import RandomSelection
from benchmarks.rows import append, read, replace
from ns_sparseattn.attention import AttentionPlan, AttentionRun, BlockSparsePolicy, TokenLayout
from ns_sparseattn.attention.recording import record_block_maps
from ns_sparseattn.models.seeded import make_seeded_vggt
from training.config import CONFIGS
from training.heldout import make_held_out

TOKENS = TokenLayout(num_frames=6, num_special=2, grid_height=5, grid_width=7)


def test_random_selection_keeps_as_many_blocks_and_other_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, TOKENS.num_tokens, 32, generator=generator) for _ in range(3))
    maps, densities = [], []
    for selector in (None, RandomSelection(0), RandomSelection(0), RandomSelection(1)):
        policy = BlockSparsePolicy(max_density=0.25, block_k=16, coarse=False, selector=selector)
        run = AttentionRun(AttentionPlan(default=policy), TOKENS, 1)
        with record_block_maps() as recorded:
            run.attend(0, q, k, v)
        maps.append(recorded[0])
        densities.append(run.stats[0].density)
    ours, first, again, other = maps
    for found in (first, again, other):
        assert torch.equal(found.counts, ours.counts)
        assert int(found.columns.max()) < found.num_listed_k_blocks
        assert found.num_sink_k_blocks == ours.num_sink_k_blocks
    # 210 patches: padding fills the last key block of 16 in part and no block wholly.
    assert densities == pytest.approx([densities[0]] * 4, abs=0.02)
    assert torch.equal(first.columns, again.columns)
    assert not torch.equal(first.columns, other.columns)
    assert not torch.equal(first.columns, ours.columns)


def test_random_selection_takes_no_block_without_keys() -> None:
    q = torch.randn(1, 2, 64, 8)
    key_mask = torch.ones(1, 64, dtype=torch.bool)
    key_mask[:, 32:48] = False
    found = RandomSelection()(
        q,
        q,
        key_mask=key_mask,
        max_density=1.0,
        block_q=32,
        block_k=16,
        num_full_q_blocks=0,
        num_sink_k_blocks=0,
    )
    assert found.columns.tolist() == [0, 1, 3] * 4


def test_every_plan_runs_and_dense_keeps_everything() -> None:
    config = CONFIGS["smoke"]
    (batch,) = make_held_out(config.held_out, config.generator, "cpu")
    model = make_seeded_vggt(config.model)
    dense = measure(model, batch, AttentionPlan.dense())
    assert (dense["density"], dense["kept_mass"]) == (1.0, pytest.approx(1.0, abs=1e-4))
    for kind in get_args(Kind):
        row = measure(model, batch, make_plan(kind, 0.25, 4, early_layers=1))
        assert row["pairs"] == 4 * 6
        assert 0.0 < row["density"] < 0.7
        assert 0.0 < row["kept_mass"] < 1.0
        assert set(row["rotation_auc"]) == {"1", "3", "5", "10", "30"}
        assert (row["layers"]["kept_mass_with_means"][-1] is not None) == ("means" in kind)
        is_early = row["layers"]["density"][0] == pytest.approx(0.25)
        assert is_early == ("early" in kind)


def test_rows_of_a_run_replace_those_of_the_last(tmp_path: Path) -> None:
    append("x", [{"views": 8, "n": 1}, {"views": 24, "n": 2}, {"views": 8, "n": 3}], tmp_path)
    replace("x", [{"views": 8, "n": 4}], ("views",), tmp_path)
    assert read("x", tmp_path) == [{"views": 24, "n": 2}, {"views": 8, "n": 4}]


def _row(kind: str, asked: float, area: float, block_k: int | None = 16) -> dict[str, Any]:
    areas = dict.fromkeys(("1", "3", "5", "10", "30"), area)
    return {
        "views": 8,
        "kind": kind,
        "asked": asked,
        "block_k": block_k,
        "density": asked,
        "kept_mass": 0.5,
        "rotation_auc": areas,
        "direction_auc": areas,
        "machine": {"device": "a", "cores": 2, "memory_gib": 1.0, "torch": "2"},
    }


def test_claims_are_judged_by_the_rows() -> None:
    rows = [
        _row("dense", 1.0, 0.70, None),
        _row("ours + means", 0.25, 0.695),
        _row("ours + means", 0.1, 0.6),
        _row("paper", 0.25, 0.65),
        _row("random", 0.25, 0.1),
    ]
    line = claims_table(rows).splitlines()[2]
    assert line == (
        "| 8 | 16 | rotation AUC@5 | 0.700 | 0.695 | 0.600 | 0.650 | 0.100 | yes | no |"
    )
    assert "| 8 | 16 | paper |  | 0.25, 0.50: 0.65 / 0.65 / 0.65 |" in density_table(rows)
