# SPDX-License-Identifier: Apache-2.0
"""Known intrinsics from COLMAP, transforms.json, OpenCV's YAML, or EXIF, as matrices of photos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ReconstructionError
from ..evaluate.read_colmap import find_model, lens_from_colmap, read_colmap_model
from ..evaluate.read_transforms import read_transforms
from ..evaluate.types import Lens
from ..export.colmap import import_pycolmap
from ..frames.masks import name_some
from ..frames.types import Frame
from .matching import match_photos

FROM_EXIF = "exif"
"""Stands for the photos' own EXIF in place of a file."""

_ASPECT_TOLERANCE = 0.01
"""Share by which the shape of a camera may differ from its photo's: sizes are rounded."""
_MATRIX_NAMES = ("camera_matrix", "cameraMatrix", "Camera_Matrix", "K")
_WIDTH_NAMES, _HEIGHT_NAMES = ("image_width", "image_Width"), ("image_height", "image_Height")
_DISTORTION_NAMES = ("distortion_coefficients", "Distortion_Coefficients", "dist_coeffs", "D")
_NUM_PINHOLE_PARAMS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4}
_FISHEYE = "FISHEYE"
_FISHEYE_MODELS = ("equidistant", "fisheye", "kannala_brandt")
"""What ROS's and Kalibr's files call it."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """Intrinsics of a picture of some size."""

    focal: tuple[float, float]
    center: tuple[float, float]
    size: tuple[float, float] | None
    """Width and height; ``None`` for the size of any photo."""
    is_distorted: bool = False

    @classmethod
    def of(cls, lens: Lens, source: str) -> _View:
        if _FISHEYE in lens.model:
            raise _fisheye(source, lens.model)
        first_extra = _NUM_PINHOLE_PARAMS.get(lens.model)
        if first_extra is None:
            first_extra = 3 if lens.model.startswith(("SIMPLE", "RADIAL")) else 4
        return cls(
            focal=lens.focal,
            center=lens.center,
            size=(lens.width, lens.height),
            is_distorted=any(lens.params[first_extra:]),
        )


def read_intrinsics(
    source: str, frames: tuple[Frame, ...]
) -> tuple[tuple[Tensor | None, ...], frozenset[int], tuple[str, ...]]:
    """Read the intrinsics of photos.

    Args:
        source: As `KnownOptions.intrinsics`.
        frames: The photos.

    Returns:
        For each photo ``[3, 3]`` float64 in original pixels, or ``None``; the photos of which these
        say all there is to say, which neither EXIF does, where lenses have nominal focal lengths,
        nor the matrix of a lens with distortion; and sentences that the user should read.

    Raises:
        ValueError: If there is no such file, it is of no known kind, or names, sizes or values do
            not fit the photos; the message says which.
        ReconstructionError: If pycolmap cannot read a model.
    """
    if source == FROM_EXIF:
        views, where = _from_exif(frames), "the EXIF of the photos"
    else:
        views, where = _from_file(Path(source), frames), source
    matrices = tuple(
        None if view is None else _matrix(view, frame, where)
        for view, frame in zip(views, frames, strict=True)
    )
    notes = []
    without = [f.name for f, matrix in zip(frames, matrices, strict=True) if matrix is None]
    if without:
        notes.append(f"No intrinsics are known from {where} for {name_some(without)}.")
    if any(view is not None and view.is_distorted for view in views):
        notes.append(f"The lens distortion in {where} is not used; refinement estimates it anew.")
    astray = [
        frame.name
        for frame, matrix in zip(frames, matrices, strict=True)
        if matrix is not None and not _is_inside(matrix, frame)
    ]
    if astray:
        notes.append(
            f"The principal point in {where} lies outside the picture of {name_some(astray)}: are "
            "the intrinsics of these photos, and of this size?"
        )
    calibrated = frozenset(
        index
        for index, view in enumerate(views)
        if view is not None and not view.is_distorted and source != FROM_EXIF
    )
    return matrices, calibrated, tuple(notes)


def _is_inside(matrix: Tensor, frame: Frame) -> bool:
    """Whether the principal point is in the picture."""
    return all(0 <= float(matrix[axis, 2]) <= frame.size[axis] for axis in range(2))


def _from_exif(frames: tuple[Frame, ...]) -> list[_View | None]:
    views: list[_View | None] = []
    for frame in frames:
        focal = frame.exif.focal_length_px
        center = (frame.size[0] / 2, frame.size[1] / 2)
        views.append(
            None if focal is None else _View(focal=(focal, focal), center=center, size=None)
        )
    if all(view is None for view in views):
        raise ValueError(
            "No photo states a focal length in its EXIF; give a file of intrinsics instead."
        )
    return views


def _from_file(path: Path, frames: tuple[Frame, ...]) -> list[_View | None]:
    if not path.exists():
        raise ValueError(f"There is no file of intrinsics {path}.")
    if path.suffix in (".yaml", ".yml"):
        return [_read_opencv(path)] * len(frames)
    if path.suffix == ".json" or (path / "transforms.json").is_file():
        model = read_transforms(path if path.is_file() else path / "transforms.json")
        return _by_name(model.names, model.lenses, path, frames)
    folder = path.parent if path.is_file() else find_model(path)
    if folder is None or (path.is_file() and path.stem not in ("cameras", "images")):
        raise ValueError(
            f"{path} must be a COLMAP model, a cameras.txt, a transforms.json or an OpenCV YAML "
            "file, got something else."
        )
    if any((folder / f"images.{suffix}").is_file() for suffix in ("bin", "txt")):
        model = read_colmap_model(folder)
        return _by_name(model.names, model.lenses, path, frames)
    return _by_size(_read_cameras(folder / "cameras.txt"), path, frames)


def _by_name(
    names: tuple[str, ...], lenses: tuple[Lens | None, ...], path: Path, frames: tuple[Frame, ...]
) -> list[_View | None]:
    """Give photos the lens of their name; a camera that all share goes to all photos."""
    known = [lens for lens in lenses if lens is not None]
    if not known:
        raise ValueError(
            f"{path} holds no usable intrinsics: a size and a focal length are needed."
        )
    pairs = match_photos(frames, names, "The intrinsics", path)
    views: list[_View | None] = [None] * len(frames)
    for frame, entry in pairs:
        lens = lenses[entry]
        views[frame] = None if lens is None else _View.of(lens, str(path))
    return views


def _by_size(lenses: list[Lens], path: Path, frames: tuple[Frame, ...]) -> list[_View | None]:
    """Give photos the one camera there is, or the one of their size."""
    views: list[_View | None] = []
    for frame in frames:
        fitting = [lens for lens in lenses if (lens.width, lens.height) == frame.size]
        fitting = lenses if len(lenses) == 1 else fitting
        if len(fitting) > 1:
            raise ValueError(
                f"{path} holds {len(fitting)} cameras of the size of {frame.name}; give images.txt "
                "beside it, which says which photo has which."
            )
        views.append(_View.of(fitting[0], str(path)) if fitting else None)
    if all(view is None for view in views):
        width, height = frames[0].size
        raise ValueError(
            f"No camera in {path} has the size of a photo, {width} x {height} for {frames[0].name}."
        )
    return views


def _read_cameras(path: Path) -> list[Lens]:
    """Read a COLMAP ``cameras.txt`` that stands alone."""
    pycolmap = import_pycolmap()
    if not path.is_file():
        raise ValueError(
            f"{path.parent} must hold images.bin beside cameras.bin, or a cameras.txt."
        )
    lenses = []
    for line in _read_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            _, model, width, height, *params = line.split()
            camera = pycolmap.Camera(
                model=model,
                width=int(width),
                height=int(height),
                params=[float(value) for value in params],
            )
            lenses.append(lens_from_colmap(camera))
        except (ValueError, RuntimeError, IndexError) as error:
            raise ReconstructionError(f"{path} has a line that is no camera: {line!r}.") from error
    if not lenses:
        raise ValueError(f"{path} must hold at least one camera, got none.")
    return lenses


def _read_opencv(path: Path) -> _View:
    """Read what OpenCV's ``FileStorage`` or ROS's calibration wrote: one camera for all photos."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows OpenCV's matrices, which are mappings under a tag of their own."""

    def read_matrix(loader: Any, node: Any) -> dict[Any, Any]:
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", read_matrix)
    lines = _read_text(path).splitlines()
    # OpenCV writes a directive, %YAML:1.0, that YAML does not know.
    text = "\n".join(line for line in lines if not line.startswith("%YAML"))
    try:
        content = yaml.load(text, Loader=Loader)
        matrix = _numbers(_first(content, _MATRIX_NAMES))
        size = [_numbers(_first(content, names)) for names in (_WIDTH_NAMES, _HEIGHT_NAMES)]
        distortion = _numbers(_first(content, _DISTORTION_NAMES))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no OpenCV calibration: {error}.") from error
    lens = str(_first(content, ("distortion_model",)))
    if lens.lower() in _FISHEYE_MODELS:
        raise _fisheye(path, lens)
    if len(matrix) != 9:
        raise ValueError(
            f"{path} must hold a 3 x 3 matrix under one of {', '.join(_MATRIX_NAMES)}."
        )
    focal_x, skew, center_x, zero, focal_y, center_y, *last_row = matrix
    if skew or zero or last_row != [0.0, 0.0, 1.0]:
        raise ValueError(
            f"The matrix in {path} must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix}."
        )
    return _View(
        focal=(focal_x, focal_y),
        # OpenCV counts pixels from the centre of the first one.
        center=(center_x + 0.5, center_y + 0.5),
        size=(size[0][0], size[1][0]) if all(size) else None,
        is_distorted=any(distortion),
    )


def _fisheye(source: object, model: str) -> ValueError:
    return ValueError(
        f"The intrinsics in {source} are of a fisheye lens ({model}), which no network here knows; "
        "undistort the photos first."
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file of intrinsics, got a binary one.") from error


def _first(content: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError("it holds no names and values")
    return next((content[name] for name in names if name in content), None)


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a matrix: a mapping with ``data``, nested lists, or nothing."""
    if isinstance(value, Mapping):
        value = value.get("data")
    if value is None:
        return []
    if isinstance(value, list):
        return [number for entry in value for number in _numbers(entry)]
    return [float(value)]


def _matrix(view: _View, frame: Frame, where: str) -> Tensor:
    """Return intrinsics in pixels of a photo, or raise if they cannot be."""
    scale_x = scale_y = 1.0
    if view.size is not None:
        if not min(view.size) > 0:
            raise ValueError(f"The camera of {frame.name} in {where} has no size.")
        scale_x, scale_y = (side / own for side, own in zip(frame.size, view.size, strict=True))
        if abs(scale_x / scale_y - 1) > _ASPECT_TOLERANCE:
            raise ValueError(
                f"The intrinsics of {frame.name} in {where} are of pictures of "
                f"{view.size[0]:g} x {view.size[1]:g} pixels, the photo has {frame.size[0]} x "
                f"{frame.size[1]}, which is another shape."
            )
    values = (*view.focal, *view.center)
    if not all(map(math.isfinite, values)) or min(view.focal) <= 0:
        raise ValueError(
            f"The intrinsics of {frame.name} in {where} are singular: focal lengths must be "
            f"positive, got {view.focal[0]:g} and {view.focal[1]:g}."
        )
    return torch.tensor(
        [
            [view.focal[0] * scale_x, 0.0, view.center[0] * scale_x],
            [0.0, view.focal[1] * scale_y, view.center[1] * scale_y],
            [0.0, 0.0, 1.0],
        ],
        dtype=torch.float64,
    )
