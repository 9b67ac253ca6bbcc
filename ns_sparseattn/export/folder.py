# SPDX-License-Identifier: Apache-2.0
"""The scene folder: everything that trainers read, renamed into place when it is complete.

``docs/scene-folder.md`` describes the result. All files but ``manifest.json`` depend on the scene,
the photos and the options alone; what differs from run to run (times, versions, whether a photo
could be linked) stands in the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ReconstructionError
from ..frames.types import Frame, Frames
from ..options import ExportOptions
from ..scene.types import Scene
from .colmap import read_colmap, write_colmap
from .json_file import to_plain, write_json
from .nerfstudio import PLY_NAME, TRANSFORMS_NAME, write_nerfstudio
from .output import (
    MANIFEST_NAME,
    SCENE_FORMAT,
    SCENE_FORMAT_VERSION,
    check_output,
    read_manifest,
)
from .photos import (
    PhotoRecord,
    PlannedPhoto,
    Progress,
    downscale_factors,
    has_masks,
    plan_photos,
    write_photos,
)
from .staging import staged_folder
from .undistort import Undistortion, straighten
from .written import written_frames

_log = logging.getLogger(__name__)

CONFIG_NAME = "config.json"

UNDISTORTED_NAME = "undistorted"
"""Folder of the twin without lens distortion."""

_RESERVED = ("format", "format_version", "contents", "photos", "num_points", "num_observations")
"""Manifest entries that are written here."""

_LARGE_SIDE = 1600
"""Longest side, in pixels, up to which nerfstudio does not look for smaller copies."""


@dataclass(frozen=True, kw_only=True)
class SceneFolder:
    """Where the parts of a written scene are. All paths are absolute."""

    root: Path
    images: Path
    images_by_factor: Mapping[int, Path]
    """Folders of smaller photos by the factor: 2, 4, 8."""
    masks: Path | None
    """Folder of masks, or ``None`` if no photo has one."""
    colmap: Path
    """The binary COLMAP model."""
    colmap_text: Path | None
    """The same as text, if asked for."""
    transforms: Path
    """nerfstudio's ``transforms.json``."""
    point_cloud: Path
    """nerfstudio's seed points."""
    manifest: Path
    config: Path | None
    undistorted: Path | None = None
    """A second scene folder, without lens distortion, if asked for."""

    def train_command(self, method: str = "splatfacto", *, parser: Sequence[str] = ()) -> str:
        """Return the command that trains on this scene.

        Args:
            method: Name of a nerfstudio method.
            parser: Name of a dataparser and its options; nerfstudio's default if empty.

        Returns:
            A line for the shell, quoted where needed.

        Example:
            >>> SceneFolder.at(Path("/data/my scene")).train_command()
            "ns-train splatfacto --data '/data/my scene'"
        """
        return shlex.join(["ns-train", method, "--data", str(self.root), *parser])

    @classmethod
    def at(
        cls,
        root: Path,
        *,
        num_downscales: int = 0,
        has_masks: bool = False,
        has_colmap_text: bool = False,
        has_config: bool = False,
        has_undistorted: bool = False,
    ) -> SceneFolder:
        """Name the parts of a scene folder without looking at the disk."""
        return cls(
            root=root,
            images=root / "images",
            images_by_factor={k: root / f"images_{k}" for k in downscale_factors(num_downscales)},
            masks=root / "masks" if has_masks else None,
            colmap=root / "colmap/sparse/0",
            colmap_text=root / "colmap/text" if has_colmap_text else None,
            transforms=root / TRANSFORMS_NAME,
            point_cloud=root / PLY_NAME,
            manifest=root / MANIFEST_NAME,
            config=root / CONFIG_NAME if has_config else None,
            undistorted=root / UNDISTORTED_NAME if has_undistorted else None,
        )


def write_scene(
    scene: Scene,
    frames: Frames,
    output_dir: Path,
    options: ExportOptions,
    *,
    manifest: Mapping[str, object],
    config: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> SceneFolder:
    """Write a scene folder that nerfstudio and COLMAP's users can open.

    Args:
        scene: Cameras, posed images and points, in original pixels; it is not changed. Image names
            are frame names.
        frames: The photos. Those without an image in the scene are left out.
        output_dir: Folder to make. It must be missing or empty, or a scene of this tool if
            ``options.overwrite`` is set.
        options: What to write.
        manifest: Facts about the run for ``manifest.json``, added to those about the files.
        config: The resolved options for ``config.json``; without them there is no such file.
        progress: Called in this thread with the number of photos that are done and of all photos.

    Returns:
        Where everything is.

    Raises:
        ValueError: If the output may not be written (see `check_output`), the scene does not fit
            the frames, or it holds numbers that are not finite.
        BrokenPhotoError: If a photo can no longer be read.
        ReconstructionError: If pycolmap is missing, the disk is full, or something else keeps files
            from being written. As after any other exception, the output is then what it was before.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> from ns_sparseattn.frames import load
        >>> from ns_sparseattn.options import FrameOptions
        >>> from ns_sparseattn.scene.types import Camera, Points, PosedImage
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "photos").mkdir()
        >>> Image.new("RGB", (64, 48)).save(folder / "photos/a.png")
        >>> frames = load(folder / "photos", FrameOptions())
        >>> camera = Camera(
        ...     camera_id=1, model="SIMPLE_PINHOLE", width=64, height=48, params=(70.0, 32.0, 24.0)
        ... )
        >>> pose = torch.eye(3, 4, dtype=torch.float64)
        >>> image = PosedImage(image_id=1, name="a.png", camera_id=1, cam_from_world=pose)
        >>> none = torch.zeros(0, dtype=torch.int64)
        >>> no_rows = torch.zeros(0, 3, dtype=torch.float64)
        >>> points = Points(xyz=no_rows, rgb=no_rows.byte(), error=no_rows[:, 0],
        ...                 obs_point=none, obs_image=none, obs_xy=no_rows[:, :2])
        >>> scene = Scene(cameras=(camera,), images=(image,), points=points)
        >>> written = write_scene(
        ...     scene, frames, folder / "scene", ExportOptions(), manifest={"model": "none"}
        ... )
        >>> sorted(path.name for path in written.root.iterdir())  # doctest: +NORMALIZE_WHITESPACE
        ['colmap', 'images', 'images_2', 'images_4', 'images_8', 'manifest.json', 'sparse_pc.ply',
         'transforms.json']
    """
    plain_manifest = _check_manifest(manifest)
    target = check_output(output_dir, frames, options)
    posed = _posed_frames(scene, frames)
    # All that is to be written is prepared first: a camera without a pinhole twin costs no time.
    twin = straighten(scene) if options.undistort else None
    if twin is not None and not twin[1]:
        _log.warning("No camera has lens distortion: the twin's photos are those of the scene.")
    staged = staged_folder(target, may_replace=options.overwrite)
    with _clear_errors(output_dir), staged as folder:
        if twin is not None:
            _fill(
                folder / UNDISTORTED_NAME,
                twin[0],
                plan_photos(posed, _undistortions(*twin)),
                options,
                manifest={**plain_manifest, "undistorted_from": ".."},
                config=config,
            )
        photos = plan_photos(posed)
        _fill(folder, scene, photos, options, plain_manifest, config, progress)
    _warn_about_trainers(scene, options)
    return _describe(target, posed, options, has_config=config is not None)


def write_undistorted(
    scene_dir: Path,
    output_dir: Path,
    options: ExportOptions,
    *,
    progress: Progress | None = None,
) -> SceneFolder:
    """Write the twin of a scene folder that has no lens distortion.

    Every camera becomes a PINHOLE one. Photos and masks of cameras with distortion are bent
    straight and written anew; the others are linked.

    Args:
        scene_dir: A scene folder of this tool; it is not changed.
        output_dir: Folder to make; as for `write_scene`.
        options: What to write; `ExportOptions.undistort` is of no matter here.
        progress: Called in this thread with the number of photos that are done and of all photos.

    Returns:
        Where everything is. The folder appears whole or not at all.

    Raises:
        ValueError: If `scene_dir` is no scene folder, or the output may not be written.
        BrokenPhotoError: If a photo of the scene cannot be read.
        ReconstructionError: If a camera's distortion cannot be undone, or files cannot be written.
    """
    manifest = read_manifest(scene_dir)
    if manifest is None:
        raise ValueError(f"`scene_dir` must be a scene folder of this tool, got {scene_dir}.")
    target = check_output(output_dir, scene_dir, options)
    scene = read_colmap(scene_dir)
    straight, undistortions = straighten(scene)
    frames = written_frames(scene_dir, scene, manifest)
    if not undistortions:
        _log.warning("No camera of %s has lens distortion: its photos stay as they are.", scene_dir)
    config_path = scene_dir / CONFIG_NAME
    config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else None
    facts = {key: value for key, value in manifest.items() if key not in _RESERVED}
    with _clear_errors(output_dir), staged_folder(target, may_replace=options.overwrite) as folder:
        _fill(
            folder,
            straight,
            plan_photos(frames, _undistortions(straight, undistortions)),
            options,
            manifest={**facts, "undistorted_from": str(scene_dir)},
            config=config,
            progress=progress,
        )
    _warn_about_trainers(straight, options)
    plain = dataclasses.replace(options, undistort=False)
    return _describe(target, frames, plain, has_config=config is not None)


def _check_manifest(manifest: Mapping[str, object]) -> dict[str, object]:
    """Return what the caller gave as plain values, after checking that it leaves our entries."""
    reserved = sorted(set(_RESERVED) & set(manifest))
    if reserved:
        raise ValueError(
            f"`manifest` must not use the entries {', '.join(_RESERVED)}, got {reserved}."
        )
    return to_plain(manifest)


def _undistortions(
    scene: Scene, by_camera: Mapping[int, Undistortion]
) -> list[Undistortion | None]:
    """Return how the photo of each image is bent straight."""
    return [by_camera.get(image.camera_id) for image in scene.images]


def _fill(
    folder: Path,
    scene: Scene,
    photos: Sequence[PlannedPhoto],
    options: ExportOptions,
    manifest: Mapping[str, object],
    config: Mapping[str, object] | None,
    progress: Progress | None = None,
) -> None:
    """Write all files of a scene into a folder, the manifest last: it marks a complete scene."""
    named_scene = _with_names(scene, photos)
    write_colmap(named_scene, folder / "colmap/sparse/0")
    if options.colmap_text:
        write_colmap(named_scene, folder / "colmap/text", text=True)
    _write_nerfstudio(named_scene, folder, photos)
    records = write_photos(photos, folder, num_downscales=options.num_downscales, progress=progress)
    if config is not None:
        write_json(folder / CONFIG_NAME, config)
    contents = [*(entry.name for entry in folder.iterdir()), MANIFEST_NAME]
    facts = _facts(named_scene, records, contents)
    write_json(folder / MANIFEST_NAME, {**manifest, **facts})


def _describe(
    target: Path, frames: Sequence[Frame], options: ExportOptions, *, has_config: bool
) -> SceneFolder:
    return SceneFolder.at(
        target,
        num_downscales=options.num_downscales,
        has_masks=has_masks(frames),
        has_colmap_text=options.colmap_text,
        has_config=has_config,
        has_undistorted=options.undistort,
    )


def _posed_frames(scene: Scene, frames: Frames) -> list[Frame]:
    """Return the frame of each image, after checking that sizes agree."""
    by_name = {frame.name: frame for frame in frames.frames}
    cameras = {camera.camera_id: camera for camera in scene.cameras}
    posed: list[Frame] = []
    for image in scene.images:
        if image.name not in by_name:
            raise ValueError(f"`scene` must hold images of `frames` only, got {image.name!r}.")
        frame, camera = by_name[image.name], cameras[image.camera_id]
        if frame.size != (camera.width, camera.height):
            raise ValueError(
                f"The camera of {image.name} must have the size of the photo, "
                f"{frame.size[0]} x {frame.size[1]}, got {camera.width} x {camera.height}."
            )
        posed.append(frame)
    num_left_out = len(frames) - len(posed)
    if num_left_out:
        _log.warning(
            "%d of %d photos have no pose and are left out of the scene.", num_left_out, len(frames)
        )
    return posed


def _with_names(scene: Scene, photos: Sequence[PlannedPhoto]) -> Scene:
    """Return the scene with the names that its images have in the folder."""
    images = tuple(
        dataclasses.replace(image, name=photo.names.image)
        for image, photo in zip(scene.images, photos, strict=True)
    )
    return dataclasses.replace(scene, images=images)


def _write_nerfstudio(scene: Scene, folder: Path, photos: Sequence[PlannedPhoto]) -> None:
    names = [photo.names for photo in photos]
    image_paths = {name.image: f"images/{name.flat_image}" for name in names}
    mask_paths = {name.image: f"masks/{name.flat_mask}" for name in names}
    with_masks = has_masks([photo.frame for photo in photos])
    write_nerfstudio(
        scene,
        folder,
        image_paths,
        mask_paths if with_masks else None,
        eval_names={photo.names.image for photo in photos if photo.frame.is_eval},
    )


def _facts(
    scene: Scene, records: Sequence[PhotoRecord], contents: Sequence[str]
) -> dict[str, object]:
    """Return what the manifest says about the files."""
    return {
        "format": SCENE_FORMAT,
        "format_version": SCENE_FORMAT_VERSION,
        "contents": sorted(contents),
        "photos": [
            {**to_plain(record), "image_id": image.image_id, "camera_id": image.camera_id}
            for record, image in zip(records, scene.images, strict=True)
        ],
        "num_points": len(scene.points),
        "num_observations": len(scene.points.obs_point),
    }


def _warn_about_trainers(scene: Scene, options: ExportOptions) -> None:
    """Say where nerfstudio's parsers would stop at this scene."""
    if not len(scene.points):
        _log.warning(
            "The scene has no points. nerfstudio's `colmap` parser fails on that unless it is "
            "given --load-3D-points False; `nerfstudio-data` starts from random points."
        )
    side = max(max(camera.width, camera.height) for camera in scene.cameras)
    factor = 1
    while side / factor > _LARGE_SIDE:
        factor *= 2
    if factor > 2**options.num_downscales:
        _log.warning(
            "Photos of %d pixels make nerfstudio's `colmap` parser look for images_%d, which is "
            "not written: raise --num-downscales, or give the parser a --downscale-factor.",
            side,
            factor,
        )


@contextlib.contextmanager
def _clear_errors(output_dir: Path) -> Iterator[None]:
    """Turn what the operating system says into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space or choose a folder on another disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"no permission to write {error.filename or 'there'}"
        else:
            reason = str(error)
        raise ReconstructionError(
            f"The scene could not be written to {output_dir}: {reason}."
        ) from error
