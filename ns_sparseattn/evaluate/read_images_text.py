# SPDX-License-Identifier: Apache-2.0
"""A COLMAP ``images.txt`` that stands alone: names and poses, without cameras and points.

Each image has a line ``id qw qx qy qz tx ty tz camera_id name`` (``cam_from_world``), and below it
a line of what it sees, which may be empty; https://colmap.github.io/format.html.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..geometry import quaternion_to_rotation
from .types import PosedModel

_NUM_NUMBERS = 9
"""Numbers before the name."""
_POINT_COLUMNS = 3
"""Numbers of each thing that an image sees."""


def read_images_text(path: Path) -> PosedModel:
    """Read names and poses of an ``images.txt``.

    Args:
        path: The file.

    Returns:
        Its images, without intrinsics.

    Raises:
        ValueError: If a line is no image, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file of images, got a binary one.") from error
    names: list[str] = []
    rows: list[list[float]] = []
    follows_image = False
    for line in lines:
        if line.startswith("#") or (follows_image and _is_points(line)) or not line.strip():
            follows_image = False
            continue
        fields = line.split(maxsplit=_NUM_NUMBERS)
        try:
            numbers = [float(value) for value in fields[:_NUM_NUMBERS]]
            name = fields[_NUM_NUMBERS].strip()
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} has a line that is no image: {line[:80]!r}.") from error
        rows.append(numbers[1:8])
        names.append(name)
        follows_image = True
    if not rows:
        raise ValueError(f"{path} must have images, got none.")
    values = torch.tensor(rows, dtype=torch.float64)
    lengths = values[:, :4].norm(dim=1)
    is_bad = ~torch.isfinite(values).all(1) | ~(lengths > 0)
    if bool(is_bad.any()):
        raise ValueError(f"{path} must hold poses, got none for {names[int(is_bad.nonzero()[0])]}.")
    return PosedModel(
        source=str(path),
        kind="images.txt",
        names=tuple(names),
        cam_from_world=torch.cat(
            [quaternion_to_rotation(values[:, :4]), values[:, 4:, None]], dim=-1
        ),
        lenses=(None,) * len(names),
    )


def _is_points(line: str) -> bool:
    """Whether a line lists what an image sees, and is not the next image's."""
    fields = line.split()
    return len(fields) % _POINT_COLUMNS == 0 and all(map(_is_number, fields))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
