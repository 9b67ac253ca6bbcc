# SPDX-License-Identifier: Apache-2.0
"""What is compared: named poses, cameras and structure, whatever file they came from.

Axes: ``F`` images, ``P`` points, ``O`` observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Intrinsics of one image, in COLMAP's words."""

    model: str
    """Any camera model of COLMAP."""
    width: float
    """Pixels; 1 where the file gives intrinsics as shares of a size that it does not name."""
    height: float
    params: tuple[float, ...]
    """In COLMAP's order for the model."""
    focal: tuple[float, float]
    """Focal lengths across and down, pixels of that size."""
    center: tuple[float, float]
    """Principal point, pixels of that size."""

    @property
    def has_pixels(self) -> bool:
        """Whether the size is that of a picture."""
        return self.width > 1


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Points and which images see them."""

    xyz: Tensor  # [P, 3] float64
    obs_point: Tensor  # [O] int64
    """Index of the point."""
    obs_image: Tensor  # [O] int64
    """Index of the image, in the order of `PosedModel.names`."""


@dataclass(frozen=True, kw_only=True)
class PosedModel:
    """Images with poses in one world frame."""

    source: str
    """The path given."""
    kind: str
    """What it was read as."""
    names: tuple[str, ...]
    """Image names, unique; for a trajectory the time stamps as they stand in the file."""
    cam_from_world: Tensor  # [F, 3, 4] float64
    lenses: tuple[Lens | None, ...]
    """``None`` where the file holds no intrinsics, or not all of them."""
    structure: Structure | None = None
    has_times: bool = False
    """Whether the names are time stamps in seconds, of poses taken independently of the photos."""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int], *, names: Sequence[str] | None = None) -> PosedModel:
        """Return some of the images, in the order given, under other names if there are any.

        Args:
            indices: Which images; none twice.
            names: Their new names; then `has_times` becomes false.
        """
        structure = self.structure
        if structure is not None:
            place = torch.full((len(self),), -1, dtype=torch.int64)
            place[list(indices)] = torch.arange(len(indices))
            is_kept = place[structure.obs_image] >= 0
            structure = replace(
                structure,
                obs_point=structure.obs_point[is_kept],
                obs_image=place[structure.obs_image[is_kept]],
            )
        return replace(
            self,
            names=tuple(self.names[index] for index in indices) if names is None else tuple(names),
            cam_from_world=self.cam_from_world[list(indices)],
            lenses=tuple(self.lenses[index] for index in indices),
            structure=structure,
            has_times=self.has_times and names is None,
        )
