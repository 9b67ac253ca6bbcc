# SPDX-License-Identifier: Apache-2.0
"""Processes that train one network together, each on its share of the scenes of every step.

They meet once a step, when gradients are averaged. Threads of one process would meet in every
layer, and the layers of a small network are short.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = datetime.timedelta(minutes=20)
"""How long the others wait while the first process measures and saves."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """A process's place among those that train together."""

    rank: int = 0
    """Which one it is; the first writes log and checkpoint."""
    size: int = 1
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def agree(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        """Replace tensors by their mean over all processes, in place.

        Args:
            tensors: The same shapes in every process, float32.
            numbers: Numbers of this process.

        Returns:
            The first process's numbers, the same in every process to the last bit, so that all
            decide alike.
        """
        if self.size == 1:
            return list(numbers)
        own = torch.tensor(numbers if self.is_first else [0.0] * len(numbers), dtype=torch.float64)
        dist.all_reduce(own)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))
        return own.tolist()


ALONE = Crew()
"""One process."""


def join(rank: int, size: int, meeting_point: Path) -> Crew:
    """Meet the other processes.

    Args:
        rank: Of this process.
        size: Number of processes.
        meeting_point: A file that does not exist yet, the same for all.
    """
    dist.init_process_group(
        "gloo",
        init_method=meeting_point.absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    return Crew(rank=rank, size=size)


def leave() -> None:
    """Part from the other processes; without it the end of a process may abort it."""
    dist.destroy_process_group()
