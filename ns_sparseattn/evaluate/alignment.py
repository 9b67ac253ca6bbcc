# SPDX-License-Identifier: Apache-2.0
"""The similarity between two sets of camera centres, and what it leaves: the trajectory error.

Axes: ``F`` images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_IMAGES = 3
"""A similarity fits fewer than three centres exactly, whatever they are."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """``target_from_source`` with a scale: ``x_target = scale R x_source + t``."""

    scale: float
    rotation: Tensor  # [3, 3] float64
    translation: Tensor  # [3] float64

    def apply(self, points: Tensor) -> Tensor:
        """Map points ``[..., 3]``."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self) -> Similarity:
        """Return ``source_from_target``.

        Raises:
            ZeroDivisionError: If the scale is zero.
        """
        rotation = self.rotation.T
        return Similarity(
            scale=1.0 / self.scale,
            rotation=rotation,
            translation=-(rotation @ self.translation) / self.scale,
        )


@dataclass(frozen=True, kw_only=True)
class TrajectoryError:
    """Distances of camera centres after the alignment, in the reference's unit."""

    num_images: int
    rmse: float
    mean: float
    median: float
    max: float
    extent: float
    """Twice the largest distance of a reference camera from their mean."""
    rmse_share: float
    """Root mean square as a share of the extent; 0 if that is 0."""
    scale: float
    """Length in the reference of one unit of the estimate."""


def umeyama(source: Tensor, target: Tensor) -> Similarity:
    """Return the similarity that brings points closest to others, in the least squares sense.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991, equations 39 to 43.

    Args:
        source: ``[F, 3]``, at least one point.
        target: ``[F, 3]``.

    Returns:
        ``target_from_source``. The rotation about a line is arbitrary if all points lie on it; the
        distances that remain do not depend on it. The scale is 0 if all source points are one.

    Example:
        >>> source = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
        >>> round(umeyama(source, 2.0 * source + 5.0).scale, 12)
        2.0
    """
    source, target = source.double(), target.double()
    mean_source, mean_target = source.mean(0), target.mean(0)
    from_source, from_target = source - mean_source, target - mean_target
    variance = float(from_source.square().sum(-1).mean())
    covariance = from_target.T @ from_source / len(source)
    u, singular, vt = torch.linalg.svd(covariance)
    sign = torch.ones(3, dtype=torch.float64)
    if torch.linalg.det(u) * torch.linalg.det(vt) < 0:
        sign[2] = -1.0
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum()) / variance if variance > 0 else 0.0
    translation = mean_target - scale * rotation @ mean_source
    return Similarity(scale=scale, rotation=rotation, translation=translation)


def trajectory_error(estimate: Tensor, reference: Tensor) -> tuple[TrajectoryError, Similarity]:
    """Align camera centres by a similarity and measure what remains.

    This is the absolute trajectory error of Sturm et al., "A benchmark for the evaluation of RGB-D
    SLAM systems", IROS 2012, with scale: a reconstruction from photos has none of its own.

    Args:
        estimate: Camera centres ``[F, 3]``.
        reference: Camera centres ``[F, 3]`` of the same images, at least `MIN_IMAGES`.

    Returns:
        The error, and ``reference_from_estimate``.
    """
    aligned = umeyama(estimate, reference)
    distance = (aligned.apply(estimate.double()) - reference.double()).norm(dim=-1)
    extent = 2.0 * float((reference - reference.mean(0)).norm(dim=-1).max())
    rmse = float(distance.square().mean().sqrt())
    error = TrajectoryError(
        num_images=len(reference),
        rmse=rmse,
        mean=float(distance.mean()),
        median=float(distance.quantile(0.5)),
        max=float(distance.max()),
        extent=extent,
        rmse_share=rmse / extent if extent else 0.0,
        scale=aligned.scale,
    )
    return error, aligned
