# SPDX-License-Identifier: Apache-2.0
"""Photos on disk become frozen `Frames`: names, EXIF, masks, and pixels at network size.

`load` reads a folder, a list or a single file; `read_rgb` and `read_mask` give other stages a
photo's full resolution.
"""

from __future__ import annotations

from .decode import read_rgb
from .discover import natural_key
from .loading import load
from .masks import read_mask
from .pixel_map import PixelMap, Size
from .resize import plan_area, plan_resize, resize_image
from .types import ExifCamera, Frame, Frames, SkippedFile

__all__ = [
    "ExifCamera",
    "Frame",
    "Frames",
    "PixelMap",
    "Size",
    "SkippedFile",
    "load",
    "natural_key",
    "plan_area",
    "plan_resize",
    "read_mask",
    "read_rgb",
    "resize_image",
]
