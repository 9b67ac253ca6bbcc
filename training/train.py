# SPDX-License-Identifier: Apache-2.0
"""``python -m training.train NAME --minutes 9 --resume DIR``: begin or go on with a run.

Stops by itself in time, with everything saved; the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import time
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from training.config import CONFIGS
from training.crew import ALONE, Crew, join, leave
from training.schedule import Budget
from training.trainer import Trainer

STARTED = time.monotonic()


def main(arguments: list[str] | None = None, *, started: float | None = None) -> None:
    """Read the command line and train.

    Args:
        arguments: Those of the command line, if not given.
        started: `time.monotonic` when the piece began, if before now.
    """
    started = time.monotonic() if started is None else started
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=sorted(CONFIGS), help="which run")
    parser.add_argument("--resume", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, required=True, help="length of this piece")
    parser.add_argument("--steps", type=int, help="steps of this piece at most")
    parser.add_argument("--budget-minutes", type=float, help="length of the whole run, all pieces")
    parser.add_argument("--start", type=Path, help="exported weights that a new run begins with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, help="threads of the CPU, those of torch if not given"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="that share each step, with --threads each"
    )
    parser.add_argument("--compile", action="store_true", help="compile blocks: a slow start")
    args = parser.parse_args(arguments)
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, got {args.processes}")
    if args.processes == 1:
        print(_train(args, ALONE, started))
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train_in_crew, (args, Path(folder) / "meeting", started), nprocs=args.processes)


def _train_in_crew(
    rank: int, args: argparse.Namespace, meeting_point: Path, started: float
) -> None:
    crew = join(rank, args.processes, meeting_point)
    message = _train(args, crew, started)
    leave()
    if crew.is_first:
        print(message)


def _train(args: argparse.Namespace, crew: Crew, started: float) -> str:
    """Train for a piece; return what to say at its end."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    config = CONFIGS[args.config]
    if args.budget_minutes:
        config = dataclasses.replace(config, budget=Budget(minutes=args.budget_minutes))
    device = torch.device(args.device)
    if device.type == "cuda":
        # Float32 convolutions and products of the heads in 19 bits: training does not notice.
        torch.backends.cuda.matmul.allow_tf32 = True
    workers = 1 if device.type == "cuda" else torch.get_num_threads()
    try:
        trainer = Trainer(
            config,
            args.resume,
            device=device,
            workers=workers,
            crew=crew,
            start=args.start,
            is_compiled=args.compile,
        )
    except ValueError as error:
        raise SystemExit(f"training: {error}") from error
    reason = trainer.run(minutes=args.minutes, started=started, max_steps=args.steps)
    return (
        f"Stopped at step {trainer.step}, {100 * trainer.progress:.1f} % of the budget: {reason}."
    )


if __name__ == "__main__":
    main(started=STARTED)
