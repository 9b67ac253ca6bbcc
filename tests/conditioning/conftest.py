# SPDX-License-Identifier: Apache-2.0
"""Views of a room whose cameras, poses and depth are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ns_sparseattn import frames
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    make_room,
    write_photos,
)

LONG_SIDE = 112


@dataclass(frozen=True)
class Room:
    """Photos on disk, loaded, and the truth about them."""

    folder: Path
    scene: SyntheticScene
    photos: frames.Frames
    truth: Prediction

    def load(self, **options: object) -> frames.Frames:
        """Load the photos under other options."""
        return frames.load(self.folder, FrameOptions(**{"long_side": LONG_SIDE, **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    scene = make_room(num_views=5, size=(160, 120))
    folder = tmp_path_factory.mktemp("room") / "photos"
    write_photos(scene, folder)
    photos = frames.load(folder, FrameOptions(long_side=LONG_SIDE))
    return Room(folder, scene, photos, exact_prediction(scene, photos))


def true_intrinsics(room: Room, index: int = 0) -> Tensor:
    """Intrinsics of a photo in its own pixels."""
    pixel_map = room.photos.frames[index].pixel_map
    return pixel_map.intrinsics_to_original(room.truth.intrinsics[index].double())


def write_transforms(room: Room, path: Path, *, names: list[str] | None = None) -> Path:
    """Write poses and intrinsics as nerfstudio does."""
    import json

    from ns_sparseattn.geometry import invert_rigid

    k = true_intrinsics(room)
    width, height = room.photos.frames[0].size
    frames_ = []
    for name, pose in zip(names or room.photos.names, room.truth.cam_from_world, strict=False):
        world_from_cam = invert_rigid(pose.double()) * torch.tensor([1.0, -1.0, -1.0, 1.0])
        matrix = [*world_from_cam.tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames_.append({"file_path": f"images/{name}", "transform_matrix": matrix})
    content = {
        "w": width,
        "h": height,
        "fl_x": float(k[0, 0]),
        "fl_y": float(k[1, 1]),
        "cx": float(k[0, 2]),
        "cy": float(k[1, 2]),
        "frames": frames_,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_depth(room: Room, folder: Path, *, kind: str = "npy") -> Path:
    """Write a depth of 2 m everywhere but in the top rows, where it is unknown."""
    from PIL import Image

    folder.mkdir()
    for frame in room.photos.frames:
        depth = np.full((frame.size[1], frame.size[0]), 2.0)
        depth[:20] = 0.0
        path = folder / Path(frame.name).with_suffix(f".{kind}")
        if kind == "npy":
            np.save(path, depth.astype(np.float32))
        else:
            Image.fromarray((depth * 1000).astype(np.uint16)).save(path)
    return folder
