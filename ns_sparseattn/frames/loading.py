# SPDX-License-Identifier: Apache-2.0
"""`load`: from a folder of photos to `Frames`.

Photos are decoded one by one in a few threads; only their pixels at network size are kept.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BrokenPhotoError, BrokenPhotosError
from ..options import FrameOptions
from .decode import allow_large_images, decode_photo
from .discover import PhotoFile, find_photos
from .masks import check_distinct_stems, combine_masks, match_masks, name_some
from .resize import WHITE, common_size, resize_mask
from .sizing import Sizing
from .types import Frame, Frames, SkippedFile

MAX_WORKERS = 8
"""Threads that decode at most; each holds one photo at full resolution, 0.1 GB for 24
megapixels."""

_DEFAULT_OPTIONS = FrameOptions()

_logger = logging.getLogger(__name__)


def load(
    path: Path | str | Sequence[Path | str],
    options: FrameOptions = _DEFAULT_OPTIONS,
    *,
    eval_data: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Frames:
    """Load photos.

    Args:
        path: A folder, searched with all its sub-folders; a list of files, named relative to their
            common folder; or one file.
        options: How photos are found and prepared.
        eval_data: A folder or file of photos to evaluate on; names then begin with ``train/`` or
            ``eval/``, those of masks likewise.
        progress: Called after each photo with the number of photos done and the number of all
            photos.

    Returns:
        The photos in natural order of their names, those to evaluate on last. A given input always
        gives the same result.

    Raises:
        BrokenPhotoError: If photos cannot be read and `options.skip_broken` is off; it names each.
        ValueError: If there are no photos, or the masks do not fit.
    """
    found = find_photos(path, eval_data=eval_data, exclude=options.masks)
    photos = found.photos
    mask_paths = {} if options.masks is None else match_masks(options.masks, photos)

    with allow_large_images():
        sizing = Sizing.of(options, [photo.path for photo in photos])

    def prepare(photo: PhotoFile) -> _Prepared | BrokenPhotoError:
        try:
            return _prepare(photo, mask_paths.get(photo.name), sizing)
        except BrokenPhotoError as error:
            return error

    prepared: list[_Prepared] = []
    broken: list[BrokenPhotoError] = []
    with allow_large_images():
        pool = ThreadPoolExecutor(max_workers=min(MAX_WORKERS, os.cpu_count() or 1, len(photos)))
        try:
            for done, result in enumerate(pool.map(prepare, photos), start=1):
                if isinstance(result, BrokenPhotoError):
                    broken.append(result)
                else:
                    prepared.append(result)
                if progress is not None:
                    progress(done, len(photos))
        finally:
            # After an error or an interrupt nobody waits for the photos that have not been started.
            pool.shutdown(wait=True, cancel_futures=True)

    _judge_broken(broken, len(photos), options)
    if eval_data is not None and len({item.frame.is_eval for item in prepared}) < 2:
        missing = "train" if prepared[0].frame.is_eval else "evaluate"
        raise ValueError(f"No photo to {missing} on can be read.")
    check_distinct_stems([item.frame for item in prepared])
    skipped = (
        *(SkippedFile(path=error.path, reason=error.reason) for error in broken),
        *found.skipped,
    )
    _logger.info("Loaded %d photos, left out %d other files.", len(prepared), len(skipped))
    return _assemble(prepared, skipped)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """One photo at its own network size, before all are padded to one."""

    frame: Frame
    image: Tensor  # [3, H, W] uint8
    mask: Tensor | None  # [H, W] bool


def _prepare(photo: PhotoFile, mask_path: Path | None, sizing: Sizing) -> _Prepared:
    """Decode one photo and its mask, and resize both."""
    decoded = decode_photo(photo.path)
    pixel_map = sizing.plan(*decoded.rgb.size)
    mask = combine_masks(mask_path, decoded.opaque, decoded.rgb.size)
    frame = Frame(
        name=photo.name,
        path=photo.path,
        size=decoded.rgb.size,
        orientation=decoded.orientation,
        trainer_ready=decoded.trainer_ready,
        exif=decoded.exif,
        pixel_map=pixel_map,
        mask_path=mask_path,
        has_alpha=decoded.opaque is not None,
        is_eval=photo.is_eval,
    )
    return _Prepared(
        frame=frame,
        image=sizing.resize(decoded.rgb, pixel_map),
        mask=None if mask is None else resize_mask(mask, pixel_map),
    )


def _judge_broken(broken: list[BrokenPhotoError], num_photos: int, options: FrameOptions) -> None:
    """Raise for broken photos, or name the ones that are left out."""
    if not broken:
        return
    if not options.skip_broken:
        raise broken[0] if len(broken) == 1 else BrokenPhotosError(broken, num_photos)
    if len(broken) == num_photos:
        raise BrokenPhotosError(broken, num_photos) if num_photos > 1 else broken[0]
    for error in broken:
        _logger.warning("Left out %s: %s.", error.path, error.reason)


def _assemble(prepared: list[_Prepared], skipped: tuple[SkippedFile, ...]) -> Frames:
    """Put photos, padded with white to one size, into one tensor; this empties `prepared`."""
    num_frames = len(prepared)
    width, height = common_size([item.frame.pixel_map for item in prepared])
    images = torch.empty(num_frames, 3, height, width, dtype=torch.uint8)
    has_masks = any(item.mask is not None for item in prepared)
    masks = torch.empty(num_frames, height, width, dtype=torch.bool) if has_masks else None

    frames: list[Frame] = []
    unusable: list[str] = []
    prepared.reverse()
    for i in range(num_frames):
        # Popping frees each photo as it is copied, so that the peak stays near one copy of all.
        item = prepared.pop()
        own = item.frame.pixel_map
        pixel_map = own.padded_to((width, height))
        x0, y0 = (after - before for after, before in zip(pixel_map.shift, own.shift, strict=True))
        rows = slice(y0, y0 + own.network_size[1])
        columns = slice(x0, x0 + own.network_size[0])
        images[i] = WHITE
        images[i, :, rows, columns] = item.image
        if masks is not None:
            masks[i] = False
            masks[i, rows, columns] = own.valid_mask() if item.mask is None else item.mask
            if not bool(masks[i].any()):
                unusable.append(item.frame.name)
        frames.append(replace(item.frame, pixel_map=pixel_map))
    if unusable:
        _logger.warning(
            "The masks leave nothing of %d photos: %s.", len(unusable), name_some(unusable)
        )
    return Frames(frames=tuple(frames), images=images, masks=masks, skipped=skipped)
