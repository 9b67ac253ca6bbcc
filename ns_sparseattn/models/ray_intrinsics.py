# SPDX-License-Identifier: Apache-2.0
"""Pinhole intrinsics of networks that predict a ray or a point for every pixel but no focal length.

With ``x = ray_x / ray_z``, a pinhole camera has ``x = (u - cx) / fx`` for the pixel column ``u``,
and likewise for the rows: two straight lines, each fitted by itself.

Axes: ``F`` frames, ``H`` rows, ``W`` columns, ``n`` samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_tensor
from ..geometry import pixel_centers

# Median absolute deviation to standard deviation of a normal distribution.
_DEVIATION_PER_MAD = 1.4826
# Keeps the published formula from dividing by zero, as there.
_PUBLISHED_EPS = 1e-10


@dataclass(frozen=True, kw_only=True)
class IntrinsicsFit:
    """How intrinsics are fitted to rays."""

    is_centered: bool = True
    """Whether the principal point is the middle of the image instead of being fitted."""
    max_samples: int = 10_000
    """Pixels of a frame that take part at most, on a regular grid. A hundredth of the deviation of
    single rays is left of their noise."""
    num_iterations: int = 20
    """Times that outliers are weighed anew at most."""
    cutoff: float = 4.685
    """Deviations beyond which a ray has no weight. Of Tukey's biweight, with this value as
    efficient as 95 % of least squares where there are no outliers."""

    def __post_init__(self) -> None:
        if self.max_samples < 1 or self.num_iterations < 0 or self.cutoff <= 0:
            raise ValueError(
                "`max_samples` and `cutoff` must be positive and `num_iterations` not negative, "
                f"got {self}."
            )


def fit_intrinsics(
    rays: Tensor,  # [F, H, W, 3]
    confidence: Tensor | None = None,  # [F, H, W]
    *,
    camera_ids: Sequence[int] | None = None,
    fit: IntrinsicsFit | None = None,
) -> Tensor:
    """Fit pinhole intrinsics to rays, robustly and weighted by confidence.

    The rays' slopes are fitted as functions of the pixel, which is known exactly; fitting pixels to
    slopes instead, as the published code does, makes noisy rays look like a shorter focal length.
    A first estimate from medians is refined by reweighted least squares, so up to about a quarter
    of the rays may be wrong by any amount.

    Args:
        rays: Directions or points in the camera, of any length, OpenCV axes. Those with z <= 0 or
            without finite coordinates do not take part.
        confidence: Weights, not negative; uniform if not given or zero for a whole camera.
        camera_ids: One number per frame; frames of one number share their intrinsics. Each frame
            has its own if not given.
        fit: How to fit.

    Returns:
        ``[F, 3, 3]`` float32 on the CPU, pixels whose first centre is (0.5, 0.5). A focal length is
        infinite or NaN where rays do not spread or none is usable.

    Raises:
        TypeError: If ``rays`` or ``confidence`` is no floating-point tensor.
        ValueError: If shapes do not fit.

    Example:
        >>> import torch
        >>> from ns_sparseattn.geometry import pixel_centers
        >>> xy = (pixel_centers(40, 60) - torch.tensor([30.0, 20.0])) / 50.0
        >>> rays = torch.cat([xy, torch.ones(40, 60, 1)], dim=-1)[None]
        >>> [round(float(focal), 4) for focal in fit_intrinsics(rays)[0].diagonal()]
        [50.0, 50.0, 1.0]
    """
    check_tensor("rays", rays, ("F", "H", "W", 3), is_floating=True)
    num_frames, height, width, _ = rays.shape
    if confidence is not None:
        check_tensor("confidence", confidence, (num_frames, height, width), is_floating=True)
    if camera_ids is not None and len(camera_ids) != num_frames:
        raise ValueError(
            f"`camera_ids` must have one number for each of {num_frames} frames, "
            f"got {len(camera_ids)}."
        )
    fit = fit or IntrinsicsFit()
    ids = list(range(num_frames)) if camera_ids is None else list(camera_ids)
    step = math.ceil(math.sqrt(height * width / fit.max_samples))
    pixels = pixel_centers(height, width)[::step, ::step]  # [h, w, 2]
    sampled = rays.detach()[:, ::step, ::step].double().cpu()
    if confidence is None:
        weights = torch.ones(sampled.shape[:-1], dtype=torch.float64)
    else:
        weights = confidence.detach()[:, ::step, ::step].double().cpu()

    intrinsics = torch.zeros(num_frames, 3, 3, dtype=torch.float64)
    intrinsics[:, 2, 2] = 1.0
    for camera in set(ids):
        members = [index for index, number in enumerate(ids) if number == camera]
        for axis, size in enumerate((width, height)):
            focal, center = _fit_axis(
                pixels[..., axis].expand(len(members), -1, -1),
                sampled[members],
                weights[members],
                axis,
                size / 2,
                fit,
            )
            intrinsics[members, axis, axis] = focal
            intrinsics[members, axis, 2] = center
    return intrinsics.float()


def least_squares_intrinsics(
    rays: Tensor,  # [..., H, W, 3]
    *,
    is_centered: bool,
) -> Tensor:
    """Fit pixels to the slopes of rays by plain least squares, as the published code of Pi3 does.

    Args:
        rays: Directions or points in the camera, of any length.
        is_centered: Whether the principal point is the middle of the image.

    Returns:
        ``[..., 3, 3]`` float64, pixels whose first centre is (0.5, 0.5); the published code counts
        from 0, so its principal points are half a pixel smaller.
    """
    height, width = rays.shape[-3:-1]
    rays = rays.double()
    slopes = rays[..., :2] / (rays[..., 2:].abs() + _PUBLISHED_EPS)
    pixels = pixel_centers(height, width, device=rays.device)
    middle = pixels.new_tensor([width / 2, height / 2])
    slopes, offsets = slopes.flatten(-3, -2), (pixels - middle).flatten(0, 1)
    intrinsics = rays.new_zeros(*rays.shape[:-3], 3, 3)
    intrinsics[..., 2, 2] = 1.0
    for axis in range(2):
        x = slopes[..., axis]
        focal, shift = _line(x, offsets[..., axis], torch.ones_like(x), through_origin=is_centered)
        intrinsics[..., axis, axis] = focal
        intrinsics[..., axis, 2] = middle[axis] + shift
    return intrinsics


def _fit_axis(
    pixels: Tensor,  # [f, h, w]
    rays: Tensor,  # [f, h, w, 3]
    weights: Tensor,  # [f, h, w]
    axis: int,
    middle: float,
    fit: IntrinsicsFit,
) -> tuple[float, float]:
    """Return focal length and principal point across (axis 0) or down (axis 1)."""
    slopes = rays[..., axis] / rays[..., 2]
    is_usable = torch.isfinite(slopes) & (rays[..., 2] > 0)
    weights = torch.where(is_usable & torch.isfinite(weights), weights.clamp_min(0), 0.0)
    if not bool((weights > 0).any()):
        weights = is_usable.double()
    slopes = torch.where(is_usable, slopes, 0.0)
    offsets = pixels - middle
    start = _centered_start if fit.is_centered else _free_start
    slope, shift = start(offsets, slopes, weights, 2 - axis)
    offsets, slopes, weights = offsets.flatten(), slopes.flatten(), weights.flatten()
    for _ in range(fit.num_iterations):
        residuals = (slopes - slope * offsets - shift).abs()
        limit = fit.cutoff * _DEVIATION_PER_MAD * _weighted_median(residuals, weights)
        if not limit > 0:
            break
        biweight = weights * (1 - (residuals / limit).clamp_max(1).square()).square()
        before = slope
        slope, shift = _line(offsets, slopes, biweight, through_origin=fit.is_centered)
        if bool((slope - before).abs() <= 1e-9 * slope.abs()):
            break
    return float(1 / slope), float(middle - shift / slope)


def _centered_start(
    offsets: Tensor, slopes: Tensor, weights: Tensor, _dim: int
) -> tuple[Tensor, Tensor]:
    """Return the line through the origin with the least sum of absolute residuals."""
    has_lever = offsets != 0
    ratios = torch.where(has_lever, slopes / offsets, 0.0)
    slope = _weighted_median(ratios.flatten(), (weights * offsets.abs()).flatten())
    return slope, torch.zeros_like(slope)


def _free_start(
    offsets: Tensor, slopes: Tensor, weights: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Return a line from medians of pairs of pixels half an image apart, then of what is left."""
    half = offsets.shape[dim] // 2
    last = offsets.shape[dim] - half
    rise = slopes.narrow(dim, last, half) - slopes.narrow(dim, 0, half)
    run = offsets.narrow(dim, last, half) - offsets.narrow(dim, 0, half)
    both = torch.minimum(weights.narrow(dim, last, half), weights.narrow(dim, 0, half))
    slope = _weighted_median((rise / run).flatten(), both.flatten())
    return slope, _weighted_median((slopes - slope * offsets).flatten(), weights.flatten())


def _line(
    x: Tensor,  # [..., n]
    y: Tensor,  # [..., n]
    weights: Tensor,  # [..., n]
    *,
    through_origin: bool,
) -> tuple[Tensor, Tensor]:
    """Return slope and intercept of the weighted least squares line of y over x, each ``[...]``."""
    if through_origin:
        slope = (weights * x * y).sum(-1) / (weights * x * x).sum(-1)
        return slope, torch.zeros_like(slope)
    total = weights.sum(-1)
    mean_x, mean_y = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    dx, dy = x - mean_x.unsqueeze(-1), y - mean_y.unsqueeze(-1)
    slope = (weights * dx * dy).sum(-1) / (weights * dx * dx).sum(-1)
    return slope, mean_y - slope * mean_x


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the value below which half of the weight lies; NaN without any weight."""
    ordered, order = values.sort()
    cumulated = weights[order].cumsum(0)
    if not len(values) or not bool(cumulated[-1] > 0):
        return values.new_tensor(math.nan)
    return ordered[torch.searchsorted(cumulated, cumulated[-1] / 2).clamp_max(len(values) - 1)]
