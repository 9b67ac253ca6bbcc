# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from ns_sparseattn.frames import Frames
from ns_sparseattn.geometry import project, transform_points
from ns_sparseattn.refine.database import PairMatches
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.synthetic import SyntheticScene, make_frames, make_room, true_scene

MakeMatches = Callable[..., tuple[PairMatches, ...]]


@pytest.fixture(scope="session")
def room() -> SyntheticScene:
    return make_room(num_views=7, size=(320, 240), step_deg=9.0)


@pytest.fixture(scope="session")
def frames(room: SyntheticScene) -> Frames:
    return make_frames(room, long_side=112)


@pytest.fixture(scope="session")
def truth(room: SyntheticScene, frames: Frames) -> Scene:
    return true_scene(room, frames)


@pytest.fixture(scope="session")
def make_matches() -> MakeMatches:
    """Exact matches of random points in a box that all cameras look at."""

    def make(
        scene: Scene, *, num_points: int = 60, noise_px: float = 0.3, seed: int = 0
    ) -> tuple[PairMatches, ...]:
        generator = np.random.default_rng(seed)
        points = torch.from_numpy(generator.uniform(-1.2, 1.2, (num_points, 3)))
        pixels = []
        for image in scene.images:
            in_cam = transform_points(image.cam_from_world, points)
            xy, _ = project(in_cam, scene.camera_of(image).intrinsics)
            pixels.append(xy.numpy() + generator.normal(0.0, noise_px, (num_points, 2)))
        return tuple(
            PairMatches(first=i, second=j, xy_first=pixels[i], xy_second=pixels[j])
            for i, j in combinations(range(len(pixels)), 2)
        )

    return make
