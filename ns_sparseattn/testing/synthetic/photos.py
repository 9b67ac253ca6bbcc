# SPDX-License-Identifier: Apache-2.0
"""Photos of a synthetic scene on disk, and as `Frames` without a disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ExifTags, Image

from ...frames.exif import FULL_FRAME_DIAGONAL_MM
from ...frames.resize import common_size, plan_resize, resize_image
from ...frames.types import ExifCamera, Frame, Frames
from ...options import ResizeRule
from ..photos import as_stored
from .scenes import SyntheticScene, View


def write_photos(
    scene: SyntheticScene,
    folder: Path,
    *,
    orientations: Sequence[int] = (1,),
    has_exif_focal: bool = True,
    quality: int = 95,
) -> list[Path]:
    """Render all views and write them as JPEG files.

    Args:
        scene: What to photograph.
        folder: Made if it does not exist.
        orientations: EXIF orientations, repeated in turn over the views; the pixels are stored
            accordingly.
        has_exif_focal: Whether EXIF tells the focal length and a camera name.
        quality: Of the JPEG files.

    Returns:
        The files, in the order of the views.
    """
    paths = []
    for index, view in enumerate(scene.views):
        orientation = orientations[index % len(orientations)]
        path = folder / view.name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = _to_image(scene, view)
        stored = as_stored(image, orientation)
        exif = _exif(view, orientation, has_exif_focal)
        # No chroma subsampling: feature matching and colours deserve the picture as it was
        # rendered.
        stored.save(path, quality=quality, subsampling=0, exif=exif)
        paths.append(path)
    return paths


def make_frames(
    scene: SyntheticScene,
    *,
    resize: ResizeRule = "fit",
    long_side: int = 518,
    patch_size: int = 14,
    is_rendered: bool = False,
) -> Frames:
    """Make the `Frames` that loading the written photos would give, without writing any.

    Args:
        scene: The scene.
        resize: How photos are fitted to the network.
        long_side: Longest side of the network's input, pixels.
        patch_size: Both sides are multiples of this, pixels.
        is_rendered: Whether to fill in the pixels; rendering takes time, and many tests never look
            at them.

    Returns:
        Frames named like the views. Their files do not exist: give ``read_rgb=scene.read_rgb`` to
        those who ask.
    """
    plans = [plan_resize(*view.size, resize, long_side, patch_size) for view in scene.views]
    size = common_size(plans)
    frames = tuple(
        Frame(
            name=view.name,
            path=Path(view.name),
            size=view.size,
            orientation=1,
            trainer_ready=True,
            exif=ExifCamera(),
            pixel_map=plan.padded_to(size),
        )
        for view, plan in zip(scene.views, plans, strict=True)
    )
    images = torch.full((len(frames), 3, size[1], size[0]), 255, dtype=torch.uint8)
    if is_rendered:
        for index, (view, frame) in enumerate(zip(scene.views, frames, strict=True)):
            images[index] = resize_image(_to_image(scene, view), frame.pixel_map)
    return Frames(frames=frames, images=images)


def _to_image(scene: SyntheticScene, view: View) -> Image.Image:
    """Return a view's photo as Pillow holds it."""
    return Image.fromarray(scene.photo(view).permute(1, 2, 0).contiguous().numpy())


def _exif(view: View, orientation: int, has_focal: bool) -> Image.Exif:
    """Describe the camera as a phone would: the 35 mm equivalent is an integer."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if has_focal:
        exif[ExifTags.Base.Make] = "Synthetic"
        exif[ExifTags.Base.Model] = "Pinhole"
        focal = float(view.intrinsics[0, 0])
        equivalent_mm = focal / math.hypot(*view.size) * FULL_FRAME_DIAGONAL_MM
        details = exif.get_ifd(ExifTags.IFD.Exif)
        details[ExifTags.Base.FocalLength] = equivalent_mm
        details[ExifTags.Base.FocalLengthIn35mmFilm] = round(equivalent_mm)
    return exif
