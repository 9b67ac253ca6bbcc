# SPDX-License-Identifier: Apache-2.0
"""Which photos were taken by the same physical camera."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import PurePosixPath

from ..frames.types import Frame
from ..options import CameraMode


def group_frames(frames: tuple[Frame, ...], camera_mode: CameraMode) -> tuple[tuple[int, ...], ...]:
    """Group frames into physical cameras.

    Args:
        frames: The photos.
        camera_mode: ``auto`` groups by the EXIF camera, lens and focal length and by the upright
            size, ``single`` puts all photos into one group, ``per-folder`` those of each folder,
            ``per-image`` every photo into its own.

    Returns:
        Indices into `frames`, one tuple per camera, ordered by the first photo of each.

    Raises:
        ValueError: If photos that the mode puts into one camera differ in size.
    """
    groups: dict[Hashable, list[int]] = {}
    key_of = _KEYS[camera_mode]
    for index, frame in enumerate(frames):
        groups.setdefault(key_of(frame), []).append(index)
    for members in groups.values():
        _check_one_size([frames[index] for index in members], camera_mode)
    return tuple(tuple(members) for members in groups.values())


def _exif_key(frame: Frame) -> Hashable:
    """Return what photos of one camera, lens, zoom setting and size have in common."""
    exif = frame.exif
    return exif.make, exif.model, exif.lens, exif.focal_length_mm, frame.size


_KEYS: dict[CameraMode, Callable[[Frame], Hashable]] = {
    "auto": _exif_key,
    "single": lambda frame: None,
    "per-folder": lambda frame: PurePosixPath(frame.name).parent,
    "per-image": lambda frame: frame.name,
}


def _check_one_size(frames: list[Frame], camera_mode: CameraMode) -> None:
    """Raise ``ValueError`` if frames that shall share a camera differ in size."""
    first = frames[0]
    other = next((frame for frame in frames if frame.size != first.size), None)
    if other is not None:
        raise ValueError(
            f"`camera_mode` {camera_mode!r} needs photos of one size, got {first.name} with "
            f"{first.size[0]} x {first.size[1]} and {other.name} with "
            f"{other.size[0]} x {other.size[1]} pixels. Use 'auto', which makes "
            "one camera for each size."
        )
