# SPDX-License-Identifier: Apache-2.0
"""The exact map between the pixels of a photo and those of the tensor that a network sees.

``original`` pixels are those of the upright photo (after its EXIF rotation), ``network`` pixels
those of the tensor. In between lie a resize, then a crop, then padding. With pixel centres at half
integers (see `ns_sparseattn.geometry`) all three are one scale and one shift per axis, with no
half-pixel corrections anywhere: ``network = original * scale + shift``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class PixelMap:
    """Resize the whole photo, then shift it inside a tensor of another size.

    A negative shift crops, a positive one pads.
    """

    original_size: Size
    """Width and height of the upright photo."""
    resized_size: Size
    """Width and height that the whole photo is resized to, before any crop or padding."""
    shift: tuple[int, int]
    """Where the resized photo's top-left corner lies in the tensor (x, y)."""
    network_size: Size
    """Width and height of the tensor."""

    def __post_init__(self) -> None:
        for name in ("original_size", "resized_size", "network_size"):
            size = getattr(self, name)
            if min(size) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1 x 1 pixel, got {size[0]} x {size[1]}."
                )
        x0, y0, x1, y1 = self.box
        if x0 >= x1 or y0 >= y1:
            raise ValueError(
                f"`shift` must leave part of the photo in the tensor, got {self.shift}."
            )

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels per original pixel, in x and y."""
        return (
            self.resized_size[0] / self.original_size[0],
            self.resized_size[1] / self.original_size[1],
        )

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Part of the tensor that shows the photo: (x0, y0, x1, y1), ends excluded."""
        return (
            max(self.shift[0], 0),
            max(self.shift[1], 0),
            min(self.shift[0] + self.resized_size[0], self.network_size[0]),
            min(self.shift[1] + self.resized_size[1], self.network_size[1]),
        )

    @property
    def visible_share(self) -> float:
        """Share of the photo's area that the network sees; below 1 when a rule crops."""
        x0, y0, x1, y1 = self.box
        return float(Fraction((x1 - x0) * (y1 - y0), self.resized_size[0] * self.resized_size[1]))

    def padded_to(self, network_size: Size) -> PixelMap:
        """Return the same map with the tensor centred in a larger one; an odd pixel goes behind."""
        extra_x = network_size[0] - self.network_size[0]
        extra_y = network_size[1] - self.network_size[1]
        if extra_x < 0 or extra_y < 0:
            raise ValueError(
                f"`network_size` must not be smaller than {self.network_size}, got {network_size}."
            )
        return PixelMap(
            original_size=self.original_size,
            resized_size=self.resized_size,
            shift=(self.shift[0] + extra_x // 2, self.shift[1] + extra_y // 2),
            network_size=network_size,
        )

    def to_network(self, pixels: Tensor) -> Tensor:
        """Map original pixels ``[..., 2]`` to network pixels; integers become float64."""
        pixels = _as_floating(pixels)
        return pixels * pixels.new_tensor(self.scale) + pixels.new_tensor(self.shift)

    def to_original(self, pixels: Tensor) -> Tensor:
        """Map network pixels ``[..., 2]`` to original pixels; integers become float64."""
        pixels = _as_floating(pixels)
        return (pixels - pixels.new_tensor(self.shift)) / pixels.new_tensor(self.scale)

    def intrinsics_to_original(self, intrinsics: Tensor) -> Tensor:
        """Turn intrinsics ``[..., 3, 3]`` of the tensor into those of the photo."""
        return torch.linalg.inv(self._network_from_original(intrinsics)) @ intrinsics

    def intrinsics_to_network(self, intrinsics: Tensor) -> Tensor:
        """Turn intrinsics ``[..., 3, 3]`` of the photo into those of the tensor."""
        return self._network_from_original(intrinsics) @ intrinsics

    def valid_mask(self) -> Tensor:
        """Return ``[H, W]`` booleans: true where the tensor shows the photo, not padding."""
        mask = torch.zeros(self.network_size[1], self.network_size[0], dtype=torch.bool)
        x0, y0, x1, y1 = self.box
        mask[y0:y1, x0:x1] = True
        return mask

    def _network_from_original(self, like: Tensor) -> Tensor:
        """Return the map as a ``[3, 3]`` matrix on homogeneous pixels."""
        (scale_x, scale_y), (shift_x, shift_y) = self.scale, self.shift
        return like.new_tensor([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y], [0.0, 0.0, 1.0]])


def _as_floating(pixels: Tensor) -> Tensor:
    """Return floating-point pixels: `new_tensor` of an integer tensor would round the scale."""
    return pixels if pixels.is_floating_point() else pixels.double()
