# SPDX-License-Identifier: Apache-2.0
"""Errors of focal lengths and principal points.

Cameras are compared as shares of their images' size, so that one model may have been made from
smaller photos than the other. Photos that were cropped have another shape, and are left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .types import Lens

_SHAPE_TOLERANCE = 0.01
"""Largest relative difference of the aspect ratio that rounding to whole pixels explains: half a
pixel of 50."""


@dataclass(frozen=True, kw_only=True)
class IntrinsicsError:
    """Errors over the images that have intrinsics in both models and the same shape."""

    num_images: int
    focal_median: float
    """Median of ``|f / f_reference - 1|``, with ``f`` the geometric mean of both focal lengths."""
    focal_max: float
    center_median_px: float
    """Median distance of the principal points, in pixels of the estimate's photos."""
    center_max_px: float


def intrinsics_error(
    estimate: Sequence[Lens | None], reference: Sequence[Lens | None]
) -> IntrinsicsError | None:
    """Compare the cameras of the same images.

    Args:
        estimate: The images' intrinsics.
        reference: The same images'.

    Returns:
        The errors, or ``None`` if no image can be compared.
    """
    focal_errors: list[float] = []
    center_errors: list[float] = []
    for lens, true_lens in zip(estimate, reference, strict=True):
        if lens is None or true_lens is None or not _have_one_shape(lens, true_lens):
            continue
        focal_errors.append(abs(_relative_focal(lens) / _relative_focal(true_lens) - 1.0))
        center, true_center = _relative_center(lens), _relative_center(true_lens)
        size = lens if lens.has_pixels else true_lens
        center_errors.append(
            math.hypot(
                (center[0] - true_center[0]) * size.width,
                (center[1] - true_center[1]) * size.height,
            )
        )
    if not focal_errors:
        return None
    return IntrinsicsError(
        num_images=len(focal_errors),
        focal_median=statistics.median(focal_errors),
        focal_max=max(focal_errors),
        center_median_px=statistics.median(center_errors),
        center_max_px=max(center_errors),
    )


def _have_one_shape(first: Lens, second: Lens) -> bool:
    if not (first.has_pixels and second.has_pixels):
        # The shape of the one is not known.
        return True
    ratio = (first.width / first.height) / (second.width / second.height)
    return abs(ratio - 1.0) <= _SHAPE_TOLERANCE


def _relative_focal(lens: Lens) -> float:
    return math.sqrt(lens.focal[0] / lens.width * lens.focal[1] / lens.height)


def _relative_center(lens: Lens) -> tuple[float, float]:
    return lens.center[0] / lens.width, lens.center[1] / lens.height
