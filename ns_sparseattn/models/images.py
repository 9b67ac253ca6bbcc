# SPDX-License-Identifier: Apache-2.0
"""Checks and normalisation of the images that a model receives.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import check_tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue that every encoder was trained with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their deviation."""


def check_images(images: object, patch_size: int) -> Tensor:
    """Check images and give them a scene axis.

    Args:
        images: ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``, uint8 or float in [0, 1].
        patch_size: Side of a patch; height and width must be multiples of it.

    Returns:
        ``[B, F, 3, H, W]``.

    Raises:
        TypeError: If it is no tensor, or its dtype is neither uint8 nor floating point.
        ValueError: If shape or range do not fit.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"`images` must be a torch.Tensor, got {type(images).__name__}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
    if images.ndim not in (4, 5) or images.shape[-3] != 3:
        raise ValueError(
            f"`images` must have shape [F, 3, H, W] or [B, F, 3, H, W], got {list(images.shape)}."
        )
    if 0 in images.shape:
        raise ValueError(
            f"`images` must hold at least one frame and pixel, got {list(images.shape)}."
        )
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`images` must have sides that are multiples of {patch_size}, got {height} x {width}."
        )
    if images.is_floating_point():
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"`images` must lie in [0, 1], got values from {low:g} to {high:g}.")
    return images if images.ndim == 5 else images.unsqueeze(0)


def check_masks(masks: object, images: Tensor, patch_size: int) -> Tensor | None:
    """Check masks and tell which patches show anything that may be used.

    Args:
        masks: True where a pixel may be used, ``[B, F, H, W]`` or ``[F, H, W]`` booleans, or none.
        images: Checked images, ``[B, F, 3, H, W]``.
        patch_size: Side of a patch.

    Returns:
        ``[B, F, P]`` booleans, false where a patch has no usable pixel; ``None`` if all have.

    Raises:
        TypeError: If it is no boolean tensor.
        ValueError: If the shape is not that of the images.
    """
    if masks is None:
        return None
    batch, num_frames, _, height, width = images.shape
    if isinstance(masks, Tensor) and masks.ndim == 3 and batch == 1:
        masks = masks.unsqueeze(0)
    masks = check_tensor("masks", masks, (batch, num_frames, height, width), is_floating=False)
    if masks.dtype != torch.bool:
        raise TypeError(f"`masks` must be boolean, got {masks.dtype}.")
    grid = (height // patch_size, patch_size, width // patch_size, patch_size)
    patches = masks.reshape(batch, num_frames, *grid).any(-1).any(-2).flatten(2)
    return None if bool(patches.all()) else patches


def normalize_images(
    images: Tensor,  # [..., 3, H, W]
    mean: Sequence[float] | Tensor = IMAGENET_MEAN,
    std: Sequence[float] | Tensor = IMAGENET_STD,
) -> Tensor:
    """Scale uint8 to [0, 1], apply mean and deviation of each channel, and return float32."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, std = (torch.as_tensor(x).to(scaled).view(3, 1, 1) for x in (mean, std))
    return (scaled - mean) / std
