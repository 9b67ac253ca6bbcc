# SPDX-License-Identifier: Apache-2.0
"""Audit any COLMAP model with its photos, wherever it comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import frames as photo_frames
from ..errors import ReconstructionError
from ..export.colmap import import_pycolmap
from ..frames.masks import name_some
from ..frames.types import Frames
from ..options import FrameOptions
from ..scene.types import PARAM_NAMES, Camera, Points, PosedImage, Scene
from .audit import Audit, audit_scene, contradiction
from .database import PairMatches, create_database, open_database, quiet_colmap, read_matches
from .features import ReadRgb, extract_features
from .matching import find_partners, match_pairs
from .options import AuditOptions, MatchOptions
from .pairs import propose_pairs, sample_surface

_MODEL_FOLDERS = ("colmap/sparse/0", "sparse/0", "sparse", ".")
_PHOTO_FOLDERS = ("images", "../images", "../../images", "../../../images")
_DATABASE = Path("colmap/database.db")

Progress = Callable[[str, int, int], None]


def audit_model(
    path: Path,
    *,
    photos: Path | None = None,
    reference: Path | None = None,
    match: MatchOptions | None = None,
    options: AuditOptions | None = None,
    reader: ReadRgb | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Judge a COLMAP model by matches between its photos.

    Args:
        path: A scene folder, or the folder of a model.
        photos: Folder of the photos; ``images`` in or above the model's folder if not given.
        reference: Another model of the same photos, such as a prediction, that this one must not
            contradict. Matches alone cannot tell a model that repeated things have folded.
        match: How photos are matched.
        options: Thresholds.
        reader: Reads a photo; `ns_sparseattn.frames.read_rgb` if not given.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The audit. A database that was kept in the scene folder is used instead of new matches.

    Raises:
        ValueError: If there is no model, or photos are missing.
        ReconstructionError: If pycolmap cannot read the model.
    """
    match, options = match or MatchOptions(), options or AuditOptions()
    scene, lenses = read_model(path)
    kept = path / _DATABASE
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        if _is_database_of(kept, scene):
            matches = read_matches(kept, min_matches=options.min_pair_matches)
        else:
            found = _load_photos(scene, _photo_folder(path, photos))
            database = Path(folder) / "database.db"
            _match(database, scene, found, match, reader, progress)
            matches = read_matches(database, min_matches=options.min_pair_matches)
        audit = audit_scene(scene, [_undistort(pair, lenses, scene) for pair in matches], options)
    if reference is None:
        return audit
    sentence = contradiction(scene, read_model(reference)[0], options)
    if sentence is None:
        return audit
    return replace(audit, is_trusted=False, reasons=(sentence, *audit.reasons))


def read_model(path: Path) -> tuple[Scene, tuple[Any, ...]]:
    """Read a COLMAP model of any camera model.

    Returns:
        The scene with PINHOLE cameras, without observations, and pycolmap's camera of each image,
        which knows the distortion.
    """
    pycolmap = import_pycolmap()
    candidates = [path / name for name in _MODEL_FOLDERS]
    folder = next((f for f in candidates if any(f.glob("cameras.[bt][ix][nt]"))), None)
    if folder is None:
        raise ValueError(
            f"`scene` must hold a COLMAP model (cameras.bin or cameras.txt), got {path}."
        )
    try:
        model = pycolmap.Reconstruction(str(folder))
    except (RuntimeError, ValueError) as error:
        raise ReconstructionError(
            f"pycolmap cannot read the model in {folder}: {error}."
        ) from error
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.image_id)
    if not posed:
        raise ValueError(f"`scene` must hold images with poses, got none in {folder}.")
    cameras = tuple(_pinhole(camera) for _, camera in sorted(model.cameras.items()))
    images = tuple(
        PosedImage(
            image_id=index + 1,
            name=image.name,
            camera_id=image.camera_id,
            cam_from_world=torch.from_numpy(np.array(image.cam_from_world().matrix())),
        )
        for index, image in enumerate(posed)
    )
    scene = Scene(cameras=cameras, images=images, points=_seen_points(model, posed))
    return scene, tuple(model.camera(image.camera_id) for image in posed)


def _pinhole(camera: Any) -> Camera:
    values = {
        "fx": camera.focal_length_x if len(camera.focal_length_idxs()) > 1 else camera.focal_length,
        "fy": camera.focal_length_y if len(camera.focal_length_idxs()) > 1 else camera.focal_length,
        "cx": camera.principal_point_x,
        "cy": camera.principal_point_y,
    }
    return Camera(
        camera_id=camera.camera_id,
        model="PINHOLE",
        width=camera.width,
        height=camera.height,
        params=tuple(float(values[name]) for name in PARAM_NAMES["PINHOLE"]),
    )


def _seen_points(model: Any, posed: Sequence[Any]) -> Points:
    """Return points and who sees them: what overlap is judged by."""
    number = {point_id: index for index, point_id in enumerate(sorted(model.points3D))}
    rows = sorted(
        {
            (number[keypoint.point3D_id], index)
            for index, image in enumerate(posed)
            for keypoint in image.points2D
            if keypoint.has_point3D()
        }
    )
    seen = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    xyz = np.array([model.points3D[point_id].xyz for point_id in number], float).reshape(-1, 3)
    return Points(
        xyz=torch.from_numpy(xyz),
        rgb=torch.zeros(len(number), 3, dtype=torch.uint8),
        error=torch.zeros(len(number), dtype=torch.float64),
        obs_point=seen[:, 0],
        obs_image=seen[:, 1],
        obs_xy=torch.zeros(len(seen), 2, dtype=torch.float64),
    )


def _photo_folder(path: Path, photos: Path | None) -> Path:
    if photos is not None:
        return photos
    folder = next((path / name for name in _PHOTO_FOLDERS if (path / name).is_dir()), None)
    if folder is None:
        raise ValueError(f"There is no folder of photos in or above {path}; name it with --images.")
    return folder


def _load_photos(scene: Scene, folder: Path) -> Frames:
    """Load the photos of a model, in its order."""
    found = photo_frames.load(folder, FrameOptions(skip_broken=True))
    by_name = {frame.name: index for index, frame in enumerate(found.frames)}
    missing = [image.name for image in scene.images if image.name not in by_name]
    if missing:
        raise ValueError(f"{folder} lacks photos of the model: {name_some(missing)}.")
    order = [by_name[image.name] for image in scene.images]
    for image, index in zip(scene.images, order, strict=True):
        camera, size = scene.camera_of(image), found.frames[index].size
        if (camera.width, camera.height) != size:
            raise ValueError(
                f"{image.name} must have the {camera.width} x {camera.height} pixels of its "
                f"camera, got {size[0]} x {size[1]}; name the folder of the full-size photos."
            )
    return Frames(frames=tuple(found.frames[i] for i in order), images=found.images[order])


def _match(
    database: Path,
    scene: Scene,
    photos: Frames,
    match: MatchOptions,
    reader: ReadRgb | None,
    progress: Progress | None,
) -> None:
    """Match what the model says overlaps, and what looks alike: a wrong model proposes little."""

    def report(done: int) -> None:
        if progress is not None:
            progress("features", done, len(photos))

    create_database(database, scene, calibrated=())
    extract_features(database, photos.frames, match, reader=reader, progress=report)
    surface = sample_surface(scene, match)
    pairs = propose_pairs(scene, surface, match, pairs_per_image=match.pairs_per_image)
    num_images = len(scene.images)
    few = replace(match, partners_per_image=min(3, match.partners_per_image))
    match_pairs(
        database, pairs | find_partners(database, range(num_images), num_images, few), match
    )


def _is_database_of(database: Path, scene: Scene) -> bool:
    """Whether a file is a database of these images under these numbers."""
    if not database.is_file():
        return False
    with open_database(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
    return names == {index + 1: image.name for index, image in enumerate(scene.images)}


def _undistort(pair: PairMatches, lenses: Sequence[Any], scene: Scene) -> PairMatches:
    """Move matches to where a PINHOLE camera would see them."""

    def straight(index: int, xy: Any) -> Any:
        matrix = scene.camera_of(scene.images[index]).intrinsics.numpy()
        return lenses[index].cam_from_img(xy) * matrix.diagonal()[:2] + matrix[:2, 2]

    return replace(
        pair,
        xy_first=straight(pair.first, pair.xy_first),
        xy_second=straight(pair.second, pair.xy_second),
    )
