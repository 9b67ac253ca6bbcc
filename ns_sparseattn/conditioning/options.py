# SPDX-License-Identifier: Apache-2.0
"""Options of what is known about the photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import check_range


@dataclass(frozen=True, kw_only=True)
class KnownOptions:
    """What is known about the photos beside their pixels, each for some or all of them."""

    intrinsics: str | None = None
    """Known cameras: a COLMAP model or its cameras.txt, a transforms.json, an OpenCV YAML file, or
    the word exif for the focal lengths that the photos state."""
    poses: Path | None = None
    """Known poses: a transforms.json, a COLMAP model or its images.txt, or a scene folder. The
    scene takes their frame and scale."""
    metric_poses: bool = False
    """The unit of the known poses is the metre."""
    depth: Path | None = None
    """Folder of known depth along the optical axis, matched by name: 16-bit PNG or .npy of the
    photo's size, 0 where unknown."""
    depth_unit: float | None = None
    """Metres of one unit of the depth files. None: 0.001 for PNG, that is millimetres, and 1 for
    .npy."""

    def __post_init__(self) -> None:
        if self.depth_unit is not None:
            check_range("depth_unit", self.depth_unit, 1e-9, 1e9, unit=" metres")
        if self.depth_unit is not None and self.depth is None:
            raise ValueError("`depth_unit` has no effect without `depth`; give a folder of depth.")
        if self.metric_poses and self.poses is None:
            raise ValueError("`metric_poses` has no effect without `poses`; give a file of poses.")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self.intrinsics is None and self.poses is None and self.depth is None
