# SPDX-License-Identifier: Apache-2.0
"""What EXIF says: the orientation of the stored pixels, and the camera with its focal length.

EXIF is written by many hands, so every value here may be missing, of the wrong type, or rubbish;
none of it stops a run.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import Any

from PIL import ExifTags, Image

from .pixel_map import Size
from .types import ExifCamera

FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
"""Diagonal of 35 mm film. The 35 mm equivalent is defined through the diagonal angle of view (CIPA
DCG-001)."""

MM_PER_RESOLUTION_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""EXIF FocalPlaneResolutionUnit: inch, centimetre, millimetre, micrometre. Inch is the standard's
default."""

PLAUSIBLE_FOCAL_LENGTHS = (0.2, 50.0)
"""Focal lengths believed, in long sides of the photo: 136 degrees of view to 1.1 degrees."""

UPRIGHT = 1

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's EXIF parser raises on malformed blocks.
_RUBBISH = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)

_logger = logging.getLogger(__name__)


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of the pixels in `image`, 1 to 8; anything invalid is 1."""
    value = _tags(image).get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and value in _TRANSPOSE else UPRIGHT


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation; the result may be `image` itself."""
    return image if orientation == UPRIGHT else image.transpose(_TRANSPOSE[orientation])


def read_camera(image: Image.Image) -> ExifCamera:
    """Read camera, lens and focal length of a photo that was just opened."""
    tags = _tags(image)
    details = _details(image)
    focal_length_mm = _positive(details.get(ExifTags.Base.FocalLength))
    return ExifCamera(
        make=_text(tags.get(ExifTags.Base.Make)),
        model=_text(tags.get(ExifTags.Base.Model)),
        lens=_text(details.get(ExifTags.Base.LensModel)),
        focal_length_mm=focal_length_mm,
        focal_length_px=_focal_length_px(details, focal_length_mm, image.size),
    )


def _focal_length_px(
    details: dict[int, Any], focal_length_mm: float | None, size: Size
) -> float | None:
    """Return the focal length in pixels of a photo of `size`, or ``None``.

    Pixels are taken as square. The 35 mm equivalent comes first: it stays right when a photo is
    resized after the shot.
    """
    equivalent_mm = _positive(details.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent_mm is not None:
        focal = equivalent_mm / FULL_FRAME_DIAGONAL_MM * math.hypot(*size)
        if _is_plausible(focal, size):
            return focal

    resolution = _positive(details.get(ExifTags.Base.FocalPlaneXResolution)) or _positive(
        details.get(ExifTags.Base.FocalPlaneYResolution)
    )
    if focal_length_mm is None or resolution is None:
        return None
    unit = details.get(ExifTags.Base.FocalPlaneResolutionUnit, 2)
    mm_per_unit = MM_PER_RESOLUTION_UNIT.get(unit if isinstance(unit, int) else 2)
    if mm_per_unit is None:
        return None
    # The resolution belongs to the photo as it was shot. A later resize shows in the pixel counts
    # that EXIF keeps; comparing long sides is independent of any rotation.
    shot_sides = (
        _positive(details.get(ExifTags.Base.ExifImageWidth)),
        _positive(details.get(ExifTags.Base.ExifImageHeight)),
    )
    shot_long_side = max((side for side in shot_sides if side is not None), default=max(size))
    focal = focal_length_mm * resolution / mm_per_unit * max(size) / shot_long_side
    return focal if _is_plausible(focal, size) else None


def _is_plausible(focal_length_px: float, size: Size) -> bool:
    low, high = PLAUSIBLE_FOCAL_LENGTHS
    return low * max(size) <= focal_length_px <= high * max(size)


def _tags(image: Image.Image) -> dict[int, Any]:
    """Return the tags of the main image."""
    try:
        return dict(image.getexif())
    except _RUBBISH as error:
        _logger.debug("EXIF of %s cannot be read: %s", getattr(image, "filename", "a photo"), error)
        return {}


def _details(image: Image.Image) -> dict[int, Any]:
    """Return the tags of the EXIF sub-directory."""
    try:
        return dict(image.getexif().get_ifd(ExifTags.IFD.Exif))
    except _RUBBISH as error:
        _logger.debug("EXIF of %s cannot be read: %s", getattr(image, "filename", "a photo"), error)
        return {}


def _text(value: object) -> str | None:
    """Return a tag's text without padding, or ``None`` if there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        return None
    # Many cameras pad with NULs, and some leave what stood in the buffer behind the first one.
    text = value.split("\0", 1)[0].strip()
    return text or None


def _positive(value: Any) -> float | None:
    """Return a tag's number if it is finite and positive; EXIF uses 0 and x/0 for unknown."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
