# SPDX-License-Identifier: Apache-2.0
"""The network that ships, through the whole chain: photos, learned attention, poses, scene."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ns_sparseattn.attention_report import AttentionReport
from ns_sparseattn.demo_picture import draw_scene
from ns_sparseattn.evaluate import evaluate, read_poses
from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.pipeline import AttentionOptions, ProcessOptions, WeightsOptions, process
from ns_sparseattn.refine import RefineOptions
from ns_sparseattn.testing.synthetic import SyntheticScene, make_room, write_photos

TINY = WeightsOptions(weights="tiny", commercial=True, device="cpu")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticScene, Path]:
    """A rendered room, and its photos."""
    scene = make_room(num_views=7, size=(320, 240), step_deg=9.0)
    folder = tmp_path_factory.mktemp("photos")
    write_photos(scene, folder)
    return scene, folder


def test_photos_become_a_scene_that_matches_confirm(
    room: tuple[SyntheticScene, Path], tmp_path: Path
) -> None:
    truth, folder = room
    result = process(
        ProcessOptions(
            data=folder,
            output_dir=tmp_path / "scene",
            weights=TINY,
            attention=AttentionOptions(attention="balanced"),
            refine=RefineOptions(refine="fast"),
        )
    )
    assert result.is_trusted
    manifest = json.loads((tmp_path / "scene/manifest.json").read_text(encoding="utf-8"))
    assert manifest["weights"]["licence"] == "Apache-2.0"
    assert all(layer["density"] < 0.6 for layer in manifest["attention"])
    poses = torch.stack([image.cam_from_world for image in result.scene.images])
    known = torch.stack([view.cam_from_world for view in truth.views])
    errors = pair_errors(poses, known)
    assert float(errors.rotation_deg.median()) < 0.5
    assert float(errors.direction_deg.nanmedian()) < 1.0
    draw_scene(result.scene, tmp_path / "scene.png")
    assert (tmp_path / "scene.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", ["synth_table", "tum_desk"])
def test_real_photos_end_in_a_scene_that_is_right_or_not_trusted(
    shared: Path, tmp_path: Path, name: str
) -> None:
    result = process(
        ProcessOptions(
            data=shared / "data" / name / "images",
            output_dir=tmp_path / "scene",
            weights=TINY,
            refine=RefineOptions(accept_untrusted=True),
        )
    )
    known = read_poses(shared / "data" / name / "gt")
    pairs = evaluate(read_poses(tmp_path / "scene"), known).pairs
    assert pairs.rotation.median_deg < 1.0 or not result.is_trusted
    # What a matcher and a mapper make of these sets when they are told which photos to compare.
    assert pairs.rotation.auc[5] > 0.9


def test_its_attention_is_reported(room: tuple[SyntheticScene, Path], tmp_path: Path) -> None:
    report, _ = AttentionReport(
        data=room[1],
        output_dir=tmp_path / "report",
        weights=TINY,
        attention=AttentionOptions(attention="fast"),
        num_queries=32,
    ).run()
    assert len(report.layers) == 6
    # Learned attention is not spread evenly: the blocks that are kept hold more than their share.
    assert all(layer.kept_mass.mean > 1.3 * layer.density for layer in report.layers)
    facts = json.loads((tmp_path / "report/attention-report.json").read_text(encoding="utf-8"))
    assert max(facts["network_size"].values()) == 168
    assert facts["notes"] == []
