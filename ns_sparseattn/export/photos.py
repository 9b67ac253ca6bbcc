# SPDX-License-Identifier: Apache-2.0
"""Photos and masks of a scene folder: links, copies, upright or straight copies, smaller copies.

A copy that is smaller by a factor ``k`` has ``floor(W / k)`` by ``floor(H / k)`` pixels, each the
mean of ``k x k`` pixels (the nearest one for masks). Rows and columns that do not fill a block are
cut, so the copy's pixels are those of the photo divided by ``k``, exactly as trainers scale the
intrinsics.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import BrokenPhotoError
from ..frames import read_mask, read_rgb
from ..frames.decode import allow_large_images, load_pixels, open_image
from ..frames.types import Frame
from .encode import JPEG_FORMATS, encode, encode_upright, reduce_mask, reduce_photo
from .names import PhotoNames, plan_names
from .undistort import Undistortion

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of photos that are done and of all photos."""

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_MAX_THREADS = 8
"""Decoding runs outside Python's lock; a full-resolution photo is held per thread."""


How = Literal["link", "copy", "upright copy", "undistorted copy"]
"""What the file of a photo is."""


@dataclass(frozen=True, kw_only=True)
class PlannedPhoto:
    """A photo and what will be written for it."""

    frame: Frame
    names: PhotoNames
    copy_format: Literal["JPEG", "PNG"] | None
    """Format of the copy; ``None`` if the file's bytes are used as they are."""
    copy_reason: str | None
    """Why it cannot be used as it is, a clause; ``None`` if it can."""
    undistortion: Undistortion | None = None
    """How the copy is bent straight, if it is."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is written."""
        return self.frame.size if self.undistortion is None else self.undistortion.size


@dataclass(frozen=True, kw_only=True)
class PhotoRecord:
    """What was written for a photo."""

    source: str
    """Name of the frame."""
    name: str
    """Path below ``images``."""
    flat_name: str
    """Path below ``images`` that ``transforms.json`` uses."""
    how: How
    reason: str | None
    """Why it is not the file's own bytes."""
    width: int
    height: int


def downscale_factors(num_downscales: int) -> tuple[int, ...]:
    """Return the factors of the smaller copies: 2, 4, 8 for three."""
    return tuple(2**level for level in range(1, num_downscales + 1))


def plan_photos(
    frames: Sequence[Frame], undistortions: Sequence[Undistortion | None] | None = None
) -> tuple[PlannedPhoto, ...]:
    """Decide for each photo whether its bytes can be used, and under which name.

    Args:
        frames: The photos to write.
        undistortions: How each is bent straight, ``None`` for those that are already.

    Returns:
        One entry per photo, in the same order.

    Raises:
        BrokenPhotoError: If a photo cannot be opened.
        ValueError: If a name is not valid UTF-8.
    """
    formats: list[Literal["JPEG", "PNG"] | None] = []
    reasons: list[str | None] = []
    suffixes: list[str | None] = []
    warps = undistortions or [None] * len(frames)
    for frame, warp in zip(frames, warps, strict=True):
        if frame.trainer_ready and warp is None:
            formats.append(None)
            reasons.append(None)
            suffixes.append(None)
            continue
        source_format, mode = _format_and_mode(frame)
        is_jpeg = source_format in JPEG_FORMATS
        is_named_so = frame.path.suffix.lower() in (_JPEG_SUFFIXES if is_jpeg else (".png",))
        formats.append("JPEG" if is_jpeg else "PNG")
        if warp is not None:
            reasons.append("lens distortion")
        elif frame.orientation != 1:
            reasons.append(f"EXIF orientation {frame.orientation}")
        else:
            reasons.append(f"{source_format} of mode {mode}")
        suffixes.append(None if is_named_so else (".jpg" if is_jpeg else ".png"))
    names = plan_names([frame.name for frame in frames], suffixes, has_masks=has_masks(frames))
    return tuple(
        PlannedPhoto(
            frame=frame,
            names=name,
            copy_format=copy_format,
            copy_reason=reason,
            undistortion=warp,
        )
        for frame, name, copy_format, reason, warp in zip(
            frames, names, formats, reasons, warps, strict=True
        )
    )


def has_masks(frames: Sequence[Frame]) -> bool:
    """Say whether any photo has a mask; masks are then written for all."""
    return any(frame.mask_path is not None or frame.has_alpha for frame in frames)


def write_photos(
    photos: Sequence[PlannedPhoto],
    folder: Path,
    *,
    num_downscales: int,
    progress: Progress | None = None,
) -> tuple[PhotoRecord, ...]:
    """Write ``images``, ``masks`` and their smaller copies into a scene folder.

    Args:
        photos: What `plan_photos` returned.
        folder: The scene folder.
        num_downscales: Number of times to halve.
        progress: Called in the caller's thread after each photo.

    Returns:
        One entry per photo, in the same order.

    Raises:
        BrokenPhotoError: If a photo or mask cannot be decoded, or changed its size since it was
            loaded.
        OSError: If something cannot be written.
    """
    with_masks = has_masks([photo.frame for photo in photos])
    factors = downscale_factors(num_downscales)
    with allow_large_images():
        pool = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1))
        try:
            tasks = [
                pool.submit(_write_photo, photo, folder, factors, with_masks) for photo in photos
            ]
            for num_done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                if progress is not None:
                    progress(num_done, len(tasks))
        finally:
            # After an error nothing may write any more when the folder is removed.
            pool.shutdown(wait=True, cancel_futures=True)
    records = tuple(task.result() for task in tasks)
    _log_records(photos, records)
    return records


def link_or_copy(source: Path, target: Path) -> Literal["link", "copy"]:
    """Make a hard link to a file, or copy its bytes where the file system does not allow links.

    Args:
        source: The file; a symbolic link is followed.
        target: The new name, in a folder that exists.

    Returns:
        Which of the two was done.
    """
    try:
        os.link(source.resolve(), target)
        return "link"
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        shutil.copyfile(source, target)
        return "copy"


def _write_photo(
    photo: PlannedPhoto, folder: Path, factors: Sequence[int], with_masks: bool
) -> PhotoRecord:
    frame, names = photo.frame, photo.names
    target = _prepare(folder / "images" / names.image)
    how: How
    if photo.copy_format is None:
        how = link_or_copy(frame.path, target)
        if factors:
            _write_smaller(photo, folder, factors, *_open_ready(frame))
    else:
        how = "upright copy" if photo.undistortion is None else "undistorted copy"
        image, (exif, profile) = _upright(photo), _read_metadata(frame)
        target.write_bytes(encode_upright(image, photo.copy_format, exif, profile, name=frame.name))
        _write_smaller(photo, folder, factors, image, photo.copy_format)
    _add_flat_link(folder / "images", names.image, names.flat_image)
    if with_masks:
        _write_mask(photo, folder, factors)
    width, height = photo.size
    return PhotoRecord(
        source=frame.name,
        name=names.image,
        flat_name=names.flat_image,
        how=how,
        reason=photo.copy_reason,
        width=width,
        height=height,
    )


def _write_smaller(
    photo: PlannedPhoto,
    folder: Path,
    factors: Sequence[int],
    image: Image.Image,
    file_format: str,
) -> None:
    names = photo.names
    for factor in factors:
        root = folder / f"images_{factor}"
        _prepare(root / names.image).write_bytes(encode(reduce_photo(image, factor), file_format))
        _add_flat_link(root, names.image, names.flat_image)


def _write_mask(photo: PlannedPhoto, folder: Path, factors: Sequence[int]) -> None:
    """Write a mask of 0 and 255 and its smaller copies; white all over for a photo without one."""
    frame, names = photo.frame, photo.names
    width, height = photo.size
    mask = read_mask(frame)
    if mask is not None and photo.undistortion is not None:
        mask = photo.undistortion.mask(mask)
    pixels = np.full((height, width), 255, dtype=np.uint8)
    if mask is not None:
        pixels[~mask] = 0
    image = Image.fromarray(pixels)
    for factor in (1, *factors):
        root = folder / ("masks" if factor == 1 else f"masks_{factor}")
        smaller = image if factor == 1 else reduce_mask(image, factor)
        _prepare(root / names.mask).write_bytes(encode(smaller, "PNG"))
        _add_flat_link(root, names.mask, names.flat_mask)


def _format_and_mode(frame: Frame) -> tuple[str, str]:
    with allow_large_images(), open_image(frame.path) as image:
        # Formats that come through a plug-in may have no name.
        by_suffix = frame.path.suffix.lstrip(".").upper() or "unknown format"
        return image.format or by_suffix, image.mode


def _read_metadata(frame: Frame) -> tuple[Image.Exif, bytes | None]:
    """Return a photo's EXIF block and colour profile."""
    with open_image(frame.path) as image:
        return image.getexif(), image.info.get("icc_profile")


def _upright(photo: PlannedPhoto) -> Image.Image:
    """Return a photo's upright pixels, without distortion if asked for."""
    rgb = read_rgb(photo.frame)
    warp = photo.undistortion
    return Image.fromarray(rgb) if warp is None else warp.photo(rgb)


def _open_ready(frame: Frame) -> tuple[Image.Image, str]:
    """Decode a photo that trainers read as it is; also return Pillow's name of its format."""
    with open_image(frame.path) as image:
        file_format = "JPEG" if image.format in JPEG_FORMATS else image.format or "PNG"
        load_pixels(image, frame.path)
        _check_size(frame, image.size)
        return image.copy(), file_format


def _check_size(frame: Frame, size: tuple[int, int]) -> None:
    if size != frame.size:
        was, now = (f"{width} x {height}" for width, height in (frame.size, size))
        raise BrokenPhotoError(frame.path, f"it was {was} pixels when loaded and is {now} now")


def _prepare(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add_flat_link(root: Path, name: str, flat_name: str) -> None:
    if flat_name != name:
        link_or_copy(root / name, root / flat_name)


def _log_records(photos: Sequence[PlannedPhoto], records: Sequence[PhotoRecord]) -> None:
    for how, kind in (
        ("upright copy", "upright 8-bit copies, since trainers cannot use the files as they are"),
        ("undistorted copy", "copies without lens distortion"),
    ):
        copies = [f"{record.source} ({record.reason})" for record in records if record.how == how]
        if copies:
            _log.info(
                "%d of %d photos are written as %s: %s",
                len(copies),
                len(photos),
                kind,
                _shorten(copies),
            )
    renamed = [
        f"{record.source} -> {record.name}" for record in records if record.source != record.name
    ]
    if renamed:
        _log.info("%d photos have another name in the scene: %s", len(renamed), _shorten(renamed))
    num_copied = sum(record.how == "copy" for record in records)
    if num_copied:
        _log.info(
            "%d photos are copied: the file system does not allow hard links to them.", num_copied
        )


def _shorten(items: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest
