# SPDX-License-Identifier: Apache-2.0
"""The photos of one scene as frozen values: `Frame`, `Frames`, and what EXIF says about the camera.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import check_tensor
from .pixel_map import PixelMap, Size


@dataclass(frozen=True, kw_only=True)
class ExifCamera:
    """What a photo's EXIF block says about the camera that took it; ``None`` where it is silent."""

    make: str | None = None
    model: str | None = None
    lens: str | None = None
    focal_length_mm: float | None = None
    focal_length_px: float | None = None
    """Focal length in original pixels, from the 35 mm equivalent or the focal plane resolution."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One photo."""

    name: str
    """POSIX path relative to the folder given, sub-folders kept; unique within a `Frames`. Behind
    ``train/`` or ``eval/`` if there are photos to evaluate on."""
    path: Path
    """The file on disk."""
    size: Size
    """Width and height of the upright photo (after its EXIF rotation)."""
    orientation: int
    """EXIF orientation of the file, 1 (upright) to 8; 1 where the format's own decoder turns the
    photo (HEIC)."""
    trainer_ready: bool
    """Whether trainers that ignore EXIF and read 8-bit RGB(A) or gray files can use the file's
    bytes as they are.

    False for rotated, 16-bit, CMYK, palette, 1-bit and gray + alpha files, for a transparent
    colour, and for formats other than JPEG, PNG, WebP, TIFF and BMP. COLMAP reads no WebP,
    although such a file is trainer-ready."""
    exif: ExifCamera
    pixel_map: PixelMap
    """The exact map between original and network pixels."""
    mask_path: Path | None = None
    """Mask file given by the user; black = ignore."""
    has_alpha: bool = False
    """Whether the photo has transparency that is not fully opaque; it then serves as a mask."""
    is_eval: bool = False
    """Whether the photo is posed but kept from training, to evaluate on."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All photos of a scene, decoded at network resolution.

    They stand in natural order of their names, those to evaluate on last.
    """

    frames: tuple[Frame, ...]
    images: Tensor  # [F, 3, H, W] uint8
    """Network pixels, RGB, 0-255. Bytes, because resizing works on bytes: dividing by 255 loses
    nothing."""
    masks: Tensor | None = None  # [F, H, W] bool
    """True where a network pixel may be used, false in the padding; ``None`` if no photo is
    masked."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files in the folder that are no frames: broken ones that were asked to be skipped, and other
    kinds of file."""

    def __post_init__(self) -> None:
        check_tensor("images", self.images, (len(self.frames), 3, "H", "W"), is_floating=False)
        if self.masks is not None:
            check_tensor(
                "masks", self.masks, (len(self.frames), *self.images.shape[2:]), is_floating=False
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the photos."""
        return tuple(frame.name for frame in self.frames)

    def usable_pixels(self) -> Tensor | None:
        """Return which pixels show a photo and are not masked, ``[F, H, W]``; none if all do."""
        if self.masks is not None:
            return self.masks
        shown = torch.stack([frame.pixel_map.valid_mask() for frame in self.frames])
        return None if bool(shown.all()) else shown

    @property
    def network_size(self) -> Size:
        """Width and height that all frames share in the tensor."""
        return int(self.images.shape[3]), int(self.images.shape[2])
