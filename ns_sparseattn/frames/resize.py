# SPDX-License-Identifier: Apache-2.0
"""From a photo to the tensor that a network sees: sizes (`plan_resize`), pixels (`resize_image`).

The rules ``crop`` and ``pad`` are VGGT's own preprocessing, reproduced to the byte; ``fit`` is
``crop`` for landscape photos and keeps every row of portrait ones. `plan_area` is Pi3's own, which
fixes the number of pixels instead of a side.

Axes: ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..options import ResizeRule
from .pixel_map import PixelMap, Size

Resampling = Literal["bicubic", "lanczos"]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}

PI3_MAX_PIXELS = 255_000
"""Pixels that Pi3 and Pi3X were published with."""

WHITE = 255
"""Value of padded pixels, as upstream's."""


def plan_resize(
    width: int,
    height: int,
    rule: ResizeRule = "fit",
    long_side: int = 518,
    multiple: int = 14,
) -> PixelMap:
    """Choose the network size of one photo.

    Args:
        width: Width of the upright photo, pixels.
        height: Height of the upright photo, pixels.
        rule: ``fit`` makes the long side `long_side` and loses nothing; ``crop`` makes the width
            `long_side` and cuts rows beyond `long_side`, half of them at the top; ``pad`` is
            ``fit``, centred in a square.
        long_side: Longest side of the result, pixels, a multiple of `multiple`.
        multiple: The other side is rounded to a multiple of this (half to even), but is at least
            one.

    Returns:
        The map between the photo and the tensor.
    """
    if rule not in get_args(ResizeRule):
        raise ValueError(f"`rule` must be one of {', '.join(get_args(ResizeRule))}, got {rule!r}.")
    if width < 1 or height < 1:
        raise ValueError(f"`width` and `height` must be at least 1 pixel, got {width} x {height}.")
    if multiple < 1 or long_side < multiple or long_side % multiple:
        raise ValueError(f"`long_side` must be a multiple of {multiple}, got {long_side}.")

    if rule == "crop" or width >= height:
        resized = (long_side, _round_to_multiple(height * (long_side / width), multiple))
    else:
        resized = (_round_to_multiple(width * (long_side / height), multiple), long_side)

    shift, network_size = (0, 0), resized
    if rule == "crop" and resized[1] > long_side:
        shift = (0, -((resized[1] - long_side) // 2))
        network_size = (long_side, long_side)
    plan = PixelMap(
        original_size=(width, height), resized_size=resized, shift=shift, network_size=network_size
    )
    return plan.padded_to((long_side, long_side)) if rule == "pad" else plan


def plan_area(
    width: int, height: int, max_pixels: int = PI3_MAX_PIXELS, multiple: int = 14
) -> PixelMap:
    """Choose the network size of one photo by the number of its pixels, as Pi3 does.

    Both sides become multiples of `multiple` near the photo's shape, together at most `max_pixels`
    and near it: small photos are enlarged. The shape changes by the rounding; nothing is cut.

    Args:
        width: Width of the upright photo, pixels.
        height: Height of the upright photo, pixels.
        max_pixels: Pixels of the result at most, unless it is a single row or column of patches.
        multiple: Side of a patch, pixels.

    Returns:
        The map between the photo and the tensor.
    """
    if width < 1 or height < 1:
        raise ValueError(f"`width` and `height` must be at least 1 pixel, got {width} x {height}.")
    if multiple < 1 or max_pixels < multiple**2:
        raise ValueError(
            f"`max_pixels` must hold a patch of {multiple} x {multiple}, got {max_pixels}."
        )
    scale = (max_pixels / (width * height)) ** 0.5
    columns, rows = round(width * scale / multiple), round(height * scale / multiple)
    while columns * rows * multiple**2 > max_pixels:
        # The side that rounding made too long gives way.
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    resized = (max(1, columns) * multiple, max(1, rows) * multiple)
    return PixelMap(
        original_size=(width, height), resized_size=resized, shift=(0, 0), network_size=resized
    )


def common_size(plans: list[PixelMap]) -> Size:
    """Return the smallest size that holds every tensor: the largest width and height."""
    return max(plan.network_size[0] for plan in plans), max(plan.network_size[1] for plan in plans)


def resize_image(
    image: Image.Image, pixel_map: PixelMap, resampling: Resampling = "bicubic"
) -> Tensor:
    """Resize an upright RGB photo, then crop or pad it with white.

    Args:
        image: RGB photo of size ``pixel_map.original_size``.
        pixel_map: Where its pixels go.
        resampling: PIL's antialiased filter; VGGT's is bicubic, Pi3's Lanczos.

    Returns:
        ``[3, H, W]`` uint8 of ``pixel_map.network_size``.
    """
    if image.mode != "RGB":
        raise ValueError(f"`image` must have mode RGB, got {image.mode}.")
    _check_size(image.size, pixel_map)
    resized = np.asarray(image.resize(pixel_map.resized_size, _RESAMPLING[resampling]))
    return _place(torch.tensor(resized).permute(2, 0, 1), pixel_map, fill=WHITE)


def resize_mask(mask: NDArray[np.bool_], pixel_map: PixelMap) -> Tensor:
    """Resize a mask of an upright photo: a network pixel is usable if at least half of its area is.

    Args:
        mask: ``[H, W]`` of the photo, true where it may be used.
        pixel_map: Where its pixels go.

    Returns:
        ``[H, W]`` bool of ``pixel_map.network_size``, false in the padding.
    """
    _check_size((mask.shape[1], mask.shape[0]), pixel_map)
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(levels.resize(pixel_map.resized_size, Image.Resampling.BOX)) >= 128
    return _place(torch.tensor(resized), pixel_map, fill=False)


def _round_to_multiple(length: float, multiple: int) -> int:
    """Round to the nearest multiple as upstream does (Python's half to even), but never to zero."""
    return max(round(length / multiple), 1) * multiple


def _check_size(size: Size, pixel_map: PixelMap) -> None:
    if size != pixel_map.original_size:
        raise ValueError(f"The photo must have size {pixel_map.original_size}, got {size}.")


def _place(
    resized: Tensor,  # [..., H', W']
    pixel_map: PixelMap,
    *,
    fill: int | bool,
) -> Tensor:
    """Cut the visible part out of the resized photo and put it where `pixel_map` says."""
    width, height = pixel_map.network_size
    x0, y0, x1, y1 = pixel_map.box
    shift_x, shift_y = pixel_map.shift
    placed = resized.new_full((*resized.shape[:-2], height, width), fill)
    visible = resized[..., y0 - shift_y : y1 - shift_y, x0 - shift_x : x1 - shift_x]
    placed[..., y0:y1, x0:x1] = visible
    return placed
