# SPDX-License-Identifier: Apache-2.0
"""COLMAP's database: made from a scene's cameras, filled by features and matches, read back.

Image ``i`` of the scene has id ``i + 1``, and camera ids stay. While we work, images are called by
their number: COLMAP's lists of pairs cannot hold names with blanks. `restore_names` puts the
photos' names back, so that COLMAP can go on from the file.

Axes: ``M`` matches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.colmap import import_pycolmap
from ..scene.types import Scene


@dataclass(frozen=True, kw_only=True)
class PairMatches:
    """Verified matches of two images, by index into the scene."""

    first: int
    second: int
    xy_first: NDArray[np.float64]  # [M, 2]
    """Original pixels."""
    xy_second: NDArray[np.float64]  # [M, 2]

    def __len__(self) -> int:
        return len(self.xy_first)


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[Any]:
    """Open COLMAP's database, and close it also after an error."""
    database = import_pycolmap().Database.open(str(path))
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def quiet_colmap() -> Iterator[None]:
    """Keep COLMAP's information and warnings off the terminal for a while."""
    log = import_pycolmap().logging
    level = log.minloglevel
    log.minloglevel = int(log.ERROR)
    try:
        yield
    finally:
        log.minloglevel = level


def working_name(index: int) -> str:
    """Return what the database calls image `index` while we work."""
    return f"{index:07d}.pnm"


def create_database(path: Path, scene: Scene, *, calibrated: Collection[int]) -> None:
    """Write cameras, rigs, frames and images of a scene into a new database.

    Args:
        path: The file; must not exist.
        scene: Cameras and images. Poses and points have no place in a database.
        calibrated: Ids of the cameras whose focal lengths are known well enough to judge matches
            by.
    """
    pycolmap = import_pycolmap()
    with open_database(path) as database:
        for camera in scene.cameras:
            entry = pycolmap.Camera(
                camera_id=camera.camera_id,
                model=camera.model,
                width=camera.width,
                height=camera.height,
                params=list(camera.params),
                has_prior_focal_length=camera.camera_id in calibrated,
            )
            database.write_camera(entry, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=camera.camera_id)
            rig.add_ref_sensor(entry.sensor_id)
            database.write_rig(rig, use_rig_id=True)
        for index, image in enumerate(scene.images):
            entry = pycolmap.Image(
                name=working_name(index), camera_id=image.camera_id, image_id=index + 1
            )
            database.write_image(entry, use_image_id=True)
            frame = pycolmap.Frame(frame_id=index + 1, rig_id=image.camera_id)
            frame.add_data_id(entry.data_id)
            database.write_frame(frame, use_frame_id=True)


def restore_names(path: Path, scene: Scene) -> None:
    """Give the images of a database the photos' names."""
    with open_database(path) as database:
        for index, image in enumerate(scene.images):
            entry = database.read_image(index + 1)
            entry.name = image.name
            database.update_image(entry)


def read_matches(path: Path, *, min_matches: int) -> tuple[PairMatches, ...]:
    """Read all verified pairs, ordered by their images."""
    pycolmap = import_pycolmap()
    pairs = []
    with open_database(path) as database:
        keypoints: dict[int, NDArray[np.float64]] = {}

        def xy(image_id: int) -> NDArray[np.float64]:
            if image_id not in keypoints:
                keypoints[image_id] = database.read_keypoints(image_id)[:, :2].astype(np.float64)
            return keypoints[image_id]

        for pair_id, geometry in zip(*database.read_two_view_geometries(), strict=True):
            matches = geometry.inlier_matches
            if len(matches) < min_matches:
                continue
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            pairs.append(
                PairMatches(
                    first=first - 1,
                    second=second - 1,
                    xy_first=xy(first)[matches[:, 0]],
                    xy_second=xy(second)[matches[:, 1]],
                )
            )
    return tuple(sorted(pairs, key=lambda pair: (pair.first, pair.second)))
