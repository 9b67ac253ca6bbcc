# SPDX-License-Identifier: Apache-2.0
"""``python -m training.train NAME --minutes 9 --resume DIR``: begin or go on with a run.

Stops by itself in time, with everything saved; the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from pathlib import Path

import torch

from training.config import CONFIGS
from training.schedule import Budget
from training.trainer import Trainer

STARTED = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=sorted(CONFIGS), help="which run")
    parser.add_argument("--resume", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, required=True, help="length of this piece")
    parser.add_argument("--steps", type=int, help="steps of this piece at most")
    parser.add_argument("--budget-minutes", type=float, help="length of the whole run, all pieces")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, help="threads of the CPU, those of torch if not given"
    )
    parser.add_argument("--compile", action="store_true", help="compile blocks: a slow start")
    args = parser.parse_args(arguments)
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
            config, args.resume, device=device, workers=workers, is_compiled=args.compile
        )
    except ValueError as error:
        parser.error(str(error))
    reason = trainer.run(minutes=args.minutes, started=STARTED, max_steps=args.steps)
    print(
        f"Stopped at step {trainer.step}, {100 * trainer.progress:.1f} % of the budget: {reason}."
    )


if __name__ == "__main__":
    main()
