# SPDX-License-Identifier: Apache-2.0
"""Poses from whatever holds them: a scene folder, a COLMAP model, transforms.json, a trajectory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from ..export import is_scene_folder
from ..frames.discover import natural_key
from .read_co3d import read_co3d
from .read_colmap import find_model, read_colmap_model
from .read_images_text import read_images_text
from .read_trajectory import read_trajectory
from .read_transforms import read_transforms
from .types import PosedModel

_MODEL_FILES = ("cameras", "images", "points3D", "rigs", "frames")
IMAGES_TEXT = "images.txt"
"""COLMAP's poses as text, which may stand without cameras and points."""
_TRAJECTORY_NAMES = ("groundtruth.txt",)
"""What the TUM and ETH3D SLAM benchmarks call the reference in a sequence's folder."""


def read_poses(path: Path, *, sequence: str | None = None) -> PosedModel:
    """Read poses, and what else there is: intrinsics, points.

    Args:
        path: A scene folder; a folder of a COLMAP model, binary or text, or one that holds such a
            model (ETH3D's are of this kind); a ``transforms.json`` or its folder; an ``images.txt``
            without the rest of a model; a TUM trajectory, a camera file of RealEstate10K, a log of
            Tanks and Temples, or annotations of Co3D. Of several in one folder the first in this
            list is read.
        sequence: Name of the sequence, of which annotations of Co3D hold many.

    Returns:
        The images in natural order of their names.

    Raises:
        ValueError: If there is nothing of the kind, or two images have one name.
        ReconstructionError: If a COLMAP model cannot be read.
    """
    model = _read(path, sequence)
    repeated = [name for name, count in Counter(model.names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Image names in {model.source} must be unique, got {', '.join(repeated[:3])} more "
            "than once."
        )
    order = sorted(range(len(model)), key=lambda index: natural_key(model.names[index]))
    return model.select(order)


def _read(path: Path, sequence: str | None) -> PosedModel:
    if not path.exists():
        raise ValueError(f"There is no {path}.")
    if path.is_file():
        if path.suffix == ".jgz":
            return read_co3d(path, sequence)
        if path.suffix == ".json":
            return read_transforms(path)
        if path.name == IMAGES_TEXT and find_model(path.parent) != path.parent:
            return read_images_text(path)
        if path.stem in _MODEL_FILES and path.suffix in (".bin", ".txt"):
            return read_colmap_model(path.parent)
        return read_trajectory(path)
    folder = find_model(path)
    if folder is not None:
        model = read_colmap_model(folder)
        if is_scene_folder(path):
            return replace(model, source=str(path), kind="scene folder")
        return model
    if (path / "transforms.json").is_file():
        return read_transforms(path / "transforms.json")
    if (path / IMAGES_TEXT).is_file():
        return read_images_text(path / IMAGES_TEXT)
    for name in _TRAJECTORY_NAMES:
        if (path / name).is_file():
            return read_trajectory(path / name)
    raise ValueError(
        f"{path} must hold a COLMAP model (cameras.bin or cameras.txt, also in sparse/0), a "
        "transforms.json, an images.txt or a groundtruth.txt; it holds none of them."
    )
