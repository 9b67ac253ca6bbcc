# SPDX-License-Identifier: Apache-2.0
"""Which network pixels may become points.

A pixel counts as valid if it shows the photo (no padding), is not masked, has a finite confidence
and a finite positive depth, and its frame has a pose. Of the valid ones, candidates are confident
and not on a depth edge.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns, ``C`` candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..frames.types import Frames
from ..options import SceneOptions
from ..prediction import Prediction
from .progress import Progress, report

_QUANTILE_SAMPLES = 4_000_000
"""Confidences looked at to find their percentile: the error is far below a thousandth of the
range."""
_DITHER = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949)
"""Steps in x, y and frame of the additive recurrence that spreads samples most evenly (the R2
sequence)."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Network pixels that may become points, sorted by frame, then by row and column."""

    frame: Tensor  # [C] int64
    pixel: Tensor  # [C, 2] float64
    """Network pixels, x first."""
    depth: Tensor  # [C] float64
    confidence: Tensor  # [C] float32

    def __len__(self) -> int:
        return int(self.frame.shape[0])

    def select(self, index: Tensor) -> Candidates:
        """Return the candidates at an index or under a mask ``[C]``."""
        return Candidates(
            frame=self.frame[index],
            pixel=self.pixel[index],
            depth=self.depth[index],
            confidence=self.confidence[index],
        )


def valid_depth(
    prediction: Prediction,
    frames: Frames,
    is_posed: Tensor,  # [F] bool
) -> Tensor:
    """Return the depth with 0 wherever a pixel is not valid, ``[F, H, W]``, a copy."""
    depth = prediction.depth.clone()
    for index, frame in enumerate(frames.frames):
        layer = depth[index]
        # Smaller numbers have no finite inverse, and the inverse is what is interpolated.
        is_valid = torch.isfinite(layer) & (layer >= torch.finfo(layer.dtype).tiny)
        is_valid &= torch.isfinite(prediction.confidence[index])
        is_valid &= frame.pixel_map.valid_mask()
        if frames.masks is not None:
            is_valid &= frames.masks[index]
        layer[~(is_valid & is_posed[index])] = 0.0
    return depth


def confidence_threshold(
    confidence: Tensor,  # [F, H, W]
    depth: Tensor,  # [F, H, W]
    percentile: float,
) -> float:
    """Return the confidence below which the given per cent of all valid pixels lie.

    Args:
        confidence: Larger is better.
        depth: 0 where a pixel is not valid.
        percentile: From 0 to 100.

    Returns:
        The threshold; minus infinity if no pixel is valid. Pixels that reach it exactly are
        confident.
    """
    stride = max(1, math.ceil(depth.numel() / _QUANTILE_SAMPLES))
    # A stride that shares no factor with the rows' length meets every column.
    while math.gcd(stride, depth.shape[-1]) > 1:
        stride += 1
    values = confidence.flatten()[::stride][depth.flatten()[::stride] > 0]
    if values.numel() == 0:
        values = confidence[depth > 0]
    if values.numel() == 0:
        return -math.inf
    rank = min(int(percentile / 100.0 * values.numel()), values.numel() - 1)
    return float(values.sort().values[rank])


def depth_edges(depth: Tensor, tolerance: float) -> Tensor:
    """Find pixels whose 3 x 3 neighbourhood spans more than a share of their depth.

    Args:
        depth: ``[H, W]``, 0 where a pixel is not valid; such neighbours are left out.
        tolerance: Share of the pixel's own depth.

    Returns:
        ``[H, W]`` booleans. Pixels that are not valid themselves are no edges.
    """
    is_valid = depth > 0
    far = torch.where(is_valid, depth, -math.inf)[None, None]
    near = torch.where(is_valid, -depth, -math.inf)[None, None]
    # Padding of max_pool2d counts as minus infinity, so the border needs no care.
    span = max_pool2d(far, 3, stride=1, padding=1) + max_pool2d(near, 3, stride=1, padding=1)
    return is_valid & (span[0, 0] > tolerance * depth)


def find_candidates(
    prediction: Prediction,
    depth: Tensor,  # [F, H, W]
    threshold: float,
    options: SceneOptions,
    *,
    limit: int,
    keep_edges: bool = False,
    progress: Progress | None = None,
) -> Candidates:
    """Choose about `limit` confident pixels at most, off depth edges, evenly over all frames.

    Args:
        prediction: Holds the confidence.
        depth: 0 where a pixel is not valid.
        threshold: Least confidence.
        options: Hold the edge tolerance.
        limit: Number of candidates wanted; dithering hits it to within a few per thousand.
        keep_edges: Whether pixels on depth edges may be candidates too.
        progress: Called after each frame.

    Returns:
        The candidates.
    """
    num_frames, height, width = depth.shape
    tolerance = math.inf if keep_edges else options.edge_tolerance
    eligible = torch.empty(num_frames, height, width, dtype=torch.bool)
    for index in range(num_frames):
        layer = depth[index]
        eligible[index] = (layer > 0) & (prediction.confidence[index] >= threshold)
        eligible[index] &= ~depth_edges(layer, tolerance)
        report(progress, "filters", index + 1, num_frames)
    share = limit / max(int(eligible.sum()), 1)
    if share < 1.0:
        _thin(eligible, share)
    frame, row, column = eligible.nonzero(as_tuple=True)
    return Candidates(
        frame=frame,
        pixel=torch.stack([column.double() + 0.5, row.double() + 0.5], dim=-1),
        depth=depth[frame, row, column].double(),
        confidence=prediction.confidence[frame, row, column].float(),
    )


def _thin(eligible: Tensor, share: float) -> None:
    """Keep a share of pixels ``[F, H, W]`` in place, spread evenly, other ones in each frame."""
    num_frames, height, width = eligible.shape
    x = torch.arange(width, dtype=torch.float64) * _DITHER[0]
    y = torch.arange(height, dtype=torch.float64) * _DITHER[1]
    base = x + y[:, None]
    for index in range(num_frames):
        eligible[index] &= (base + index * _DITHER[2]).frac() < share
