# SPDX-License-Identifier: Apache-2.0
"""Which rule brings the photos of a scene to network size, and the filter that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import BrokenPhotoError
from ..options import DEFAULT_LONG_SIDE, FrameOptions, ResizeRule
from .cover import choose_size, cover_image, plan_cover
from .decode import read_upright_size
from .pixel_map import PixelMap, Size
from .resize import PI3_MAX_PIXELS, plan_area, plan_resize, resize_image


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A resize rule for the photos of one scene."""

    options: FrameOptions
    cover_size: Size | None = None
    """Width and height that all photos are cut to, under the rule cover."""

    @classmethod
    def of(cls, options: FrameOptions, paths: Sequence[Path]) -> Sizing:
        """Look at the photos as far as the rule needs it.

        Args:
            options: The rule; ``auto`` and no side, which only a model can resolve, mean ``fit``
                and 518 pixels here.
            paths: The photos. Those that cannot be read do not count.
        """
        if options.resize != "cover":
            return cls(options=options)
        sizes = []
        for path in paths:
            try:
                sizes.append(read_upright_size(path))
            except BrokenPhotoError:
                # Decoding will fail as well, and say why.
                continue
        size = choose_size(sizes or [(1, 1)])
        scale = _long_side(options) / DEFAULT_LONG_SIDE
        width, height = (_to_patches(side * scale, options.patch_size) for side in size)
        return cls(options=options, cover_size=(width, height))

    def plan(self, width: int, height: int) -> PixelMap:
        """Choose the network size of one upright photo."""
        options = self.options
        if self.cover_size is not None:
            return plan_cover(width, height, self.cover_size)
        if options.resize == "area":
            share = (_long_side(options) / DEFAULT_LONG_SIDE) ** 2
            max_pixels = max(round(PI3_MAX_PIXELS * share), options.patch_size**2)
            return plan_area(width, height, max_pixels, options.patch_size)
        rule: ResizeRule = "fit"
        if options.resize == "crop" or options.resize == "pad":
            rule = options.resize
        return plan_resize(width, height, rule, _long_side(options), options.patch_size)

    def resize(self, image: Image.Image, pixel_map: PixelMap) -> Tensor:
        """Resize an upright RGB photo with the filter of the rule, ``[3, H, W]`` uint8."""
        if self.cover_size is not None:
            return cover_image(image, pixel_map)
        return resize_image(
            image, pixel_map, "lanczos" if self.options.resize == "area" else "bicubic"
        )


def _long_side(options: FrameOptions) -> int:
    return options.long_side or DEFAULT_LONG_SIDE


def _to_patches(length: float, patch_size: int) -> int:
    return max(round(length / patch_size), 1) * patch_size
