# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.frames import Frame, Frames
from ns_sparseattn.refine import MatchOptions
from ns_sparseattn.refine.database import create_database, open_database
from ns_sparseattn.refine.features import extract_features
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.synthetic import SyntheticScene

OPTIONS = MatchOptions(match_threads=1)


def keypoints(
    path: Path, truth: Scene, photos: tuple[Frame, ...], read: Any, options: MatchOptions = OPTIONS
) -> list[np.ndarray]:
    """Keypoints of each photo, x and y in the first two columns."""
    create_database(path, truth, calibrated=())
    extract_features(path, photos, options, reader=read)
    with open_database(path) as database:
        found = [database.read_keypoints(index + 1) for index in range(len(photos))]
        assert database.num_images() == len(truth.images)
        assert database.num_cameras() == len(truth.cameras)
    return found


def test_every_photo_of_every_batch_has_features(
    truth: Scene, frames: Frames, room: SyntheticScene, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ns_sparseattn.refine.features._PHOTOS_PER_THREAD", 3)
    monkeypatch.setattr("ns_sparseattn.refine.features._MIN_BATCH", 3)
    done = []
    create_database(tmp_path / "d.db", truth, calibrated=())
    extract_features(
        tmp_path / "d.db", frames.frames, OPTIONS, reader=room.read_rgb, progress=done.append
    )
    assert done == [3, 6, 7]
    with open_database(tmp_path / "d.db") as database:
        assert all(len(database.read_keypoints(i + 1)) > 100 for i in range(len(frames)))


def test_masked_pixels_have_no_features(
    truth: Scene, frames: Frames, room: SyntheticScene, tmp_path: Path
) -> None:
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :200] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    masked = replace(frames.frames[1], mask_path=tmp_path / "mask.png")
    photos = (frames.frames[0], masked, *frames.frames[2:])
    found = keypoints(tmp_path / "d.db", truth, photos, room.read_rgb)
    assert len(found[1]) > 20
    assert found[1][:, 0].min() > 199
    assert found[0][:, 0].min() < 100


def test_large_photos_are_searched_smaller_but_keypoints_are_original_pixels(
    truth: Scene, frames: Frames, room: SyntheticScene, tmp_path: Path
) -> None:
    options = replace(OPTIONS, max_feature_size=160)
    whole = keypoints(tmp_path / "a.db", truth, frames.frames, room.read_rgb)
    small = keypoints(tmp_path / "b.db", truth, frames.frames, room.read_rgb, options)
    assert 0 < len(small[0]) < len(whole[0])
    assert small[0][:, 0].max() > 250


def test_features_that_pycolmap_lacks_are_named(
    truth: Scene, frames: Frames, room: SyntheticScene, tmp_path: Path
) -> None:
    with pytest.raises(ReconstructionError, match="use --features sift"):
        keypoints(
            tmp_path / "d.db",
            truth,
            frames.frames,
            room.read_rgb,
            replace(OPTIONS, features="aliked"),
        )
