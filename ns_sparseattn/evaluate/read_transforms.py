# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's ``transforms.json`` as poses to compare.

Its cameras are OpenGL's (x right, y up, z backward), stored as world from camera; intrinsics stand
at the top or with each frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..geometry import invert_rigid
from .read_colmap import lens_from_colmap
from .rotations import check_poses
from .types import Lens, PosedModel

_OPENCV_FROM_OPENGL = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)

_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4")


def read_transforms(path: Path) -> PosedModel:
    """Read poses and intrinsics from a ``transforms.json``.

    Args:
        path: The file.

    Returns:
        Its frames, named by their ``file_path`` without a leading ``images/``.

    Raises:
        ValueError: If it is no such file, a pose is not rigid, or intrinsics are no numbers.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = content["frames"]
        names = [str(frame["file_path"]) for frame in frames]
        rows = [[row[:4] for row in frame["transform_matrix"][:3]] for frame in frames]
        world_from_cam = torch.tensor(rows, dtype=torch.float64).reshape(len(frames), 3, 4)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} must be a transforms.json of nerfstudio, whose `frames` have a `file_path` "
            f"and a `transform_matrix`, got something else ({type(error).__name__}: {error})."
        ) from error
    if not frames:
        raise ValueError(f"{path} must have frames, got none.")
    poses = invert_rigid(check_poses(world_from_cam * _OPENCV_FROM_OPENGL, names, path))
    is_in_images = all(name.removeprefix("./").startswith("images/") for name in names)
    if is_in_images:
        names = [name.removeprefix("./").removeprefix("images/") for name in names]
    return PosedModel(
        source=str(path),
        kind="transforms.json",
        names=tuple(names),
        cam_from_world=poses,
        lenses=tuple(
            _read_lens({**content, **frame}, name, path)
            for name, frame in zip(names, frames, strict=True)
        ),
    )


def _read_lens(entry: Mapping[str, Any], name: str, path: Path) -> Lens | None:
    try:
        return _lens(entry)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} must hold numbers as the intrinsics of {name}, got something else: {error}."
        ) from error


def _lens(entry: Mapping[str, Any]) -> Lens | None:
    """Return a frame's intrinsics; ``None`` if size or focal length is not given."""
    if "w" not in entry or "h" not in entry:
        return None
    width, height = int(entry["w"]), int(entry["h"])
    if "fl_x" in entry:
        focal_x = float(entry["fl_x"])
    elif "camera_angle_x" in entry:
        focal_x = width / (2.0 * math.tan(float(entry["camera_angle_x"]) / 2.0))
    else:
        return None
    params = [
        focal_x,
        float(entry.get("fl_y", focal_x)),
        float(entry.get("cx", width / 2.0)),
        float(entry.get("cy", height / 2.0)),
    ]
    return _with_distortion(entry, width, height, params)


def _with_distortion(
    entry: Mapping[str, Any], width: int, height: int, params: list[float]
) -> Lens | None:
    from ..export.colmap import import_pycolmap

    k1, k2, p1, p2, k3, k4 = (float(entry.get(name, 0.0)) for name in _DISTORTION)
    kind = str(entry.get("camera_model", "OPENCV"))
    if kind == "OPENCV_FISHEYE":
        model, extra = kind, [k1, k2, k3, k4]
    elif kind not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        return None
    elif k3 or k4:
        model, extra = "FULL_OPENCV", [k1, k2, p1, p2, k3, k4, 0.0, 0.0]
    elif k1 or k2 or p1 or p2:
        model, extra = "OPENCV", [k1, k2, p1, p2]
    else:
        model, extra = "PINHOLE", []
    camera = import_pycolmap().Camera(
        model=model, width=width, height=height, params=[*params, *extra]
    )
    return lens_from_colmap(camera)
