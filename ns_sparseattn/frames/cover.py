# SPDX-License-Identifier: Apache-2.0
"""Photos cut to one common size of a fixed list, as MapAnything was trained and published with.

The other rules (`ns_sparseattn.frames.resize`) keep each photo whole; this one fills the tensor and
cuts what stands out.

Axes: ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .pixel_map import PixelMap, Size
from .resize import Resampling, resize_image

SIZES_518: dict[float, Size] = {
    1.000: (518, 518),
    1.321: (518, 392),
    1.542: (518, 336),
    1.762: (518, 294),
    2.056: (518, 252),
    3.083: (518, 168),
    0.757: (392, 518),
    0.649: (336, 518),
    0.567: (294, 518),
    0.486: (252, 518),
}
"""Width over height, as published, and width and height of the tensor."""

# Added to the scale before sizes are rounded down, so that no side falls short by rounding.
_SCALE_EPS = 1e-8


def choose_size(photo_sizes: Sequence[Size]) -> Size:
    """Return the size for photos that go through the network together.

    Args:
        photo_sizes: Width and height of every upright photo.

    Returns:
        Width and height of `SIZES_518` whose shape is nearest to the photos' mean width over
        height.
    """
    if not photo_sizes:
        raise ValueError("`photo_sizes` must name at least one photo.")
    aspect = sum(width / height for width, height in photo_sizes) / len(photo_sizes)
    return SIZES_518[min(SIZES_518, key=lambda published: abs(published - aspect))]


def plan_cover(width: int, height: int, size: Size) -> PixelMap:
    """Resize a photo until it covers a size, and cut the rest on both sides alike.

    Args:
        width: Width of the upright photo, pixels.
        height: Height of the upright photo, pixels.
        size: Width and height of the tensor.

    Returns:
        The map between the photo and the tensor.
    """
    if width < 1 or height < 1:
        raise ValueError(f"`width` and `height` must be at least 1 pixel, got {width} x {height}.")
    scale = max(size[0] / width, size[1] / height) + _SCALE_EPS
    resized = (int(width * scale), int(height * scale))
    # Halves go to the even side, as published for photos with intrinsics.
    shift = (-round((resized[0] - size[0]) / 2), -round((resized[1] - size[1]) / 2))
    return PixelMap(
        original_size=(width, height), resized_size=resized, shift=shift, network_size=size
    )


def cover_image(image: Image.Image, pixel_map: PixelMap) -> Tensor:
    """Resize an RGB photo with the published filters: Lanczos to shrink, bicubic to enlarge.

    Args:
        image: RGB photo of size ``pixel_map.original_size``.
        pixel_map: Where its pixels go.

    Returns:
        ``[3, H, W]`` uint8 of ``pixel_map.network_size``.
    """
    resampling: Resampling = "lanczos" if max(pixel_map.scale) < 1 else "bicubic"
    return resize_image(image, pixel_map, resampling)


def resize_depth(depth: NDArray[np.floating], pixel_map: PixelMap) -> Tensor:
    """Take the nearest pixel of a depth map that belongs to a photo; nothing is averaged.

    Args:
        depth: ``[h, w]`` of size ``pixel_map.original_size``, 0 where unknown.
        pixel_map: Where the photo's pixels go.

    Returns:
        ``[H, W]`` float32 of ``pixel_map.network_size``, 0 in the padding.
    """
    if (depth.shape[1], depth.shape[0]) != pixel_map.original_size:
        raise ValueError(
            f"`depth` must have the photo's size {pixel_map.original_size}, "
            f"got {(depth.shape[1], depth.shape[0])}."
        )
    width, height = pixel_map.network_size
    placed = torch.zeros(height, width)
    x0, y0, x1, y1 = pixel_map.box
    columns = _nearest(np.arange(x0, x1), pixel_map, 0)
    rows = _nearest(np.arange(y0, y1), pixel_map, 1)
    taken = depth[rows[:, None], columns].astype(np.float32)
    placed[y0:y1, x0:x1] = torch.from_numpy(taken)
    return placed


def _nearest(network: NDArray[np.int64], pixel_map: PixelMap, axis: int) -> NDArray[np.int64]:
    """Return the original pixel in which the top-left corner of each network pixel lies."""
    # In floating point and in this order as OpenCV, which decides corners that lie on a border.
    original_per_resized = 1 / (pixel_map.resized_size[axis] / pixel_map.original_size[axis])
    return np.floor((network - pixel_map.shift[axis]) * original_per_resized).astype(np.int64)
