# SPDX-License-Identifier: Apache-2.0
"""Local features of the full-resolution photos, written to COLMAP's database.

Axes: ``K`` keypoints, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ReconstructionError
from ..export.colmap import import_pycolmap
from ..frames import read_mask, read_rgb
from ..frames.types import Frame
from .database import open_database
from .options import FeatureName, MatchOptions

ReadRgb = Callable[[Frame], Any]
"""Returns a frame's upright photo as a uint8 array ``[H, W, 3]``."""

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
    COLMAP's own reader does not do. Features on masked pixels are dropped. A photo without features
    gets none and is no error.

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
    local = threading.local()
    read = read_rgb if reader is None else reader

    def work(frame: Frame) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        # An extractor keeps buffers, so each thread has its own.
        if not hasattr(local, "extractor"):
            local.extractor = _make_extractor(options)
        return _extract_one(local.extractor, frame, options, read)

    pycolmap = import_pycolmap()
    kind = feature_type(options.features)
    _make_extractor(options)
    with ThreadPoolExecutor(num_threads(options)) as pool, open_database(database_path) as database:
        for index, (keypoints, descriptors) in enumerate(pool.map(work, frames)):
            database.write_keypoints(index + 1, keypoints)
            database.write_descriptors(index + 1, pycolmap.FeatureDescriptors(kind, descriptors))
            if progress is not None:
                progress(index + 1)


def _make_extractor(options: MatchOptions) -> Any:
    """Create an extractor that runs in the calling thread alone."""
    pycolmap = import_pycolmap()
    settings = pycolmap.FeatureExtractionOptions()
    settings.type = feature_type(options.features)
    settings.num_threads = 1
    settings.use_gpu = False
    settings.sift.max_num_features = options.max_features
    try:
        return pycolmap.FeatureExtractor.create(settings, pycolmap.Device.cpu)
    except RuntimeError as error:
        raise ReconstructionError(
            f"pycolmap {pycolmap.__version__} offers no {options.features} features here "
            f"({error}); use --features sift."
        ) from error


def _extract_one(
    extractor: Any, frame: Frame, options: MatchOptions, read: ReadRgb
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return keypoints ``[K, 4]`` (x, y, scale, orientation) and descriptors ``[K, 128]``."""
    pycolmap = import_pycolmap()
    rgb = Image.fromarray(np.asarray(read(frame)))
    width, height = rgb.size
    shrink = min(1.0, options.max_feature_size / max(width, height))
    if shrink < 1.0:
        rgb = rgb.resize((round(width * shrink), round(height * shrink)), Image.Resampling.BOX)
    found, descriptors = extractor.extract_from_uint8_array(
        np.asarray(rgb.convert("L") if options.features == "sift" else rgb)
    )
    if not len(found):
        return np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8)
    keypoints = np.array(pycolmap.keypoints_to_matrix(found), np.float32)
    keypoints[:, 0] *= width / rgb.width
    keypoints[:, 1] *= height / rgb.height
    keypoints[:, 2] /= shrink
    mask = read_mask(frame) if frame.mask_path is not None or frame.has_alpha else None
    rows = np.asarray(descriptors.data)
    if mask is not None:
        column = keypoints[:, 0].astype(int).clip(0, width - 1)
        row = keypoints[:, 1].astype(int).clip(0, height - 1)
        keypoints, rows = keypoints[mask[row, column]], rows[mask[row, column]]
    return keypoints, rows
