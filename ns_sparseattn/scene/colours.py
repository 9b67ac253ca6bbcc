# SPDX-License-Identifier: Apache-2.0
"""Colours of points, sampled from the full-resolution photos.

Axes: ``H`` rows, ``W`` columns, ``P`` points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import check_tensor
from ..frames.types import Frame
from .progress import Progress, report

ReadRgb = Callable[[Frame], Any]
"""Returns a frame's upright photo as a uint8 array or tensor ``[H, W, 3]``."""


def sample_colours(
    frames: tuple[Frame, ...],
    frame_of_point: Tensor,  # [P] int64
    pixels: Tensor,  # [P, 2] float64
    read_rgb: ReadRgb,
    progress: Progress | None = None,
) -> Tensor:
    """Sample each point's colour in one photo, holding one photo in memory at a time.

    Args:
        frames: The photos.
        frame_of_point: The photo to sample for each point.
        pixels: Original pixels.
        read_rgb: Reads a photo.
        progress: Called after each photo.

    Returns:
        RGB ``[P, 3]`` uint8.

    Raises:
        ValueError: If a photo's size is no longer that of its frame.
    """
    rgb = torch.zeros(pixels.shape[0], 3, dtype=torch.uint8)
    order = frame_of_point.sort(stable=True).indices
    counts = torch.bincount(frame_of_point, minlength=len(frames)).tolist()
    for index, (frame, members) in enumerate(zip(frames, order.split(counts), strict=True)):
        if members.numel():
            rgb[members] = sample_bilinear(_read(frame, read_rgb), pixels[members])
        report(progress, "colours", index + 1, len(frames))
    return rgb


def sample_bilinear(
    image: Tensor,  # [H, W, 3] uint8
    pixels: Tensor,  # [P, 2] float64
) -> Tensor:
    """Sample an image at pixels, repeating its border; returns rounded ``[P, 3]`` uint8."""
    height, width = image.shape[:2]
    limit = pixels.new_tensor([width - 1, height - 1])
    position = (pixels - 0.5).clamp(min=0.0).minimum(limit)
    first = position.floor().long()
    weight = (position - first)[:, None, :].float()
    second = torch.minimum(first + 1, limit.long())
    (x0, y0), (x1, y1) = first.unbind(-1), second.unbind(-1)
    top = torch.lerp(image[y0, x0].float(), image[y0, x1].float(), weight[..., 0])
    bottom = torch.lerp(image[y1, x0].float(), image[y1, x1].float(), weight[..., 0])
    return torch.lerp(top, bottom, weight[..., 1]).round().clamp(0, 255).to(torch.uint8)


def _read(frame: Frame, read_rgb: ReadRgb) -> Tensor:
    """Read a photo and check that it is the one that was loaded before."""
    image = torch.as_tensor(read_rgb(frame))
    check_tensor("read_rgb(frame)", image, ("H", "W", 3), is_floating=False)
    size = (int(image.shape[1]), int(image.shape[0]))
    if size != frame.size:
        raise ValueError(
            f"{frame.path} has changed: it must be {frame.size[0]} x {frame.size[1]} pixels, "
            f"got {size[0]} x {size[1]}."
        )
    return image
