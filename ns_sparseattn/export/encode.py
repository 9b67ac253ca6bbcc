# SPDX-License-Identifier: Apache-2.0
"""Photos as bytes: full and smaller copies. The same pixels always give the same bytes."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

_log = logging.getLogger(__name__)

JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of JPEG files; MPO is a JPEG followed by more pictures, as some phones write."""

_ORIENTATION, _EXIF_IFD, _PIXEL_WIDTH, _PIXEL_HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
"""EXIF tags."""

_SAVE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {"compress_level": 4},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}
"""How copies are written, by Pillow's name of the format; others take Pillow's defaults."""

_UPRIGHT_JPEG_QUALITY = 100
"""Quality of a full-resolution copy."""


def encode(image: Image.Image, file_format: str) -> bytes:
    """Encode a smaller copy or a mask, keeping a colour profile.

    Args:
        image: 8-bit pixels.
        file_format: Pillow's name of the format.

    Returns:
        The file's bytes.
    """
    options = dict(_SAVE_OPTIONS.get(file_format, {}))
    profile = image.info.get("icc_profile")
    return _save(image, file_format, {**options, "icc_profile": profile} if profile else options)


def encode_upright(
    image: Image.Image,
    file_format: Literal["JPEG", "PNG"],
    exif: Image.Exif,
    profile: bytes | None,
    *,
    name: str,
) -> bytes:
    """Encode a full-resolution upright copy.

    Args:
        image: Upright RGB pixels.
        file_format: JPEG is written at the highest quality, without subsampling of colour.
        exif: The photo's EXIF block; kept without its orientation, and with the new width and
            height.
        profile: The photo's colour profile; kept if it is one for RGB.
        name: The photo's name, for the log.

    Returns:
        The file's bytes.
    """
    options: dict[str, Any] = dict(_SAVE_OPTIONS[file_format])
    if file_format == "JPEG":
        options["quality"] = _UPRIGHT_JPEG_QUALITY
    # Bytes 16 to 19 name the colour space. That of a CMYK or gray file does not fit RGB pixels.
    if profile is not None and profile[16:20] == b"RGB ":
        options["icc_profile"] = profile
    try:
        block = _upright_exif(exif, image.size)
        return _save(image, file_format, {**options, "exif": block} if block else options)
    except (ValueError, TypeError, OSError, SyntaxError) as error:
        # Broken or oversized blocks exist in the wild; the pixels matter more.
        _log.warning("%s: the EXIF block is left out of the upright copy: %s.", name, error)
        return _save(image, file_format, options)


def reduce_photo(image: Image.Image, factor: int) -> Image.Image:
    """Return the means of blocks of ``factor`` squared pixels; incomplete blocks are cut."""
    _, box = _reduced_size(image.size, factor)
    return image.reduce(factor, box=box)


def reduce_mask(image: Image.Image, factor: int) -> Image.Image:
    """Return the middle pixels of blocks of ``factor`` squared; incomplete blocks are cut."""
    size, box = _reduced_size(image.size, factor)
    return image.resize(size, Image.Resampling.NEAREST, box=box)


def _reduced_size(
    size: tuple[int, int], factor: int
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the size of a smaller copy, at least one pixel, and the part that it shows."""
    width, height = (max(1, length // factor) for length in size)
    return (width, height), (0, 0, min(size[0], width * factor), min(size[1], height * factor))


def _upright_exif(exif: Image.Exif, size: tuple[int, int]) -> bytes:
    """Return the block without orientation and with a size; empty if nothing is left."""
    exif.pop(_ORIENTATION, None)
    # Asking for a part that is not there would make an empty one.
    details = exif.get_ifd(_EXIF_IFD) if _EXIF_IFD in exif else {}
    for tag, value in zip((_PIXEL_WIDTH, _PIXEL_HEIGHT), size, strict=True):
        if tag in details:
            details[tag] = value
    return exif.tobytes() if len(exif) else b""


def _save(image: Image.Image, file_format: str, options: Mapping[str, Any]) -> bytes:
    # Encoding into memory keeps a full disk apart from an encoder's complaint.
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()
