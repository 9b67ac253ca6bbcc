# SPDX-License-Identifier: Apache-2.0
"""Known depth from files, brought to network pixels.

Axes: ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..frames.cover import resize_depth
from ..frames.discover import list_files
from ..frames.masks import name_some
from ..frames.types import Frame
from .matching import match_photos

_UNITS_M = {".png": 0.001, ".npy": 1.0}
"""Metres of one unit, by the suffix of the file, if nobody says otherwise."""
_16_BIT_MODES = ("I;16", "I;16B", "I")


def read_depth(
    folder: Path, frames: tuple[Frame, ...], *, unit_m: float | None = None
) -> tuple[tuple[Tensor | None, ...], tuple[str, ...]]:
    """Read the depth of photos.

    Args:
        folder: Files named as the photos, with the suffix .png or .npy.
        frames: The photos.
        unit_m: Metres of one unit; by default a millimetre for PNG, a metre for .npy.

    Returns:
        For each photo ``[H, W]`` float32 in metres at network size, 0 where unknown, or ``None``;
        and sentences that the user should read.

    Raises:
        ValueError: If the folder is missing, no name fits, or a file has another size or kind.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"The folder of depth {folder} {what}.")
    files = [file for file in list_files(folder) if file.path.suffix.lower() in _UNITS_M]
    if not files:
        raise ValueError(f"The folder of depth {folder} holds no .png and no .npy files.")
    pairs = match_photos(frames, [file.name for file in files], "The depth maps", folder)
    depth: list[Tensor | None] = [None] * len(frames)
    for index, place in pairs:
        path = files[place].path
        values = _read(path)
        _check_size(path, values, frames[index])
        scale = unit_m or _UNITS_M[path.suffix.lower()]
        at_network_size = resize_depth(values * scale, frames[index].pixel_map)
        depth[index] = at_network_size if bool((at_network_size > 0).any()) else None
    empty = [frames[index].name for index, _ in pairs if depth[index] is None]
    without = [f.name for i, f in enumerate(frames) if i not in {index for index, _ in pairs}]
    notes = []
    if without:
        notes.append(f"No depth is known for {name_some(without)}.")
    if empty:
        notes.append(f"The depth is unknown everywhere in {name_some(empty)}.")
    return tuple(depth), tuple(notes)


def _read(path: Path) -> NDArray[np.float64]:
    """Return the values of a file, 0 where they are not finite."""
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                if image.mode not in _16_BIT_MODES:
                    raise ValueError(f"its pixels are of the kind {image.mode}, not 16-bit gray")
                values = np.asarray(image)
        if values.ndim == 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError(f"it holds {values.dtype} of shape {list(values.shape)}")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as depth: {error}.") from error
    values = values.astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    if (values < 0).any():
        raise ValueError(f"{path} must hold depth of 0 or more, got {values.min():g}.")
    return values


def _check_size(path: Path, values: NDArray[np.float64], frame: Frame) -> None:
    height, width = values.shape
    if (width, height) != frame.size:
        raise ValueError(
            f"The depth {path} has {width} x {height} pixels, its photo {frame.name} has "
            f"{frame.size[0]} x {frame.size[1]}."
        )
