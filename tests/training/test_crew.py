# SPDX-License-Identifier: Apache-2.0
"""Processes that train together see different scenes and end with the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.config import CONFIGS
from training.crew import ALONE, Crew
from training.generator import Generator
from training.log import read_rows
from training.pool import ScenePool
from training.train import main
from training.trainer import Trainer

SMOKE = CONFIGS["smoke"]


_ROOT = Path(__file__).parents[2]


def run_two(script: str, folder: Path) -> None:
    """Run a script as two processes, as processes that were spawned do not find test modules.

    It finds `crew`, `folder` and `rank`.
    """
    start = (
        "import sys\nfrom pathlib import Path\nimport torch\n"
        "from training.crew import join, leave\n"
        "torch.set_num_threads(1)\n"
        "rank, folder = int(sys.argv[1]), Path(sys.argv[2])\n"
        "crew = join(rank, 2, folder / 'meeting')\n"
    )
    command = [sys.executable, "-c", start + script + "leave()\n"]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=_ROOT) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


def test_all_have_the_mean_and_the_numbers_of_the_first(tmp_path: Path) -> None:
    run_two(
        "tensors = [torch.full((2, 3), float(rank)), torch.tensor([4.0 * rank])]\n"
        "numbers = crew.agree(tensors, (0.1 + rank, 7.0))\n"
        "torch.save((tensors, numbers), folder / f'{rank}.pt')\n",
        tmp_path,
    )
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


def test_weights_stay_the_same_in_all_processes(tmp_path: Path) -> None:
    run_two(
        "import time\nfrom dataclasses import replace\nfrom training.config import CONFIGS\n"
        "from training.trainer import Trainer\n"
        "config = replace(CONFIGS['smoke'], evaluate_minutes=0.01)\n"
        "cpu = torch.device('cpu')\n"
        "trainer = Trainer(config, folder / 'run', device=cpu, crew=crew)\n"
        "trainer.run(minutes=5.0, started=time.monotonic())\n"
        "torch.save(dict(trainer.model.state_dict()), folder / f'{rank}.pt')\n",
        tmp_path,
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = Trainer(SMOKE, tmp_path / "start", device=torch.device("cpu")).model.state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    name = "camera_head.pose_branch.fc2.weight"
    assert not torch.equal(first[name], start[name])


def test_the_command_wants_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["smoke", "--resume", str(tmp_path), "--minutes", "5", "--processes", "0"])
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_trains_with_two_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["smoke", "--resume", str(tmp_path), "--minutes", "5", "--processes", "2"]
    main([*command, "--threads", "1"])
    assert "Stopped at step 8, 100.0 % of the budget" in capfd.readouterr().out
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "start"] == [0]
    assert rows[-1]["kind"] == "held_out"
