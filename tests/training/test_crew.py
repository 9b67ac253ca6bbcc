# SPDX-License-Identifier: Apache-2.0
"""Processes that train together see different scenes and end with the same weights."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from training.config import CONFIGS, TrainingConfig
from training.crew import ALONE, Crew, join
from training.generator import Generator
from training.log import read_rows
from training.pool import ScenePool
from training.train import main
from training.trainer import Trainer

SMOKE = CONFIGS["smoke"]


def _agree(rank: int, folder: Path) -> None:
    crew = join(rank, 2, folder / "meeting")
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([4.0 * rank])]
    numbers = crew.agree(tensors, (0.1 + rank, 7.0))
    torch.save((tensors, numbers), folder / f"{rank}.pt")


def test_all_have_the_mean_and_the_numbers_of_the_first(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_agree, (tmp_path,), nprocs=2)
    for rank in range(2):
        (first, second), numbers = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(first, torch.full((2, 3), 0.5))
        assert torch.equal(second, torch.tensor([2.0]))
        assert numbers == [0.1, 7.0]


def test_alone_nothing_changes() -> None:
    tensor = torch.ones(3)
    assert ALONE.agree([tensor], (1.0, 2.0)) == [1.0, 2.0]
    assert torch.equal(tensor, torch.ones(3))


def test_each_process_has_scenes_of_its_own() -> None:
    config = SMOKE.generator
    pools = [
        ScenePool(Generator(config, seed=0), SMOKE.pool, 4, Crew(rank=rank, size=2))
        for rank in range(2)
    ]
    first, second = (pool.fetch(0, 2, 2, overlap=0.3) for pool in pools)
    assert not torch.equal(first.images, second.images)


def _train(rank: int, config: TrainingConfig, folder: Path) -> None:
    crew = join(rank, 2, folder / "meeting")
    trainer = Trainer(config, folder / "run", device=torch.device("cpu"), crew=crew)
    trainer.run(minutes=5.0, started=time.monotonic())
    torch.save(dict(trainer.model.state_dict()), folder / f"{rank}.pt")


def test_weights_stay_the_same_in_all_processes(tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, evaluate_minutes=0.01)
    torch.multiprocessing.spawn(_train, (config, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = Trainer(SMOKE, tmp_path / "start", device=torch.device("cpu")).model.state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    name = "camera_head.pose_branch.fc2.weight"
    assert not torch.equal(first[name], start[name])


def test_the_command_trains_with_two_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["smoke", "--resume", str(tmp_path), "--minutes", "5", "--processes", "2"]
    main([*command, "--threads", "1"])
    assert "Stopped at step 8, 100.0 % of the budget" in capfd.readouterr().out
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "start"] == [0]
    assert rows[-1]["kind"] == "held_out"
