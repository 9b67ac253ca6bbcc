# SPDX-License-Identifier: Apache-2.0
"""Local features of the full-resolution photos, written to COLMAP's database.

Photos are handed to pycolmap as plain pictures in a scratch folder, a batch at a time, since it
finds features on several threads only in files that it reads itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ReconstructionError
from ..export.colmap import import_pycolmap
from ..frames import read_mask, read_rgb
from ..frames.types import Frame
from .database import working_name
from .options import FeatureName, MatchOptions

ReadRgb = Callable[[Frame], Any]
"""Returns a frame's upright photo as a uint8 array ``[H, W, 3]``."""

_MASKS = "masks"
"""Folder of a batch's masks, in that of its photos."""

_PHOTOS_PER_THREAD = 8
"""Photos of one batch for each thread: more waste less time at its end, and take more space."""

_MIN_BATCH = 32
"""Photos of a batch at least, where there are few threads."""

_TYPES: dict[FeatureName, str] = {"sift": "SIFT", "aliked": "ALIKED_N16ROT", "loma": "LOMA_B"}
_MATCHERS: dict[FeatureName, str] = {
    "sift": "SIFT_BRUTEFORCE",
    "aliked": "ALIKED_LIGHTGLUE",
    "loma": "LOMA_B",
}


def num_threads(options: MatchOptions) -> int:
    """Return the number of threads that the options ask for."""
    if options.match_threads:
        return options.match_threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def uses_gpu(options: MatchOptions) -> bool:
    """Whether features and matching run on a GPU."""
    return options.match_device == "auto" and bool(import_pycolmap().has_cuda)


def device_of(options: MatchOptions) -> Any:
    """Return pycolmap's name of the device of features and matching."""
    device = import_pycolmap().Device
    return device.cuda if uses_gpu(options) else device.cpu


def feature_type(features: FeatureName) -> Any:
    """Return pycolmap's name of a feature."""
    return getattr(import_pycolmap().FeatureExtractorType, _TYPES[features])


def matcher_type(features: FeatureName) -> Any:
    """Return pycolmap's name of the matcher that goes with a feature."""
    return getattr(import_pycolmap().FeatureMatcherType, _MATCHERS[features])


def extract_features(
    database_path: Path,
    frames: tuple[Frame, ...],
    options: MatchOptions,
    *,
    reader: ReadRgb | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Find features in all photos and write them to the database.

    Photos are read upright, so that keypoints are original pixels whatever their EXIF says, which
    COLMAP's own reader does not do. Masked pixels have no features. A photo without features is no
    error.

    Args:
        database_path: A database of `create_database`.
        frames: The photos; number ``i`` is image ``i + 1``.
        options: Kind, number and size.
        reader: Reads a photo; `ns_sparseattn.frames.read_rgb` if not given.
        progress: Called with the number of photos done.

    Raises:
        BrokenPhotoError: If a photo cannot be read any more.
        ReconstructionError: If pycolmap does not offer the features.
    """
    pycolmap = import_pycolmap()
    settings = _extraction_options(options)
    _check_offered(settings, options)
    read = read_rgb if reader is None else reader
    done = 0
    for folder, names in _batches(frames, options, read):
        pictures = pycolmap.ImageReaderOptions()
        if any((folder / _MASKS).iterdir()):
            pictures.mask_path = str(folder / _MASKS)
        pycolmap.extract_features(
            str(database_path),
            str(folder),
            image_names=names,
            reader_options=pictures,
            extraction_options=settings,
            device=device_of(options),
        )
        done += len(names)
        if progress is not None:
            progress(done)


def _batches(
    frames: tuple[Frame, ...], options: MatchOptions, read: ReadRgb
) -> Iterator[tuple[Path, list[str]]]:
    """Yield scratch folders of photos and the names in them; the next is written meanwhile."""
    size = max(_MIN_BATCH, _PHOTOS_PER_THREAD * num_threads(options))
    starts = range(0, len(frames), size)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as pool:

        def write(start: int) -> tuple[Path, list[str]]:
            folder = Path(scratch, str(start))
            (folder / _MASKS).mkdir(parents=True)
            batch = range(start, min(start + size, len(frames)))
            # pycolmap wants a mask for every photo or none.
            is_masked = any(_has_mask(frames[index]) for index in batch)
            for index in batch:
                rgb = Image.fromarray(np.asarray(read(frames[index])))
                grey_or_rgb = rgb.convert("L") if options.features == "sift" else rgb
                grey_or_rgb.save(folder / working_name(index), format="PPM")
                if is_masked:
                    _write_mask(folder / _MASKS / f"{working_name(index)}.png", frames[index])
            return folder, [working_name(index) for index in batch]

        pending = pool.submit(write, 0) if frames else None
        for start in starts:
            assert pending is not None
            folder, names = pending.result()
            if start + size < len(frames):
                pending = pool.submit(write, start + size)
            yield folder, names
            for path in (*folder.glob("*.*"), *(folder / _MASKS).iterdir()):
                path.unlink()


def _has_mask(frame: Frame) -> bool:
    return frame.mask_path is not None or frame.has_alpha


def _write_mask(path: Path, frame: Frame) -> None:
    """Write the mask of a photo, all white if it has none."""
    mask = read_mask(frame) if _has_mask(frame) else None
    if mask is None:
        mask = np.ones((frame.size[1], frame.size[0]), dtype=bool)
    Image.fromarray(np.uint8(mask) * 255).save(path)


def _extraction_options(options: MatchOptions) -> Any:
    """Return pycolmap's settings."""
    settings = import_pycolmap().FeatureExtractionOptions()
    settings.type = feature_type(options.features)
    settings.num_threads = num_threads(options)
    settings.use_gpu = uses_gpu(options)
    settings.max_image_size = options.max_feature_size
    settings.sift.max_num_features = options.max_features
    return settings


def _check_offered(settings: Any, options: MatchOptions) -> None:
    """Raise `ReconstructionError` if this pycolmap cannot find such features."""
    pycolmap = import_pycolmap()
    try:
        pycolmap.FeatureExtractor.create(settings, device_of(options))
    except RuntimeError as error:
        raise ReconstructionError(
            f"pycolmap {pycolmap.__version__} offers no {options.features} features here "
            f"({error}); use --features sift."
        ) from error
