# SPDX-License-Identifier: Apache-2.0
"""Reconstruct from matches alone, by pycolmap's own mappers, when the prediction is of no use."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..export.colmap import import_pycolmap
from ..scene.types import Camera, Scene
from .cameras import align, read_back, transform_scene, with_poses
from .database import open_database
from .features import num_threads
from .given import Given, Held
from .options import RefineOptions

_logger = logging.getLogger(__name__)

_DEFAULT_FOCAL_FACTOR = 1.2
"""Focal length to start from, share of the longer side: COLMAP's default."""

_MAX_SCALE = 1e3
"""A model is not scaled by more than this, nor by less than its inverse: predicted cameras that all
stand in one place say nothing about the size of the scene."""


_MIN_ANCHORS = 2
"""Poses that a similarity needs."""


@dataclass(frozen=True, kw_only=True)
class MappedScene:
    """What a mapper made of the matches."""

    mapper: str
    """incremental or global."""
    scene: Scene
    """In the prediction's world as far as the two agree. Images that the mapper left out keep
    their predicted pose."""
    registered: frozenset[int]
    """Numbers of the images that the mapper placed."""


def map_from_matches(
    database_path: Path, scene: Scene, options: RefineOptions, *, given: Given, held: Held
) -> tuple[MappedScene, ...]:
    """Run pycolmap's incremental and global mapper on the matches of a database.

    Args:
        database_path: Holds verified matches; it is not changed.
        scene: The prediction.
        options: Threads.
        given: Images whose poses say best where the prediction's world is.
        held: Cameras that stay as they are.

    Returns:
        The largest model of each mapper that made one.
    """
    mapped = []
    for name, run in (("incremental", _run_incremental), ("global", _run_global)):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "database.db"
            shutil.copyfile(database_path, copy)
            _forget_focal_lengths(copy, scene, held)
            models = _try(name, run, copy, Path(folder), options, held)
            if not models:
                continue
            best = max(models.values(), key=lambda model: model.num_reg_images())
            mapped.append(_in_predicted_world(name, scene, best, given))
    return tuple(mapped)


def _try(
    name: str,
    run: Callable[[Path, Path, RefineOptions, Held], dict[int, Any]],
    database_path: Path,
    folder: Path,
    options: RefineOptions,
    held: Held,
) -> dict[int, Any]:
    """Run a mapper; one that cannot cope with the matches makes no model and is no error."""
    try:
        return run(database_path, folder, options, held)
    except RuntimeError as error:
        _logger.warning("pycolmap's %s mapper gave up: %s", name, error)
        return {}


def _run_incremental(
    database_path: Path, folder: Path, options: RefineOptions, held: Held
) -> dict[int, Any]:
    pycolmap = import_pycolmap()
    settings = pycolmap.IncrementalPipelineOptions()
    settings.num_threads = num_threads(options.match)
    settings.random_seed = 0
    settings.extract_colors = False
    settings.min_model_size = 3
    settings.constant_cameras = set(held.cameras)
    return pycolmap.incremental_mapping(str(database_path), str(folder), str(folder), settings)


def _run_global(
    database_path: Path, folder: Path, options: RefineOptions, held: Held
) -> dict[int, Any]:
    pycolmap = import_pycolmap()
    if not held.cameras:
        calibration = pycolmap.ViewGraphCalibrationOptions()
        calibration.random_seed = 0
        pycolmap.calibrate_view_graph(str(database_path), calibration)
    settings = pycolmap.GlobalPipelineOptions()
    settings.num_threads = num_threads(options.match)
    settings.random_seed = 0
    return pycolmap.global_mapping(str(database_path), str(folder), str(folder), settings)


def _forget_focal_lengths(database_path: Path, scene: Scene, held: Held) -> None:
    """Start from COLMAP's default: a prediction that is wrong in poses is no guide to the focal."""
    with open_database(database_path) as database:
        for camera in scene.cameras:
            if camera.camera_id in held.cameras:
                continue
            entry = database.read_camera(camera.camera_id)
            entry.params = list(_default_params(camera))
            entry.has_prior_focal_length = False
            database.update_camera(entry)


def _default_params(camera: Camera) -> tuple[float, ...]:
    focal = _DEFAULT_FOCAL_FACTOR * max(camera.width, camera.height)
    known = {
        "f": focal,
        "fx": focal,
        "fy": focal,
        "cx": camera.named_params["cx"],
        "cy": camera.named_params["cy"],
    }
    return tuple(known.get(name, 0.0) for name in camera.named_params)


def _in_predicted_world(name: str, scene: Scene, reconstruction: Any, given: Given) -> MappedScene:
    """Bring a model into the prediction's world and fill in the images it left out."""
    found, registered = read_back(scene, reconstruction)
    known = sorted(registered & given.poses)
    # Two known poses tell a similarity better than any number of predicted ones.
    indices = known if len(known) >= _MIN_ANCHORS else sorted(registered)
    predicted = torch.stack([scene.images[index].cam_from_world for index in indices])
    poses = torch.stack([found.images[index].cam_from_world for index in indices])
    scale, rotation, translation = align(poses, predicted)
    if not 1.0 / _MAX_SCALE <= scale <= _MAX_SCALE:
        scale = 1.0
    moved = transform_scene(found, scale, rotation, translation)
    kept = {
        index: image.cam_from_world
        for index, image in enumerate(scene.images)
        if index not in registered
    }
    return MappedScene(
        mapper=name,
        scene=with_poses(replace(moved, points=scene.points), kept),
        registered=registered,
    )
