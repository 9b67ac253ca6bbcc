# SPDX-License-Identifier: Apache-2.0
"""Decode one photo of any kind to upright 8-bit RGB, or say what is wrong with the file.

Content counts, not the suffix: a JPEG named .png is a JPEG. Transparent photos are composited on
white, as VGGT does, and their alpha channel is offered as a mask.

Axes: ``H`` rows, ``W`` columns of the upright photo.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import BrokenPhotoError
from .exif import UPRIGHT, read_camera, read_orientation, turn_upright
from .pixel_map import Size
from .types import ExifCamera, Frame

MAX_PIXELS = 500_000_000
"""Larger photos count as decompression bombs: 1.5 GB each as RGB. The largest phone sensors have
200 megapixels."""

OPAQUE_FROM = 128
"""Alpha from which a pixel counts as part of the photo, of 255."""

_FIRST_ON_ITS_SIDE = 5
"""EXIF orientations from this one on exchange width and height."""
_TRAINER_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP"})
_TRAINER_MODES = frozenset({"L", "RGB", "RGBA"})
# Formats whose further frames are an animation. Further frames of a TIFF or of a phone's JPEG
# (MPO) are extras.
_ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


class _UnsupportedPixels(ValueError):
    """An image is whole, but its pixels cannot become 8-bit RGB; the message is a clause."""


@dataclass(frozen=True, kw_only=True)
class DecodedPhoto:
    """One photo at full resolution."""

    rgb: Image.Image
    """Upright, mode RGB, composited on white."""
    opaque: NDArray[np.bool_] | None  # [H, W]
    """Where the photo is not transparent; ``None`` if it has no transparent pixel."""
    orientation: int
    """EXIF orientation of the file."""
    trainer_ready: bool
    """See `Frame.trainer_ready`."""
    exif: ExifCamera


def decode_photo(path: Path) -> DecodedPhoto:
    """Decode a photo completely.

    Raises:
        BrokenPhotoError: If that is not possible, with the reason.
    """
    with open_image(path) as image:
        if image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
            raise BrokenPhotoError(
                path,
                f"it is an animation of {getattr(image, 'n_frames', 'several')} frames; "
                "save the ones to use as single photos",
            )
        is_plain = _is_plain_8_bit(image)
        # A TIFF is turned upright, and loses the tag, as its pixels are decoded; a PNG may show its
        # tag only then. What is left afterwards is still to be done.
        orientation_before = read_orientation(image) if image.format == "TIFF" else UPRIGHT
        load_pixels(image, path)
        remaining = read_orientation(image)
        orientation = remaining if orientation_before == UPRIGHT else orientation_before
        exif = read_camera(image)
        rgb, alpha = _split_alpha(image)
    opaque = None
    if alpha is not None:
        opaque = np.asarray(turn_upright(alpha, remaining)) >= OPAQUE_FROM
    return DecodedPhoto(
        rgb=turn_upright(rgb, remaining),
        opaque=opaque,
        orientation=orientation,
        trainer_ready=is_plain and orientation == UPRIGHT,
        exif=exif,
    )


def read_upright_size(path: Path) -> Size:
    """Return width and height of a photo after its EXIF rotation, from the head of the file.

    Raises:
        BrokenPhotoError: If the head cannot be read.
    """
    with open_image(path) as image:
        width, height = image.size
        is_turned = read_orientation(image) >= _FIRST_ON_ITS_SIDE
    return (height, width) if is_turned else (width, height)


def read_rgb(frame: Frame) -> NDArray[np.uint8]:
    """Read a photo at full resolution.

    Args:
        frame: A frame of `ns_sparseattn.frames.load`.

    Returns:
        ``[H, W, 3]`` uint8, RGB, upright, transparent pixels composited on white.

    Raises:
        BrokenPhotoError: If the file was damaged or changed since it was loaded.
    """
    with allow_large_images():
        rgb = decode_photo(frame.path).rgb
    if rgb.size != frame.size:
        raise BrokenPhotoError(
            frame.path,
            f"it changed from {frame.size[0]} x {frame.size[1]} to {rgb.size[0]} x {rgb.size[1]} "
            "pixels since it was loaded",
        )
    return np.array(rgb)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file by its content, and close it afterwards.

    Raises:
        BrokenPhotoError: If it is none, or if it turns out to be damaged while the context lasts.
    """
    # Malformed files make Pillow's many decoders raise nearly anything, and at any time.
    try:
        with _open(path) as image:
            yield image
    except (BrokenPhotoError, MemoryError):
        raise
    except Exception as error:
        raise BrokenPhotoError(path, _explain(error)) from error


def load_pixels(image: Image.Image, path: Path) -> None:
    """Decode all pixels of an opened image.

    Raises:
        BrokenPhotoError: If the file ends early or its data are damaged, with how far it goes.
    """
    try:
        image.load()
    except OSError as error:
        raise BrokenPhotoError(path, _explain(error) + _rows_decoded(image)) from error


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a loaded 16-bit gray image (mode I;16 or I) to 8 bit; Pillow's own would clip."""
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise _UnsupportedPixels(
            f"its gray levels reach from {low} to {high}; save it as 8 or 16 bit"
        )
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


class _PixelLimit:
    """Who has raised Pillow's process-wide limit, and what it was before."""

    lock = threading.Lock()
    num_users = 0
    before: int | None = None


@contextlib.contextmanager
def allow_large_images() -> Iterator[None]:
    """Raise Pillow's limit, too low for 200-megapixel phones, to `MAX_PIXELS` for a while."""
    with _PixelLimit.lock:
        if _PixelLimit.num_users == 0:
            _PixelLimit.before = Image.MAX_IMAGE_PIXELS
            # Pillow warns from the limit on and refuses from twice the limit on; `_open` refuses
            # in between.
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        _PixelLimit.num_users += 1
    try:
        yield
    finally:
        with _PixelLimit.lock:
            _PixelLimit.num_users -= 1
            if _PixelLimit.num_users == 0:
                Image.MAX_IMAGE_PIXELS = _PixelLimit.before


def _open(path: Path) -> Image.Image:
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise BrokenPhotoError(path, "it is not a file")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise BrokenPhotoError(path, "the file is empty (0 bytes)")
    image = _open_heif(path) if _is_heif(head) else Image.open(path)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _is_heif(head: bytes) -> bool:
    """Tell HEIC by the brand in its first box; AVIF, its sibling, is Pillow's own business."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head


def _open_heif(path: Path) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise BrokenPhotoError(
            path, 'HEIC photos need pillow-heif: pip install "ns_sparseattn[heic]"'
        ) from error
    return pillow_heif.open_heif(path).to_pillow()


def _is_plain_8_bit(image: Image.Image) -> bool:
    """Tell whether plain 8-bit readers get the right pixels; `image` must not be loaded yet."""
    return (
        image.format in _TRAINER_FORMATS
        and image.mode in _TRAINER_MODES
        and "transparency" not in image.info
        and not any(";16" in str(tile[3]) for tile in _tiles(image))
    )


def _tiles(image: Image.Image) -> list[Any]:
    """Return Pillow's decoder jobs; their last element names the layout of the file's pixels."""
    return getattr(image, "tile", None) or []


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Turn a loaded image of any mode into RGB on white, and its alpha if that is not opaque."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return to_8_bit(image).convert("RGB"), None
    if image.mode == "F":
        raise _UnsupportedPixels("its pixels are floating-point numbers; save it as 8 or 16 bit")
    if not image.has_transparency_data:
        # `convert` is skipped where it would only copy.
        return (image if image.mode == "RGB" else image.convert("RGB")), None
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return rgba.convert("RGB"), None
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB"), alpha


def _explain(error: Exception) -> str:
    """Turn what Pillow or the system raised into a clause for the user."""
    if isinstance(error, _UnsupportedPixels):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip().rstrip(".")
    if "truncated" in text.lower():
        return "the file is truncated"
    return f"its data are damaged ({text})" if text else "its data are damaged"


def _rows_decoded(image: Image.Image) -> str:
    """Say how far the decoder came before it failed, if known; rows beyond that are zero."""
    try:
        box = image.im.getbbox()
    except (AttributeError, TypeError, ValueError):
        return ""
    if box is None or box[3] >= image.height:
        return ""
    return f", about {box[3]} of {image.height} rows are there"
