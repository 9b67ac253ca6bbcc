# SPDX-License-Identifier: Apache-2.0
"""Masks: which pixels of a photo may be used.

Black in a mask file, or transparent in the photo, means ignore.

Axes: ``H`` rows, ``W`` columns of the upright photo.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import BrokenPhotoError
from .decode import allow_large_images, decode_photo, load_pixels, open_image
from .discover import PHOTO_SUFFIXES, PhotoFile, list_files
from .pixel_map import Size
from .types import Frame

LOSSY_THRESHOLD = 128
"""Gray level from which a pixel of a JPEG or WebP mask counts as used: compression leaves black
only nearly black."""

MAX_NAMED = 10
"""Files that a message names at most."""

_LOSSLESS_FORMATS = frozenset({"PNG", "TIFF", "BMP", "GIF", "PPM"})

_logger = logging.getLogger(__name__)


def match_masks(folder: Path, photos: Sequence[PhotoFile]) -> dict[str, Path]:
    """Find the mask of each photo by its name, sub-folders included.

    Args:
        folder: The masks. For the photo a.jpg, a.jpg.png is taken before a.jpg, a.png and other
            suffixes.
        photos: The photos.

    Returns:
        Mask file by photo name. Photos without one are left out, and logged.

    Raises:
        ValueError: If the folder is missing, or holds no mask for any photo.
    """
    if not folder.is_dir():
        raise ValueError(f"The folder of masks {folder} does not exist.")
    files = [file for file in list_files(folder) if file.path.suffix.lower() in PHOTO_SUFFIXES]
    if not files:
        raise ValueError(f"The folder of masks {folder} holds no images.")
    photo_paths = {photo.path.resolve() for photo in photos}
    if any(file.path.resolve() in photo_paths for file in files):
        raise ValueError(f"The folder of masks {folder} must not be that of the photos.")

    by_name = {file.name.casefold(): file for file in files}
    by_stem: dict[str, PhotoFile] = {}
    for file in files:
        stem = _without_suffix(file.name.casefold())
        # PNG is what masks usually are and what trainers look for, so it wins among equal stems.
        if stem not in by_stem or file.path.suffix.lower() == ".png":
            by_stem[stem] = file

    matched: dict[str, PhotoFile] = {}
    for photo in photos:
        name = photo.name.casefold()
        file = by_stem.get(name) or by_name.get(name) or by_stem.get(_without_suffix(name))
        if file is not None:
            matched[photo.name] = file
    if not matched:
        expected = f"{_without_suffix(photos[0].name)}.png"
        raise ValueError(
            f"No mask in {folder} matches a photo: {photos[0].name} should have the mask "
            f"{expected}, but the masks have names such as {files[0].name}."
        )
    used = {file.name for file in matched.values()}
    _report(photos, matched, [file.name for file in files if file.name not in used])
    return {name: file.path for name, file in matched.items()}


def read_mask(frame: Frame) -> NDArray[np.bool_] | None:
    """Read which pixels of a photo may be used, at full resolution.

    Mask file and transparency are combined.

    Args:
        frame: A frame of `ns_sparseattn.frames.load`.

    Returns:
        ``[H, W]`` bool of the upright photo, true = use; ``None`` if the photo has no mask.
    """
    with allow_large_images():
        opaque = decode_photo(frame.path).opaque if frame.has_alpha else None
        return combine_masks(frame.mask_path, opaque, frame.size)


def combine_masks(
    mask_path: Path | None,
    opaque: NDArray[np.bool_] | None,  # [H, W]
    size: Size,
) -> NDArray[np.bool_] | None:
    """Combine a mask file with the photo's own transparency; ``None`` if there is neither."""
    if mask_path is None:
        return opaque
    mask = read_mask_file(mask_path, size)
    return mask if opaque is None else mask & opaque


def read_mask_file(path: Path, size: Size) -> NDArray[np.bool_]:
    """Read a mask file as it is stored, whatever its EXIF says.

    Args:
        path: Mask of any mode; black or transparent pixels are ignored, all others are used.
        size: Width and height of the upright photo.

    Returns:
        ``[H, W]`` bool, true = use.

    Raises:
        ValueError: If it cannot be read, or has another size than the photo.
    """
    try:
        with open_image(path) as image:
            load_pixels(image, path)
            is_lossless = image.format in _LOSSLESS_FORMATS
            if image.mode[0] in "IF":
                levels, alpha = np.asarray(image), None
            else:
                rgba = np.asarray(image.convert("RGBA"))
                levels, alpha = rgba[..., :3].max(axis=-1), rgba[..., 3]
    except BrokenPhotoError as error:
        raise ValueError(f"The mask {path} cannot be read: {error.reason}.") from error
    _check_size(path, (levels.shape[1], levels.shape[0]), size)
    mask = levels > 0 if is_lossless else levels >= LOSSY_THRESHOLD
    return mask if alpha is None else mask & (alpha > 0)


def check_distinct_stems(frames: Sequence[Frame]) -> None:
    """Refuse masks for photos whose names differ by suffix alone.

    Trainers name a mask after the photo's stem, so that both would get the same one.

    Raises:
        ValueError: If two such photos exist and at least one of them is masked.
    """
    by_stem: dict[str, list[Frame]] = {}
    for frame in frames:
        by_stem.setdefault(_without_suffix(frame.name), []).append(frame)
    for group in by_stem.values():
        if len(group) > 1 and any(frame.mask_path or frame.has_alpha for frame in group):
            names = " and ".join(frame.name for frame in group)
            raise ValueError(
                f"{names} would share one mask, because masks are named after the photo without "
                "its suffix; rename one of them."
            )


def _check_size(path: Path, mask_size: Size, photo_size: Size) -> None:
    if mask_size == photo_size:
        return
    sentence = (
        f"The mask {path} has {mask_size[0]} x {mask_size[1]} pixels, its photo has "
        f"{photo_size[0]} x {photo_size[1]}"
    )
    if mask_size == (photo_size[1], photo_size[0]):
        sentence += "; it seems made for the photo before its EXIF rotation, turn it upright"
    raise ValueError(f"{sentence}.")


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _report(
    photos: Sequence[PhotoFile], matched: Mapping[str, PhotoFile], unused: Sequence[str]
) -> None:
    unmasked = [photo.name for photo in photos if photo.name not in matched]
    if unmasked:
        _logger.info(
            "%d of %d photos have no mask and are used whole: %s.",
            len(unmasked),
            len(photos),
            name_some(unmasked),
        )
    if unused:
        _logger.warning("%d masks match no photo: %s.", len(unused), name_some(unused))


def name_some(names: Sequence[str]) -> str:
    """Join the first names of a list for a message."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
