# SPDX-License-Identifier: Apache-2.0
"""Frames without photos, for tests that look at sizes, names and EXIF alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..frames.resize import common_size, plan_resize
from ..frames.types import ExifCamera, Frame, Frames, Size


def stub_frame(
    name: str,
    size: Size = (64, 48),
    *,
    exif: ExifCamera | None = None,
    long_side: int = 28,
) -> Frame:
    """Make a frame whose file does not exist.

    Args:
        name: Its name.
        size: Width and height of the photo.
        exif: Its camera; by default EXIF is silent.
        long_side: Longest side of the network's input, pixels, a multiple of 14.
    """
    return Frame(
        name=name,
        path=Path(name),
        size=size,
        orientation=1,
        trainer_ready=True,
        exif=exif or ExifCamera(),
        pixel_map=plan_resize(*size, "fit", long_side, 14),
    )


def stub_frames(frames: Sequence[Frame]) -> Frames:
    """Collect frames of one network size with gray pixels."""
    width, height = common_size([frame.pixel_map for frame in frames])
    images = torch.full((len(frames), 3, height, width), 128, dtype=torch.uint8)
    return Frames(frames=tuple(frames), images=images)


def read_blank(frame: Frame) -> Tensor:
    """Stand in for `ns_sparseattn.frames.read_rgb`: a black photo of the right size."""
    return torch.zeros(frame.size[1], frame.size[0], 3, dtype=torch.uint8)
