# SPDX-License-Identifier: Apache-2.0
"""Errors of relative poses over all pairs of images, and the shares and areas made of them.

Definitions, for images ``i`` before ``j`` in the order of the reference, with ``j_from_i`` the pose
of camera ``i`` in camera ``j``:

* The rotation error is the angle of the rotation between estimated and true ``j_from_i``.
* The direction error is the angle between the translations of estimated and true ``j_from_i``, 0 to
  180 degrees. Their lengths are not compared: a reconstruction from photos knows none.
* ``RRA@t`` and ``RTA@t`` are the shares of pairs whose rotation or direction error is below ``t``
  degrees (Wang et al., "PoseDiffusion", ICCV 2023).
* ``AUC@t`` is the area from 0 to ``t`` under the share of pairs whose error, the larger of both, is
  below a threshold, divided by ``t``. The share is interpolated linearly between the errors,
  starting at 0, as by ``pose_auc`` of Sarlin et al., "SuperGlue", CVPR 2020.
* VGGT's ``AUC@t`` (``evaluation/test_co3d.py`` of Wang et al., "VGGT", CVPR 2025: its figures for
  RealEstate10K and Co3D) differs in three ways. The area is the mean of the shares below 1, 2, ...,
  ``t`` degrees, which is higher by up to a step; a direction and its opposite count as the same,
  so that none is off by more than 90 degrees; and directions are those of ``i_from_j``.

All of it is invariant under a similarity: frame, scale and place of either world do not matter.

Axes: ``F`` images, ``N`` pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry import camera_centers

THRESHOLDS_DEG = (1, 3, 5, 10, 15, 30)
"""Where areas and shares are taken: those of PoseDiffusion, VGGT and SuperGlue together."""

FAILED_DEG = 180.0
"""Error of a pair of which an image is missing: the largest there is."""

_NO_BASELINE_SHARE = 1e-6
"""Two reference cameras nearer than this share of the reference's extent have no direction."""
_NO_BASELINE_ROUNDING = 1e-9
"""The same as a share of the largest coordinate: what text files round away."""


@dataclass(frozen=True, kw_only=True)
class PairErrors:
    """Errors of all pairs of images that have an estimate, degrees."""

    rotation_deg: Tensor  # [N] float64
    direction_deg: Tensor  # [N] float64
    """NaN where the reference cameras stand at one place."""
    vggt_direction_deg: Tensor  # [N] float64
    """By VGGT's definition, 0 to 90; NaN likewise."""
    num_missing: int
    """Further pairs, of which an image has no estimate."""

    @property
    def larger_deg(self) -> Tensor:
        """The larger of both, ``[N]``; the rotation's where there is no direction."""
        return torch.fmax(self.rotation_deg, self.direction_deg)

    @property
    def vggt_larger_deg(self) -> Tensor:
        """The larger of both by VGGT's definition, ``[N]``."""
        return torch.fmax(self.rotation_deg, self.vggt_direction_deg)

    def __len__(self) -> int:
        return int(self.rotation_deg.shape[0])


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What becomes of the errors of one kind, per threshold of `THRESHOLDS_DEG`."""

    auc: dict[int, float]
    """Area under the curve, 0 to 1."""
    auc_vggt: dict[int, float]
    """By VGGT's definition, 0 to 1."""
    recall: dict[int, float]
    """Share of pairs below the threshold, 0 to 1."""
    median_deg: float
    """Over the pairs of which both images have an estimate; NaN without any."""
    max_deg: float


def pair_errors(
    estimate: Tensor,  # [F, 3, 4]
    reference: Tensor,  # [F, 3, 4]
    *,
    num_missing_images: int = 0,
) -> PairErrors:
    """Compare the relative poses of all pairs.

    Args:
        estimate: ``cam_from_world`` of the images that have both, in the reference's order.
        reference: The same images.
        num_missing_images: Images of the reference without an estimate: their pairs, among
            themselves as well, are counted as missing.

    Returns:
        One entry per pair ``i < j``, row by row.

    Example:
        >>> pose = torch.eye(3, 4, dtype=torch.float64).repeat(3, 1, 1)
        >>> pose[1, 0, 3], pose[2, 1, 3] = 1.0, 1.0
        >>> errors = pair_errors(pose, pose, num_missing_images=1)
        >>> errors.larger_deg.tolist(), errors.num_missing
        ([0.0, 0.0, 0.0], 3)
    """
    poses, truth = estimate.double(), reference.double()
    shortest = _shortest_baseline(camera_centers(truth))
    rows = [_errors_of_row(poses[i:], truth[i:], shortest) for i in range(len(truth) - 1)]
    stacked = torch.cat([torch.zeros(3, 0, dtype=torch.float64), *rows], dim=1)
    num_all = len(truth) + num_missing_images
    return PairErrors(
        rotation_deg=stacked[0],
        direction_deg=stacked[1],
        vggt_direction_deg=stacked[2],
        num_missing=math.comb(num_all, 2) - math.comb(len(truth), 2),
    )


def summarise(
    errors_deg: Tensor,  # [N]
    vggt_errors_deg: Tensor,  # [N]
    *,
    num_missing: int,
) -> Curve:
    """Turn errors into areas, shares, median and maximum.

    Args:
        errors_deg: Errors of the pairs; NaN, where there is nothing to measure, is left out.
        vggt_errors_deg: The same by VGGT's definition.
        num_missing: Further pairs that failed; they count in areas and shares, as `FAILED_DEG`.

    Returns:
        The figures; areas and shares are NaN without any pair.
    """
    measured = errors_deg[~errors_deg.isnan()]
    failed = torch.full((num_missing,), FAILED_DEG, dtype=torch.float64)
    every = torch.cat([measured, failed])
    every_vggt = torch.cat([vggt_errors_deg[~vggt_errors_deg.isnan()], failed])
    return Curve(
        auc={limit: auc(every, limit) for limit in THRESHOLDS_DEG},
        auc_vggt={limit: auc_vggt(every_vggt, limit) for limit in THRESHOLDS_DEG},
        recall={limit: _share(every < limit) for limit in THRESHOLDS_DEG},
        # Not `quantile`, which takes no more than 16 million values: 5,800 images have more pairs.
        median_deg=float(np.median(measured.numpy())) if len(measured) else math.nan,
        max_deg=float(measured.max()) if len(measured) else math.nan,
    )


def auc(errors_deg: Tensor, limit_deg: float) -> float:
    """Return the area under the share of errors below ``t``, for ``t`` from 0 up to a limit.

    Args:
        errors_deg: ``[N]``; without any the result is NaN.
        limit_deg: Upper end, degrees.

    Returns:
        0 to 1. Errors that are all zero give 1, errors at or above the limit add nothing.

    Example:
        >>> auc(torch.tensor([5.0, 90.0]), 10)  # a triangle up to (5, 1/2), a rectangle after it
        0.375
    """
    if not len(errors_deg):
        return math.nan
    ordered = errors_deg.double().sort().values
    below = ordered[ordered < limit_deg]
    share = torch.arange(len(below) + 1, dtype=torch.float64) / len(ordered)
    ends = torch.cat([below.new_zeros(1), below, below.new_tensor([limit_deg])])
    heights = torch.cat([share, share[-1:]])
    return float(torch.trapezoid(heights, ends)) / limit_deg


def auc_vggt(errors_deg: Tensor, limit_deg: int) -> float:
    """Return the mean share of errors below 1, 2, ... degrees up to a limit, as VGGT reports it.

    The last share includes the limit itself, as the last bin of ``numpy.histogram`` does.

    Args:
        errors_deg: ``[N]``; without any the result is NaN.
        limit_deg: Upper end, degrees.

    Returns:
        0 to 1.

    Example:
        >>> auc_vggt(torch.tensor([0.0, 5.0, 90.0]), 10)  # 5 shares of 1/3, 5 of 2/3
        0.5
    """
    shares = [_share(errors_deg < step) for step in range(1, limit_deg)]
    return sum([*shares, _share(errors_deg <= limit_deg)]) / limit_deg


def _share(is_within: Tensor) -> float:
    return float(is_within.double().mean())


def _shortest_baseline(centers: Tensor) -> float:
    """Return the distance up to which two centres ``[F, 3]`` are taken for the same place."""
    if not len(centers):
        return 0.0
    extent = 2.0 * float((centers - centers.mean(0)).norm(dim=-1).max())
    largest = float(centers.abs().max())
    return max(_NO_BASELINE_SHARE * extent, _NO_BASELINE_ROUNDING * largest)


def _errors_of_row(estimate: Tensor, reference: Tensor, shortest: float) -> Tensor:
    """Compare the first image ``[F, 3, 4]`` with each that follows; returns ``[3, F - 1]``.

    The rows are the three errors of `PairErrors`.
    """
    relative, offset = _relative(estimate)
    true_relative, true_offset = _relative(reference)
    rotation = _rotation_angle_deg(relative, true_relative)
    direction = _angle_deg(offset, true_offset)
    # Translations of i_from_j: the same line, as the first camera sees it.
    backward = _angle_deg(_rotate_back(relative, offset), _rotate_back(true_relative, true_offset))
    folded = torch.minimum(backward, 180.0 - backward)
    # A camera that was put onto another one has no direction where the truth has one.
    is_moved = offset.norm(dim=-1) > 0
    direction = torch.where(is_moved, direction, FAILED_DEG)
    folded = torch.where(is_moved, folded, FAILED_DEG / 2)
    is_defined = true_offset.norm(dim=-1) > shortest
    return torch.stack(
        [
            rotation,
            torch.where(is_defined, direction, math.nan),
            torch.where(is_defined, folded, math.nan),
        ]
    )


def _relative(cam_from_world: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotation and translation of ``j_from_i`` for the first image ``i`` and all others."""
    first, rest = cam_from_world[0], cam_from_world[1:]
    rotation = rest[:, :, :3] @ first[:, :3].T
    centers = camera_centers(cam_from_world)
    # Through the difference of centres, which keeps its digits far from the world's origin.
    offset = (rest[:, :, :3] @ (centers[0] - centers[1:]).unsqueeze(-1)).squeeze(-1)
    return rotation, offset


def _rotate_back(rotation: Tensor, offset: Tensor) -> Tensor:
    return -(rotation.transpose(-1, -2) @ offset.unsqueeze(-1)).squeeze(-1)


def _rotation_angle_deg(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between rotations ``[..., 3, 3]``.

    The Frobenius norm of their difference is ``2 sqrt(2) sin(angle / 2)``; unlike the arc cosine of
    the trace, this is exact near zero.
    """
    half_sine = torch.linalg.matrix_norm(first - second) / math.sqrt(8.0)
    return torch.rad2deg(2.0 * torch.asin(half_sine.clamp(max=1.0)))


def _angle_deg(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors ``[..., 3]``, exact near zero and near 180 degrees.

    Unit vectors and their sum and difference make a rhombus, whose half angle has the diagonals'
    ratio as its tangent.
    """
    one, other = (vector / vector.norm(dim=-1, keepdim=True) for vector in (first, second))
    half = torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))
    return torch.rad2deg(2.0 * half)
