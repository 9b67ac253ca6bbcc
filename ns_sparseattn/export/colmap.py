# SPDX-License-Identifier: Apache-2.0
"""COLMAP models: write a `Scene` with pycolmap, and read one back.

Ids: cameras and images keep theirs, point ``i`` of the scene gets id ``i + 1``, and every camera is
a rig of its own with one frame per image. The 2-D points of an image are its observations in the
order of the points.

Axes: ``P`` points, ``O`` observations, ``I`` images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import ReconstructionError, check_finite
from ..scene.types import Camera, CameraModel, Points, PosedImage, Scene

if TYPE_CHECKING:
    from pycolmap import Reconstruction

_log = logging.getLogger(__name__)

_MODEL_FOLDERS = ("colmap/sparse/0", "sparse/0", "sparse")
"""Where `read_colmap` looks for the model inside a scene folder, in this order."""

_ORTHONORMAL_TOLERANCE = 1e-6
"""Largest entry of ``R R^T - I`` that is taken for rounding; a quaternion cannot hold more."""


def import_pycolmap() -> Any:
    """Return the pycolmap module, or say how to install it.

    Raises:
        ReconstructionError: If it is missing or older than version 4.
    """
    # Both bring a zlib. Where pycolmap's comes first (4.2.1), Pillow crashes on writing PNG files.
    import PIL.Image  # noqa: F401

    try:
        import pycolmap
    except ImportError as error:
        raise ReconstructionError(
            f"COLMAP models need pycolmap, which cannot be imported ({error}): "
            "pip install 'pycolmap>=4'"
        ) from error
    if not hasattr(pycolmap.Reconstruction, "add_image_with_trivial_frame"):
        raise ReconstructionError(
            f"COLMAP models need pycolmap 4 or later, got {pycolmap.__version__}: "
            "pip install -U 'pycolmap>=4'"
        )
    return pycolmap


def to_reconstruction(scene: Scene) -> Reconstruction:
    """Turn a scene into a pycolmap reconstruction.

    Args:
        scene: Any scene, also one without points or observations.

    Returns:
        The reconstruction; nothing in it refers to the scene's memory.

    Raises:
        ValueError: If the scene has no images, a rotation is not orthonormal, a track sees one
            image twice, or a number is not finite.
        ReconstructionError: If pycolmap is missing or too old.
    """
    pycolmap = import_pycolmap()
    _check_scene(scene)
    points = scene.points
    reconstruction = pycolmap.Reconstruction()
    for camera in sorted(scene.cameras, key=lambda camera: camera.camera_id):
        reconstruction.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=camera.camera_id,
                model=camera.model,
                width=camera.width,
                height=camera.height,
                params=list(camera.params),
            )
        )
    num_per_image = torch.bincount(points.obs_image, minlength=len(scene.images))
    by_image = torch.sort(points.obs_image, stable=True).indices
    keypoints_of = torch.split(points.obs_xy.double()[by_image], num_per_image.tolist())
    for index, image in enumerate(scene.images):
        reconstruction.add_image_with_trivial_frame(
            pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id),
            pycolmap.Rigid3d(image.cam_from_world.double().numpy()),
        )
        reconstruction.image(image.image_id).points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(xy) for xy in keypoints_of[index].numpy()]
        )

    # The number of each observation within its image.
    obs_slot = torch.empty_like(by_image)
    first_of = torch.cumsum(num_per_image, 0) - num_per_image
    obs_slot[by_image] = torch.arange(len(by_image)) - first_of[points.obs_image[by_image]]
    image_ids = np.array([image.image_id for image in scene.images])[
        points.obs_image.numpy()
    ].tolist()
    slots = obs_slot.tolist()
    ends = torch.cumsum(points.track_length, 0).tolist()
    xyz, rgb, errors = points.xyz.double().numpy(), points.rgb.numpy(), points.error.tolist()
    start = 0
    for index, end in enumerate(ends):
        track = [pycolmap.TrackElement(image_ids[o], slots[o]) for o in range(start, end)]
        point_id = reconstruction.add_point3D(xyz[index], pycolmap.Track(track), rgb[index])
        reconstruction.point3D(point_id).error = errors[index]
        start = end
    return reconstruction


def write_colmap(scene: Scene, folder: Path, *, text: bool = False) -> None:
    """Write a scene as a COLMAP model: cameras, rigs, frames, images and points3D.

    Args:
        scene: The scene; it is not changed.
        folder: Folder of the model files; made if missing.
        text: Write ``.txt`` files instead of ``.bin``. COLMAP reads names from these up to the
            first blank only.

    Raises:
        ValueError: If the scene cannot be expressed; see `to_reconstruction`.
        ReconstructionError: If pycolmap is missing or too old.
        OSError: If the files cannot be written in full.

    Example:
        >>> import tempfile, torch
        >>> from ns_sparseattn.export import read_colmap, write_colmap
        >>> from ns_sparseattn.scene.types import Camera, Points, PosedImage, Scene
        >>> camera = Camera(
        ...     camera_id=1, model="SIMPLE_PINHOLE", width=8, height=6, params=(9.0, 4.0, 3.0)
        ... )
        >>> pose = torch.eye(3, 4, dtype=torch.float64)
        >>> image = PosedImage(image_id=1, name="a.png", camera_id=1, cam_from_world=pose)
        >>> no_xy = torch.zeros(0, 2, dtype=torch.float64)
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> point = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
        >>> points = Points(xyz=point, rgb=torch.zeros(1, 3, dtype=torch.uint8), error=point[:, 0],
        ...                 obs_point=none, obs_image=none, obs_xy=no_xy)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_colmap(Scene(cameras=(camera,), images=(image,), points=points), Path(folder))
        ...     read_colmap(Path(folder)).images[0].name
        'a.png'
    """
    reconstruction = to_reconstruction(scene)
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        cut = [image.name for image in scene.images if len(image.name.split()) > 1]
        if cut:
            _log.warning(
                "COLMAP reads names from text files up to the first blank only; rename %d photos, "
                "such as %s, or use the binary model.",
                len(cut),
                cut[0],
            )
        reconstruction.write_text(str(folder))
        return
    reconstruction.write_binary(str(folder))
    _check_sizes(scene, folder)


def read_colmap(path: Path) -> Scene:
    """Read a COLMAP model.

    Args:
        path: Folder of the model files (binary or text), or a scene folder that holds one in
            ``colmap/sparse/0``, ``sparse/0`` or ``sparse``.

    Returns:
        The scene, images in the order of their ids and points in the order of theirs. It equals
        what `write_colmap` was given, less `Scene.summaries` and `Scene.notes`, which COLMAP has no
        place for. 2-D points that belong to no point and images without a pose are left out; the
        latter are named in the notes.

    Raises:
        ValueError: If there is no model, or it uses a camera model other than those of
            `CameraModel`.
        ReconstructionError: If pycolmap is missing or too old, or cannot read the files.
    """
    pycolmap = import_pycolmap()
    folder = _find_model(path)
    try:
        reconstruction = pycolmap.Reconstruction(str(folder))
    except (RuntimeError, ValueError) as error:
        raise ReconstructionError(
            f"pycolmap cannot read the COLMAP model in {folder}: {error}."
        ) from error
    cameras = tuple(_read_camera(camera) for _, camera in sorted(reconstruction.cameras.items()))
    posed = [image for _, image in sorted(reconstruction.images.items()) if image.has_pose]
    images = tuple(
        PosedImage(
            image_id=image.image_id,
            name=image.name,
            camera_id=image.camera_id,
            cam_from_world=torch.from_numpy(
                np.array(image.cam_from_world().matrix(), dtype=np.float64)
            ),
        )
        for image in posed
    )
    unposed = sorted(image.name for image in reconstruction.images.values() if not image.has_pose)
    notes = (
        (f"{len(unposed)} images have no pose and were left out: {unposed[:5]}.",)
        if unposed
        else ()
    )
    return Scene(
        cameras=cameras, images=images, points=_read_points(reconstruction, posed), notes=notes
    )


def _find_model(path: Path) -> Path:
    for folder in (path, *(path / name for name in _MODEL_FOLDERS)):
        if any((folder / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return folder
    raise ValueError(
        f"`path` must hold a COLMAP model (cameras.bin or cameras.txt, or {_MODEL_FOLDERS[0]}), "
        f"got {path}."
    )


def _read_camera(camera: Any) -> Camera:
    model: CameraModel = camera.model.name
    if model not in get_args(CameraModel):
        raise ValueError(
            f"Camera {camera.camera_id} must be one of {', '.join(get_args(CameraModel))}, "
            f"got {model}."
        )
    return Camera(
        camera_id=camera.camera_id,
        model=model,
        width=camera.width,
        height=camera.height,
        params=tuple(float(value) for value in camera.params),
    )


def _read_points(reconstruction: Any, posed: Iterable[Any]) -> Points:
    """Collect points and tracks; observations sorted by point, then by image."""
    by_id = sorted(reconstruction.points3D.items())
    point_index = {point_id: index for index, (point_id, _) in enumerate(by_id)}
    obs_point: list[int] = []
    obs_image: list[int] = []
    obs_xy: list[np.ndarray] = []
    for image_index, image in enumerate(posed):
        for keypoint in image.points2D:
            if keypoint.has_point3D():
                obs_point.append(point_index[keypoint.point3D_id])
                obs_image.append(image_index)
                obs_xy.append(keypoint.xy)
    # Images were walked in order, so a stable sort by point leaves each track sorted by image.
    order = torch.sort(torch.tensor(obs_point, dtype=torch.int64), stable=True).indices

    def stack(rows: list[Any], width: int, dtype: type) -> Tensor:
        return torch.from_numpy(np.array(rows, dtype=dtype).reshape(-1, width))

    return Points(
        xyz=stack([point.xyz for _, point in by_id], 3, np.float64),
        rgb=stack([point.color for _, point in by_id], 3, np.uint8),
        error=torch.tensor([point.error for _, point in by_id], dtype=torch.float64),
        obs_point=torch.tensor(obs_point, dtype=torch.int64)[order],
        obs_image=torch.tensor(obs_image, dtype=torch.int64)[order],
        obs_xy=stack(obs_xy, 2, np.float64)[order],
    )


def _check_scene(scene: Scene) -> None:
    """Raise ``ValueError`` for what a COLMAP model cannot hold."""
    if not scene.images:
        raise ValueError("`scene` must have at least one image, got none.")
    points = scene.points
    for name in ("xyz", "error", "obs_xy"):
        check_finite(f"scene.points.{name}", getattr(points, name))
    poses = torch.stack([image.cam_from_world for image in scene.images]).double()
    check_finite("cam_from_world", poses)
    rotations = poses[..., :3]
    identity = torch.eye(3, dtype=torch.float64)
    deviation = (rotations @ rotations.transpose(-1, -2) - identity).abs().amax((-1, -2))
    is_bad = (deviation > _ORTHONORMAL_TOLERANCE) | (torch.linalg.det(rotations) < 0)
    if bool(is_bad.any()):
        name = scene.images[int(is_bad.nonzero()[0])].name
        raise ValueError(f"`cam_from_world` must hold rotations, got another matrix for {name}.")
    for name, count in (("obs_point", len(points)), ("obs_image", len(scene.images))):
        index = getattr(points, name)
        if bool(((index < 0) | (index >= count)).any()):
            raise ValueError(f"`scene.points.{name}` must be indices below {count}, got others.")
    key = points.obs_point * len(scene.images) + points.obs_image
    if bool((key[1:] <= key[:-1]).any()):
        raise ValueError("Observations must be sorted by point, then by image, without repeats.")


def _check_sizes(scene: Scene, folder: Path) -> None:
    """Raise ``OSError`` if a file is cut short: COLMAP's writer does not notice a full disk."""
    num_observations = len(scene.points.obs_point)
    # See https://colmap.github.io/format.html; names end with a zero byte.
    name_bytes = sum(len(image.name.encode()) + 1 for image in scene.images)
    expected = {
        "images.bin": 8 + 72 * len(scene.images) + name_bytes + 24 * num_observations,
        "points3D.bin": 8 + 51 * len(scene.points) + 8 * num_observations,
    }
    for name, size in expected.items():
        actual = (folder / name).stat().st_size
        if actual != size:
            raise OSError(
                f"{folder / name} has {actual} bytes instead of {size}: is the disk full?"
            )
