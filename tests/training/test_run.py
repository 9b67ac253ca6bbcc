# SPDX-License-Identifier: Apache-2.0
"""Whole runs at the smallest scale: resume, stop in time, learn, export."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from ns_sparseattn.evaluate.pairs import auc, pair_errors
from ns_sparseattn.geometry import quaternion_to_rotation
from ns_sparseattn.models import VGGT, VGGTOutput, load_vggt
from ns_sparseattn.models.loading import trained_side
from ns_sparseattn.models.shipped import SUMS, shipped_weights
from ns_sparseattn.models.weights import VGGT_FAMILY
from training.checkpoint import load_checkpoint
from training.config import CONFIGS, TrainingConfig
from training.export import export_weights, write_card
from training.export import main as export
from training.heldout import area, make_held_out, pair_angles, score
from training.log import append_row, read_rows
from training.plot import plot_run
from training.schedule import Budget
from training.targets import make_targets
from training.train import main
from training.trainer import Trainer

SMOKE = CONFIGS["smoke"]
CPU = torch.device("cpu")


def train(
    config: TrainingConfig, folder: Path, steps: int | None = None, minutes: float = 5.0
) -> tuple[Trainer, str]:
    trainer = Trainer(config, folder, device=CPU)
    return trainer, trainer.run(minutes=minutes, started=time.monotonic(), max_steps=steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole")
    _, reason = train(SMOKE, folder)
    assert reason == "the budget is spent"
    return folder


def test_an_interrupted_run_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    last = [train(SMOKE, tmp_path, steps=3)[0].step for _ in range(3)]
    assert last == [3, 6, 8]
    expected, found = load_checkpoint(whole), load_checkpoint(tmp_path)
    assert expected is not None
    assert found is not None
    assert expected[0].keys() == found[0].keys()
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    rows = [row for row in read_rows(tmp_path) if row["kind"] == "start"]
    assert [row["step"] for row in rows] == [0, 3, 6]


def test_a_compact_checkpoint_is_nearly_the_same(tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, checkpoint="compact")
    before, _ = train(config, tmp_path, steps=4)
    after = Trainer(config, tmp_path, device=CPU)
    assert after.step == 4
    weights = dict(after.model.named_parameters())
    for name, parameter in before.model.named_parameters():
        torch.testing.assert_close(weights[name], parameter, atol=1e-6, rtol=2.0**-16)
        torch.testing.assert_close(
            after.average[name], before.average[name], atol=1e-3, rtol=0, msg=name
        )
        before_moments, after_moments = (
            trainer.optimizer.moments(trainer.model.get_parameter(name))
            for trainer in (before, after)
        )
        assert after_moments.keys() == before_moments.keys()
        if "second" in before_moments:
            ratio = after_moments["second"] / before_moments["second"].clamp(min=1e-30)
            assert 0.9 < float(ratio.median()) < 1.1, name


def test_a_piece_ends_before_its_time_is_up(tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, budget=Budget(minutes=60.0))
    began = time.monotonic()
    trainer, reason = train(config, tmp_path, minutes=0.25)
    assert reason == "the time of this piece is up"
    assert trainer.step > 0
    assert time.monotonic() - began < 15.0
    kinds = [row["kind"] for row in read_rows(tmp_path)]
    assert kinds[0] == "start"
    assert kinds[-1] == "held_out"


def test_the_loss_falls(tmp_path: Path) -> None:
    # Few scenes, seen again and again.
    config = dataclasses.replace(
        SMOKE,
        budget=Budget(steps=50),
        log_steps=10,
        pool=dataclasses.replace(SMOKE.pool, reuse=1000.0),
    )
    train(config, tmp_path)
    losses = [row["loss"] for row in read_rows(tmp_path) if row["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_another_configuration_in_the_same_folder_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="is of a run with another configuration"):
        Trainer(dataclasses.replace(SMOKE, seed=1), whole, device=CPU)


def test_the_command_trains_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (1, 2):
        main(["smoke", "--resume", str(tmp_path), "--minutes", "5", "--steps", str(steps)])
    output = capsys.readouterr().out
    assert "Stopped at step 1, 12.5 % of the budget: the steps asked for are taken." in output
    assert "Stopped at step 3, 37.5 % of the budget" in output


def test_what_is_exported_is_read_by_the_package(whole: Path, tmp_path: Path) -> None:
    weights, card = tmp_path / "tiny.safetensors", tmp_path / "card.md"
    count = export_weights(whole, weights)
    assert weights.stat().st_size < 2 * count + 100_000
    model, _ = load_vggt(weights)
    assert model.config == SMOKE.model
    found = load_checkpoint(whole)
    assert found is not None
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, found[0][f"average/{name}"], atol=1e-6, rtol=2.0**-10)
    figures = write_card(whole, weights, card, name="smoke", machine="a test")
    text = card.read_text(encoding="utf-8")
    assert "$" not in text
    assert f"| rotation AUC@30 | {figures.rotation_auc_30:.3f} (" in text
    assert weights.name in text
    # Rounded to float16, the weights are as good as in the run's own measurement.
    last = [row for row in read_rows(whole) if row["kind"] == "held_out"][-1]
    assert figures.rotation_auc_30 == pytest.approx(last["rotation_auc_30"], abs=0.01)
    assert figures.depth_error == pytest.approx(last["depth_error"], abs=0.01)


def test_what_ships_is_checked_and_says_its_size(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.FOLDER", tmp_path)
    export([str(whole), "--ship", "--name", "smoke", "--machine", "a test"])
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.safetensors", "tiny.md", SUMS}
    path = shipped_weights("tiny.safetensors", tmp_path)
    assert trained_side(VGGT_FAMILY, str(path)) == 56
    for arguments in ([], ["--ship", "--output", "x.safetensors"]):
        with pytest.raises(SystemExit):
            export([str(whole), *arguments])


def test_what_cannot_be_exported_is_said(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint"):
        export_weights(tmp_path, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has no checkpoint"):
        write_card(tmp_path, tmp_path / "x", tmp_path / "y", name="", machine="")


def test_a_log_is_drawn_without_what_was_done_twice(whole: Path, tmp_path: Path) -> None:
    assert plot_run(whole).stat().st_size > 5000
    for kind, step in (("start", 0), ("train", 5), ("train", 10), ("start", 5), ("train", 10)):
        append_row(tmp_path, {"kind": kind, "step": step})
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 5, 5, 10]


def test_scores_know_the_truth_and_chance() -> None:
    batches = make_held_out(SMOKE.held_out, SMOKE.generator, CPU)
    again = make_held_out(SMOKE.held_out, SMOKE.generator, CPU)
    assert torch.equal(batches[0].images, again[0].images)
    truth = make_targets(batches[0])
    # In other units and another world.
    exact = VGGTOutput(cam_from_world=2.0 * truth.cam_from_world, depth=2.0 * truth.depth)
    exact.cam_from_world[..., :3] /= 2.0  # pyright: ignore[reportOptionalSubscript]
    result = score(_Oracle(exact), batches)
    assert result.num_pairs == 4 * 6
    assert result.rotation_auc_5 > 0.99
    assert result.direction_auc_30 > 0.99
    assert result.depth_error < 1e-4
    same = truth.cam_from_world[:, :1].expand_as(truth.cam_from_world)
    blind = score(_Oracle(VGGTOutput(cam_from_world=same, depth=exact.depth)), batches)
    assert blind.rotation_auc_30 == pytest.approx(blind.constant_rotation_auc_30, abs=1e-6)
    assert blind.direction_auc_30 == 0.0
    json.dumps(dataclasses.asdict(blind), allow_nan=False)


class _Oracle(VGGT):
    """A network that answers what it was given."""

    def __init__(self, output: VGGTOutput) -> None:
        super().__init__(SMOKE.model)
        self._output = output

    def forward(self, *_: object, **__: object) -> VGGTOutput:
        return self._output


def test_scores_are_those_that_the_package_reports() -> None:
    generator = torch.Generator().manual_seed(0)
    quaternions = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    quaternions[1] = quaternions[0] + 0.1 * quaternions[1]
    centers = torch.randn(2, 7, 3, 1, generator=generator, dtype=torch.float64)
    estimate, truth = torch.cat([quaternion_to_rotation(quaternions), centers], dim=-1)
    estimate[3] = estimate[2]
    errors = pair_errors(estimate, truth)
    angles, directions = pair_angles(estimate, truth)
    torch.testing.assert_close(angles, errors.rotation_deg)
    torch.testing.assert_close(directions, errors.direction_deg)
    for limit in (5, 30):
        assert area(angles, limit) == pytest.approx(auc(angles, limit))
    assert area(torch.tensor([90.0]), 30) == 0.0


def test_a_run_starts_from_exported_weights(whole: Path, tmp_path: Path) -> None:
    exported = tmp_path / "tiny.safetensors"
    export_weights(whole, exported)
    started = Trainer(SMOKE, tmp_path / "new", device=CPU, start=exported)
    assert started.step == 0
    found = load_checkpoint(whole)
    assert found is not None
    for name, parameter in started.model.named_parameters():
        average = found[0][f"average/{name}"]
        torch.testing.assert_close(parameter.detach(), average, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(started.average[name], parameter.detach())
    other = dataclasses.replace(SMOKE, model=dataclasses.replace(SMOKE.model, num_registers=2))
    with pytest.raises(ValueError, match="holds the weights of another network"):
        Trainer(other, tmp_path / "other", device=CPU, start=exported)
