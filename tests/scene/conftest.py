# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest

from ns_sparseattn.frames import Frames
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene import Scene, SceneOptions, build_scene
from ns_sparseattn.testing.stubs import read_blank
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    make_frames,
    make_plane,
    make_room,
)

BuildScene = Callable[..., Scene]
"""Builds without reading photos; keywords are those of `SceneOptions`."""


@pytest.fixture(scope="session")
def build() -> BuildScene:
    def build_without_photos(
        prediction: Prediction, frames: Frames, **options: float | str
    ) -> Scene:
        scene_options = SceneOptions(**options)  # type: ignore[arg-type]
        return build_scene(prediction, frames, scene_options, read_rgb=read_blank)

    return build_without_photos


@pytest.fixture(scope="session")
def plane() -> SyntheticScene:
    return make_plane(num_views=5, size=(160, 120))


@pytest.fixture(scope="session")
def plane_frames(plane: SyntheticScene) -> Frames:
    return make_frames(plane, long_side=84)


@pytest.fixture(scope="session")
def plane_prediction(plane: SyntheticScene, plane_frames: Frames) -> Prediction:
    return exact_prediction(plane, plane_frames)


@pytest.fixture(scope="session")
def room() -> SyntheticScene:
    return make_room(num_views=5, size=(160, 120))


@pytest.fixture(scope="session")
def room_frames(room: SyntheticScene) -> Frames:
    return make_frames(room, long_side=112)


@pytest.fixture(scope="session")
def room_prediction(room: SyntheticScene, room_frames: Frames) -> Prediction:
    return exact_prediction(room, room_frames)
