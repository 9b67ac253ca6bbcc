# SPDX-License-Identifier: Apache-2.0
"""Choose the view that a network with a reference view is to see first: what most others overlap.

The encoder looks at all photos at reduced size. How much one photo covers another is how well, on
average, the best of its places matches each place of the other. The reference is the photo that
covers the others best. Names and order of the photos play no part.

Axes: ``F`` frames, ``H`` x ``W`` network pixels, ``P`` patches, ``G`` cells of a frame, ``C``
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .compute import InferenceOptions
from .images import check_images

MAX_PATCHES = 16
"""Patches along the longer side of the reduced photos: a fifth of what a network sees at 518
pixels. Chosen: enough for the encoder to tell places apart, and little beside the network."""
MAX_CELLS = 8
"""Cells along each side that photos are compared by; 64 of them bound the time for many photos."""

_FRAMES_PER_CHUNK = 64
"""Frames whose tokens are held at once, which bounds memory."""


@torch.no_grad()
def choose_reference(
    model: Any,
    images: Tensor,  # [F, 3, H, W]
    *,
    masks: Tensor | None = None,  # [F, H, W] bool
    candidates: Sequence[int] | None = None,
    options: InferenceOptions | None = None,
) -> int:
    """Return the frame that covers the others best.

    Args:
        model: A network with ``encode(images, *, options)`` and ``config.patch_size``.
        images: RGB, uint8 or float in [0, 1], ``[F, 3, H, W]``.
        masks: True where a pixel may be used; places without such a pixel count for nothing.
        candidates: Frames to choose from; all if not given.
        options: Precision, chunks, memory.

    Raises:
        TypeError: If ``images`` is no tensor of a usable dtype.
        ValueError: If its shape or range do not fit.
    """
    candidates = range(len(images)) if candidates is None else candidates
    if len(candidates) == 1:
        return candidates[0]
    cells, is_usable = _describe(model, images, masks, options)
    covered = cover(cells, is_usable)
    covered.fill_diagonal_(0.0)
    scores = covered.sum(1)
    return max(candidates, key=lambda index: float(scores[index]))


def cover(
    cells: Tensor,  # [F, G, C]
    is_usable: Tensor,  # [F, G] bool
) -> Tensor:
    """Return how well each frame covers each other, ``[F, F]`` float32, row by column.

    That is the mean, over the usable cells of the column's frame, of the best cosine with a usable
    cell of the row's frame; 0 where a frame has none.
    """
    weights = is_usable.float()
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1.0)
    rows = []
    for own, own_usable in zip(cells, is_usable, strict=True):
        if not bool(own_usable.any()):
            rows.append(torch.zeros(len(cells), device=cells.device))
            continue
        best = (cells @ own[own_usable].T).amax(-1)  # [F, G]
        rows.append((best * weights).sum(1))
    return torch.stack(rows)


def _describe(
    model: Any, images: Tensor, masks: Tensor | None, options: InferenceOptions | None
) -> tuple[Tensor, Tensor]:
    """Return unit descriptors of the cells of all frames, and which show anything usable."""
    patch_size = model.config.patch_size
    images = check_images(images, patch_size)[0]
    grid = [side // patch_size for side in images.shape[-2:]]
    scale = min(1.0, MAX_PATCHES / max(grid))
    rows, columns = (max(round(side * scale), 1) for side in grid)
    size = (rows * patch_size, columns * patch_size)
    cells = (min(rows, MAX_CELLS), min(columns, MAX_CELLS))
    parts = []
    for chunk in images.split(_FRAMES_PER_CHUNK):
        small = torch.cat([_shrink(image, size) for image in chunk.split(1)])
        tokens = model.encode(small, options=options)[0, :, : rows * columns].float()
        maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        parts.append(F.adaptive_avg_pool2d(maps, cells).flatten(2).transpose(1, 2))
    pooled = torch.cat(parts)  # [F, G, C]
    is_usable = torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)
    if masks is not None:
        shares = F.adaptive_avg_pool2d(masks.unsqueeze(1).float(), cells)
        is_usable = (shares > 0).flatten(1).to(pooled.device)
    # What all places have in common says nothing.
    mean = pooled[is_usable].mean(0) if bool(is_usable.any()) else 0.0
    return F.normalize(pooled - mean, dim=-1), is_usable


def _shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[1, 3, H, W]`` by the mean over areas, to float in [0, 1]."""
    scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return F.interpolate(scaled, size=size, mode="area")
