# SPDX-License-Identifier: Apache-2.0
"""Up, told from the cameras; the world turned so that it is -y."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ns_sparseattn.geometry import project, transform_points
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene import Scene, SceneOptions, build_scene, estimate_up, level_world
from ns_sparseattn.testing.stubs import read_blank
from ns_sparseattn.testing.synthetic import exact_prediction, look_at, make_frames, make_room

OPTIONS = SceneOptions()
UP = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
TARGET = (0.0, 0.0, 0.0)


def random_rotation(seed: int) -> Tensor:
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 3)))
    rotation, _ = torch.linalg.qr(matrix)
    return rotation * torch.linalg.det(rotation)


def around(
    num_views: int, *, arc_deg: float, height: float, rolls_deg: Sequence[float] = (0.0,)
) -> Tensor:
    """Rotations ``[F, 3, 3]`` on an arc of radius 4 that look at the origin."""
    rotations = []
    for index in range(num_views):
        angle = math.radians(arc_deg) * index / num_views
        center = (4 * math.sin(angle), -height, -4 * math.cos(angle))
        roll = rolls_deg[index % len(rolls_deg)]
        rotations.append(look_at(center, TARGET, roll_deg=roll)[:, :3])
    return torch.stack(rotations)


def angle_deg(first: Tensor | None, second: Tensor) -> float:
    assert first is not None
    return math.degrees(
        math.atan2(float(torch.linalg.cross(first, second).norm()), float(first @ second))
    )


@settings(max_examples=50, deadline=None)
@given(
    num_views=st.integers(2, 30),
    arc_deg=st.floats(60, 360),
    height=st.floats(-8, 8),
    seed=st.integers(0, 10_000),
)
def test_level_cameras_tell_up_exactly_in_any_world(
    num_views: int, arc_deg: float, height: float, seed: int
) -> None:
    # However far they look up or down.
    rotations, world = around(num_views, arc_deg=arc_deg, height=height), random_rotation(seed)
    # Two views opposite each other have one x axis between them.
    assume(num_views > 2 or not arc_deg > 340)
    assert angle_deg(estimate_up(rotations @ world.T, OPTIONS), world @ UP) < 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), world_seed=st.integers(0, 10_000))
def test_any_world_gives_the_same_answer(seed: int, world_seed: int) -> None:
    random = np.random.default_rng(seed)
    rolls = random.normal(0, 4, size=12).tolist()
    rotations = around(12, arc_deg=random.uniform(0, 360), height=1.0, rolls_deg=rolls)
    here = estimate_up(rotations, OPTIONS)
    world = random_rotation(world_seed)
    there = estimate_up(rotations @ world.T, OPTIONS)
    assert here is not None
    assert angle_deg(there, world @ here) < 1e-3


def test_small_rolls_make_a_small_error() -> None:
    rolls = np.random.default_rng(0).normal(0, 2, size=24).tolist()
    rotations = around(24, arc_deg=360, height=2.0, rolls_deg=rolls)
    assert angle_deg(estimate_up(rotations, OPTIONS), UP) < 1.0


@pytest.mark.parametrize("roll_deg", [90.0, -90.0, 45.0, 180.0])
def test_photos_held_another_way_do_not_count_if_they_are_few(roll_deg: float) -> None:
    rolls = [0.0, 0.0, roll_deg, 0.0]
    rotations = around(24, arc_deg=360, height=2.0, rolls_deg=rolls)
    assert angle_deg(estimate_up(rotations, OPTIONS), UP) < 0.05


def test_cameras_of_one_heading_tell_up_by_their_own() -> None:
    level = torch.stack([look_at((x, 0.0, -4.0), (x, 0.0, 0.0))[:, :3] for x in (0.0, 1.0, 2.0)])
    assert angle_deg(estimate_up(level, OPTIONS), UP) < 1e-6
    # All look down by 30 degrees, which nothing can tell; a roll of one of them is taken out.
    pitched = around(1, arc_deg=0, height=4 * math.tan(math.radians(30)))
    assert angle_deg(estimate_up(pitched, OPTIONS), UP) == pytest.approx(30.0)


def test_cameras_that_look_straight_down_at_every_heading_have_the_sky_behind_them() -> None:
    headings = [2 * math.pi * index / 8 for index in range(8)]
    down = [
        torch.tensor(
            [[math.cos(a), 0, math.sin(a)], [math.sin(a), 0, -math.cos(a)], [0, 1, 0]],
            dtype=torch.float64,
        )
        for a in headings
    ]
    rotations = torch.stack(down)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(8, dtype=torch.float64))
    assert angle_deg(estimate_up(rotations, OPTIONS), UP) < 1e-6


def test_cameras_tilted_in_every_direction_tell_nothing() -> None:
    rotations = torch.stack([random_rotation(seed) for seed in range(40)])
    assert estimate_up(rotations, OPTIONS) is None


def test_opposite_cameras_of_one_heading_tell_nothing() -> None:
    flipped = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    rotations = torch.stack([torch.eye(3, dtype=torch.float64), flipped])
    assert estimate_up(rotations, OPTIONS) is None


@pytest.fixture(scope="module")
def tilted() -> Callable[[Tensor], Scene]:
    """Build an exact scene of a room whose prediction lies in another world."""
    room = make_room(num_views=4, size=(96, 72), step_deg=15.0)
    frames = make_frames(room, long_side=56)
    truth = exact_prediction(room, frames)

    def build(world: Tensor) -> Scene:
        poses = truth.cam_from_world.double()
        turned = torch.cat([poses[..., :3] @ world.T, poses[..., 3:]], dim=-1)
        prediction: Prediction = dataclasses.replace(truth, cam_from_world=turned)
        options = SceneOptions(max_points=300)
        return build_scene(prediction, frames, options, read_rgb=read_blank)

    return build


def reprojection(scene: Scene) -> Tensor:
    """Distance of each observation from its point's projection, ``[O]``."""
    points = scene.points
    poses = torch.stack([image.cam_from_world for image in scene.images])
    lenses = torch.stack([scene.camera_of(image).intrinsics for image in scene.images])
    seen = transform_points(poses[points.obs_image], points.xyz[points.obs_point])
    pixels, _ = project(seen, lenses[points.obs_image])
    return (pixels - points.obs_xy).norm(dim=-1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tilted_scene_is_levelled_and_stays_itself(
    tilted: Callable[[Tensor], Scene], seed: int
) -> None:
    world = random_rotation(seed)
    scene = tilted(world)
    level, levelling = level_world(scene, OPTIONS)
    rotations = torch.stack([image.cam_from_world[:, :3] for image in level.images])
    assert float(rotations[:, 0, 1].abs().max()) < 1e-5
    assert bool((rotations[:, 1, 1] > 0.5).all())
    assert levelling.turned_deg == pytest.approx(angle_deg(world @ UP, UP), abs=1e-3)
    assert levelling.median_roll_deg == pytest.approx(0.0, abs=1e-3)
    # Same pixels, same scale, same origin.
    torch.testing.assert_close(reprojection(level), reprojection(scene), rtol=0, atol=1e-6)
    torch.testing.assert_close(level.points.xyz.norm(dim=-1), scene.points.xyz.norm(dim=-1))
    for image, before in zip(level.images, scene.images, strict=True):
        assert torch.equal(image.cam_from_world[:, 3], before.cam_from_world[:, 3])
    assert level.notes == scene.notes


def test_levelling_twice_is_levelling_once(tilted: Callable[[Tensor], Scene]) -> None:
    once, _ = level_world(tilted(random_rotation(1)), OPTIONS)
    twice, levelling = level_world(once, OPTIONS)
    assert levelling.turned_deg < 1e-5
    torch.testing.assert_close(twice.points.xyz, once.points.xyz, rtol=0, atol=1e-9)


def test_an_upside_down_world_is_turned_by_half(tilted: Callable[[Tensor], Scene]) -> None:
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    level, levelling = level_world(tilted(flip), OPTIONS)
    assert levelling.turned_deg == pytest.approx(180.0, abs=1e-3)
    assert bool(torch.stack([image.cam_from_world[1, 1] > 0.5 for image in level.images]).all())
    rotation = level.images[0].cam_from_world[:, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)


def test_the_models_world_is_kept_on_demand(tilted: Callable[[Tensor], Scene]) -> None:
    scene = tilted(random_rotation(1))
    kept, levelling = level_world(scene, SceneOptions(world="model"))
    assert kept is scene
    assert levelling.turned_deg == 0.0


def test_a_scene_without_up_stays_as_it_is_and_says_so(tilted: Callable[[Tensor], Scene]) -> None:
    scene = tilted(torch.eye(3, dtype=torch.float64))
    images = tuple(
        dataclasses.replace(
            image, cam_from_world=torch.cat([random_rotation(n), image.cam_from_world[:, 3:]], 1)
        )
        for n, image in enumerate(scene.images)
    )
    confused = dataclasses.replace(scene, images=images)
    kept, levelling = level_world(confused, SceneOptions(max_roll_deg=1.0))
    assert kept.images is images
    assert levelling.median_roll_deg is None
    assert "Up cannot be told" in kept.notes[-1]


@pytest.mark.parametrize(
    ("name", "limit_deg"),
    [
        # Rendered without roll; with up to nine degrees of it.
        ("synth_room", 0.01),
        ("hard/pure_rotation", 0.01),
        ("synth_table", 2.5),
    ],
)
def test_recorded_poses_whose_worlds_have_z_up(name: str, limit_deg: float, shared: Path) -> None:
    import pycolmap

    model = pycolmap.Reconstruction(str(shared / "data" / name / "gt"))
    matrices = [image.cam_from_world().rotation.matrix() for image in model.images.values()]
    up = estimate_up(torch.from_numpy(np.stack(matrices)), OPTIONS)
    assert angle_deg(up, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)) < limit_deg
