# SPDX-License-Identifier: Apache-2.0
"""Everything that is known of some photos, and how a network is told of it.

Axes: ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..evaluate.read import read_poses
from ..frames.masks import name_some
from ..frames.types import Frame, Frames
from ..models.priors import FramePrior
from ..models.registry import ModelEntry
from .depth import read_depth
from .intrinsics import read_intrinsics
from .matching import match_photos
from .options import KnownOptions


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of each photo; ``None`` where nothing is."""

    intrinsics: tuple[Tensor | None, ...]  # [3, 3] float64
    """Pinhole intrinsics in original pixels."""
    cam_from_world: tuple[Tensor | None, ...]  # [3, 4] float64
    """Poses in one world."""
    depth: tuple[Tensor | None, ...]  # [H, W] float32
    """z-depth in metres at network size, 0 where unknown."""
    calibrated: frozenset[int] = frozenset()
    """Photos whose intrinsics are so well known that no refinement should touch them."""
    has_metric_poses: bool = False
    """Whether the unit of the poses is the metre."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""

    @property
    def posed(self) -> tuple[int, ...]:
        """Photos whose pose is known."""
        return tuple(i for i, pose in enumerate(self.cam_from_world) if pose is not None)

    def priors(self, frames: tuple[Frame, ...], entry: ModelEntry) -> list[FramePrior | None]:
        """Return what a network is told of each photo: what it takes, in network pixels."""
        return [self._prior(index, frame, entry) for index, frame in enumerate(frames)]

    def _prior(self, index: int, frame: Frame, entry: ModelEntry) -> FramePrior | None:
        intrinsics, pose, depth = (
            values[index] if kind in entry.told else None
            for kind, values in (
                ("intrinsics", self.intrinsics),
                ("poses", self.cam_from_world),
                ("depth", self.depth),
            )
        )
        if entry.depth_needs_intrinsics and intrinsics is None:
            depth = None
        if intrinsics is None and pose is None and depth is None:
            return None
        if intrinsics is not None:
            intrinsics = frame.pixel_map.intrinsics_to_network(intrinsics).float()
        return FramePrior(
            intrinsics=intrinsics,
            cam_from_world=None if pose is None else pose.float(),
            depth=depth,
            is_pose_metric=self.has_metric_poses,
        )


def load_known(options: KnownOptions, photos: Frames) -> Known | None:
    """Read what is known of photos; ``None`` if the options name nothing.

    Raises:
        ValueError: If a file is missing, of no known kind, or does not fit the photos; the message
            names it.
        ReconstructionError: If pycolmap cannot read a model.
    """
    if options.is_empty:
        return None
    nothing = (None,) * len(photos)
    intrinsics, poses, depth = nothing, nothing, nothing
    calibrated: frozenset[int] = frozenset()
    notes: list[str] = []
    if options.intrinsics is not None:
        intrinsics, calibrated, found = read_intrinsics(options.intrinsics, photos.frames)
        notes += found
    if options.poses is not None:
        poses, found = _read_poses(options.poses, photos.frames)
        notes += found
    if options.depth is not None:
        depth, found = read_depth(options.depth, photos.frames, unit_m=options.depth_unit)
        notes += found
    return Known(
        intrinsics=intrinsics,
        cam_from_world=poses,
        depth=depth,
        calibrated=calibrated,
        has_metric_poses=options.metric_poses,
        notes=tuple(notes),
    )


def _read_poses(
    path: Path, frames: tuple[Frame, ...]
) -> tuple[tuple[Tensor | None, ...], tuple[str, ...]]:
    """Return the pose of each photo, ``[3, 4]`` float64, and notes."""
    model = read_poses(path)
    names = [frame.name for frame in frames]
    pairs = match_photos(frames, model.names, "The poses", path)
    if not bool(torch.isfinite(model.cam_from_world).all()):
        raise ValueError(f"The poses in {path} must be finite, got NaN or infinity.")
    poses: list[Tensor | None] = [None] * len(frames)
    for frame, entry in pairs:
        poses[frame] = model.cam_from_world[entry]
    without = [name for name, pose in zip(names, poses, strict=True) if pose is None]
    notes = (f"No pose is known from {path} for {name_some(without)}.",) if without else ()
    return tuple(poses), notes
