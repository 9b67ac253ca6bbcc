# SPDX-License-Identifier: Apache-2.0
"""What every model returns: cameras, depth and confidence in network pixels.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .attention.stats import LayerStats
from .errors import check_tensor

ScaleKind = Literal["relative", "metric"]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage of a run cost."""

    name: str
    time_ms: float
    peak_memory_gib: float
    """Peak of the process (CPU) or of the device allocator (CUDA) up to the end of the stage."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's view of all frames in one world frame. All tensors are float32 on the CPU.

    Nothing here is checked for plausibility: an untrained or failing model gives finite or
    non-finite nonsense, and `ns_sparseattn.scene.build_scene` says so.
    """

    cam_from_world: Tensor  # [F, 3, 4]
    """Rigid transforms from the model's world into each camera, OpenCV axes."""
    intrinsics: Tensor  # [F, 3, 3]
    """Pinhole intrinsics in network pixels, centre of the first pixel at (0.5, 0.5)."""
    depth: Tensor  # [F, H, W]
    """z-depth in the model's scale."""
    confidence: Tensor  # [F, H, W]
    """The model's own value; larger is better; comparable within one prediction only."""
    scale: ScaleKind = "relative"
    """Whether lengths are meant to be metres, or have a scale of their own in each prediction."""
    attention: tuple[LayerStats, ...] = ()
    """What each global attention layer did."""
    stages: tuple[StageRecord, ...] = ()
    """Time and memory of the model's own stages."""
    notes: tuple[str, ...] = field(default=())
    """Sentences that the user should read."""

    def __post_init__(self) -> None:
        check_tensor("cam_from_world", self.cam_from_world, ("F", 3, 4), is_floating=True)
        num_frames = self.cam_from_world.shape[0]
        check_tensor("intrinsics", self.intrinsics, (num_frames, 3, 3), is_floating=True)
        check_tensor("depth", self.depth, (num_frames, "H", "W"), is_floating=True)
        check_tensor("confidence", self.confidence, tuple(self.depth.shape), is_floating=True)

    @property
    def num_frames(self) -> int:
        """Frames that were predicted."""
        return int(self.depth.shape[0])

    def confidence_rank(self) -> Tensor:
        """Return the confidence on one scale for all models.

        Returns:
            ``[F, H, W]`` float32 in [0, 1): the share of all pixels that have less confidence. What
            is no number counts as the least.
        """
        values = self.confidence.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        ordered = values.flatten().sort().values
        lower = torch.searchsorted(ordered, values.flatten())
        return (lower / len(ordered)).float().reshape(values.shape)
