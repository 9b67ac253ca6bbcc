# SPDX-License-Identifier: Apache-2.0
"""Photos that add nothing to a scene: copies of others, and photos of nothing.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

import hashlib

from .types import Frames

BLANK_LEVELS = 2.0
"""Standard deviation of the network's pixels, in levels of 255, up to which a photo shows nothing.
Chosen, not measured: JPEG artefacts of an even surface are a level or so. Only a note uses it."""


def find_copies(photos: Frames) -> dict[str, str]:
    """Find photos that are pixel by pixel the same at network size.

    Args:
        photos: The photos.

    Returns:
        Name of each copy, and the name of the first photo that looks like it. Blank photos are
        copies of nothing.
    """
    blank = set(find_blank(photos))
    first: dict[tuple[bytes, tuple[int, int]], str] = {}
    copies: dict[str, str] = {}
    for frame, image in zip(photos.frames, photos.images, strict=True):
        if frame.name in blank:
            continue
        digest = hashlib.sha256(image.numpy().tobytes()).digest()
        original = first.setdefault((digest, frame.size), frame.name)
        if original != frame.name:
            copies[frame.name] = original
    return copies


def find_blank(photos: Frames) -> tuple[str, ...]:
    """Name the photos whose pixels are all but equal, such as one taken with the lens covered."""
    blank = []
    for frame, image in zip(photos.frames, photos.images, strict=True):
        inside = image[:, frame.pixel_map.valid_mask()].float()
        if float(inside.std(dim=1, correction=0).max()) <= BLANK_LEVELS:
            blank.append(frame.name)
    return tuple(blank)
