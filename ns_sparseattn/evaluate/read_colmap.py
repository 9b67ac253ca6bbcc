# SPDX-License-Identifier: Apache-2.0
"""COLMAP models, binary or text, as poses to compare: any camera model, with structure."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ReconstructionError
from ..export.colmap import import_pycolmap
from .types import Lens, PosedModel, Structure

MODEL_FOLDERS = (
    "",
    "colmap/sparse/0",
    "sparse/0",
    "sparse",
    # ETH3D's names.
    "dslr_calibration_undistorted",
    "dslr_calibration_jpg",
)
"""Where `find_model` looks for a model below a folder, in this order."""


def find_model(path: Path) -> Path | None:
    """Return the folder of the COLMAP model at or below a folder, or ``None`` without one."""
    for name in MODEL_FOLDERS:
        folder = path / name
        if any((folder / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return folder
    return None


def read_colmap_model(folder: Path) -> PosedModel:
    """Read a COLMAP model: poses, cameras of any model, points with their tracks.

    Args:
        folder: Holds the model's files; that of its points may be missing.

    Returns:
        Its images. COLMAP writes those alone that have a pose.

    Raises:
        ReconstructionError: If pycolmap is missing or cannot read the files.
        ValueError: If it has no images.
    """
    pycolmap = import_pycolmap()
    try:
        with _with_points(folder) as complete:
            model = pycolmap.Reconstruction(str(complete))
    except (RuntimeError, ValueError) as error:
        raise ReconstructionError(
            f"pycolmap cannot read the COLMAP model in {folder}: {error}"
        ) from error
    images = [image for _, image in sorted(model.images.items())]
    if not images:
        raise ValueError(f"The COLMAP model in {folder} must have images, got none.")
    lenses = {
        camera_id: lens_from_colmap(camera) for camera_id, camera in sorted(model.cameras.items())
    }
    poses = np.stack([image.cam_from_world().matrix() for image in images])
    return PosedModel(
        source=str(folder),
        kind="COLMAP model",
        names=tuple(image.name for image in images),
        cam_from_world=torch.from_numpy(poses.astype(np.float64)),
        lenses=tuple(lenses[image.camera_id] for image in images),
        structure=_read_structure(model, images),
    )


@contextmanager
def _with_points(folder: Path) -> Iterator[Path]:
    """Yield a folder that pycolmap reads: a model of poses alone may lack the file of points."""
    suffix = next((s for s in (".bin", ".txt") if (folder / f"images{s}").is_file()), None)
    if suffix is None or any((folder / f"points3D{s}").is_file() for s in (".bin", ".txt")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file in folder.glob(f"*{suffix}"):
            shutil.copyfile(file, Path(scratch, file.name))
        # A count of 0 points in binary files, no line in text.
        empty = bytes(8) if suffix == ".bin" else b""
        Path(scratch, f"points3D{suffix}").write_bytes(empty)
        yield Path(scratch)


def lens_from_colmap(camera: Any) -> Lens:
    """Return the intrinsics of a ``pycolmap.Camera``."""
    return Lens(
        model=camera.model_name,
        width=float(camera.width),
        height=float(camera.height),
        params=tuple(float(value) for value in camera.params),
        focal=(_focal(camera, 0), _focal(camera, -1)),
        center=(float(camera.principal_point_x), float(camera.principal_point_y)),
    )


def _focal(camera: Any, place: int) -> float:
    """Return the first or the last focal length; models have one or two."""
    return float(camera.params[camera.focal_length_idxs()[place]])


def _read_structure(model: Any, images: list[Any]) -> Structure | None:
    """Return points and observations; ``None`` if the model has no points."""
    points = sorted(model.points3D.items())
    if not points:
        return None
    place = {point_id: index for index, (point_id, _) in enumerate(points)}
    obs_point: list[int] = []
    obs_image: list[int] = []
    for index, image in enumerate(images):
        seen = {point.point3D_id for point in image.points2D if point.has_point3D()}
        obs_point += [place[point_id] for point_id in sorted(seen)]
        obs_image += [index] * len(seen)
    return Structure(
        xyz=torch.from_numpy(np.stack([point.xyz for _, point in points]).astype(np.float64)),
        obs_point=torch.tensor(obs_point, dtype=torch.int64),
        obs_image=torch.tensor(obs_image, dtype=torch.int64),
    )
