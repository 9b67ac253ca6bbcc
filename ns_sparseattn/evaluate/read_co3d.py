# SPDX-License-Identifier: Apache-2.0
"""Co3D's annotations as poses to compare.

Its cameras are PyTorch3D's: row vectors, ``x_cam = x_world R + T``, x left, y up, z forward; see
``co3d/dataset/data_types.py``. Two files are known: ``frame_annotations.jgz`` of the data set, and
``CATEGORY_test.jgz``, which VGGT and PoseDiffusion evaluate on and which holds no image sizes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .rotations import check_poses
from .types import Lens, PosedModel

_OPENCV_FROM_PYTORCH3D = torch.tensor([[-1.0], [-1.0], [1.0]], dtype=torch.float64)

_MAX_NAMED = 3
"""Sequences named in an error."""


def read_co3d(path: Path, sequence: str | None) -> PosedModel:
    """Read the poses of one sequence.

    Args:
        path: A ``.jgz`` file.
        sequence: The sequence's name; may be left out if there is only one.

    Returns:
        Its images, named by their path in the data set.

    Raises:
        ValueError: If the file is of another kind or has no such sequence.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        by_sequence = _by_sequence(content)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be annotations of Co3D, got something else ({error})."
        ) from error
    if sequence is None and len(by_sequence) == 1:
        sequence = next(iter(by_sequence))
    if sequence not in by_sequence:
        names = ", ".join(sorted(by_sequence)[:_MAX_NAMED])
        raise ValueError(
            f"`sequence` must be one of the {len(by_sequence)} of {path}, such as {names}; "
            f"got {sequence}."
        )
    frames = by_sequence[sequence]
    try:
        views = [frame.get("viewpoint", frame) for frame in frames]
        names = [
            str(frame["filepath"] if "filepath" in frame else frame["image"]["path"])
            for frame in frames
        ]
        rotation = torch.tensor([view["R"] for view in views], dtype=torch.float64)
        translation = torch.tensor([view["T"] for view in views], dtype=torch.float64)
        poses = torch.cat([rotation.transpose(-1, -2), translation.unsqueeze(-1)], dim=-1)
        lenses = tuple(_lens(frame) for frame in frames)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} must hold `R` and `T` of every image of {sequence}, got something else "
            f"({type(error).__name__}: {error})."
        ) from error
    return PosedModel(
        source=f"{path} ({sequence})",
        kind="Co3D annotations",
        names=tuple(names),
        cam_from_world=check_poses(poses * _OPENCV_FROM_PYTORCH3D, names, path),
        lenses=lenses,
    )


def _by_sequence(content: Any) -> dict[str, list[Mapping[str, Any]]]:
    if isinstance(content, dict):
        return content
    sequences: dict[str, list[Mapping[str, Any]]] = {}
    for frame in content:
        sequences.setdefault(frame["sequence_name"], []).append(frame)
    return sequences


def _lens(frame: Mapping[str, Any]) -> Lens | None:
    """Turn intrinsics in normalised device coordinates into pixels; ``None`` without a size."""
    size, view = frame.get("image", {}).get("size"), frame.get("viewpoint")
    if size is None or view is None:
        return None
    height, width = (float(side) for side in size)
    # Half the span of the device coordinates -1 to 1: of each side, or of the shorter for both.
    is_isotropic = view.get("intrinsics_format") == "ndc_isotropic"
    half = [min(width, height) / 2.0] * 2 if is_isotropic else [width / 2.0, height / 2.0]
    focal = tuple(value * scale for value, scale in zip(view["focal_length"], half, strict=True))
    # Device coordinates point left and up.
    center = tuple(
        side / 2.0 - value * scale
        for side, value, scale in zip((width, height), view["principal_point"], half, strict=True)
    )
    return Lens(
        model="PINHOLE",
        width=width,
        height=height,
        params=(*focal, *center),
        focal=(focal[0], focal[1]),
        center=(center[0], center[1]),
    )
