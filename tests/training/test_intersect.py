# SPDX-License-Identifier: Apache-2.0
"""Where rays meet shapes, against a search along each ray."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.cameras import look_at
from training.intersect import Rays, first_hits
from training.world import Objects, Slots, Surroundings

SIZE = 14
SAMPLES = 6000
FAR = 6.0


def rays(num: int) -> Rays:
    """Cameras around the origin, also steeply above and below."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)
    grid = ((torch.arange(SIZE) + 0.5) / SIZE - 0.5) * 1.1
    poses = look_at(
        2.5 * direction, 0.2 * torch.randn(num, 3, generator=generator), torch.zeros(num)
    )
    return Rays(columns=grid.repeat(num, 1), rows=grid.repeat(num, 1), cam_from_world=poses)


def empty(num: int, *, has_terrain: bool = False) -> Surroundings:
    generator = torch.Generator().manual_seed(4)
    return Surroundings(
        shell_center=torch.zeros(num, 3),
        shell_half=torch.full((num, 3), 4.0),
        is_open=torch.zeros(num, dtype=torch.bool),
        has_terrain=torch.full((num,), has_terrain),
        wave_vector=torch.randn(num, 5, 2, generator=generator),
        wave_phase=torch.rand(num, 5, generator=generator) * 6.0,
        wave_height=torch.full((num, 5), 0.05),
        lamp=torch.zeros(num, 3),
        lamp_strength=torch.ones(num),
        ambient=torch.ones(num),
    )


def one_object(num: int, taper: float) -> Objects:
    generator = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(num, 1, 3, 3, generator=generator)).Q
    turn = turn * torch.linalg.det(turn)[..., None, None]
    half = 0.3 + 0.6 * torch.rand(num, 1, 3, generator=generator)
    half[..., 1] = half[..., 0]
    return Objects(
        center=0.3 * torch.randn(num, 1, 3, generator=generator),
        world_from_object=turn,
        half=half,
        taper=torch.full((num, 1), taper),
        is_there=torch.ones(num, 1, dtype=torch.bool),
    )


def inside(shape: str, unit: Tensor, taper: float) -> Tensor:
    x, y, z = unit.unbind(-1)
    if shape == "box":
        return unit.abs().amax(-1) < 1
    if shape == "ellipsoid":
        return unit.square().sum(-1) < 1
    return (z.abs() < 1) & ((x * x + y * y).sqrt() < 1 - taper * (z + 1) / 2)


def search(rays: Rays, objects: Objects, shape: str, taper: float) -> Tensor:
    """Return the first of many depths at which a ray is inside, infinity for none."""
    num = len(rays.columns)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    in_cam = torch.stack(
        [rays.columns[:, x], rays.rows[:, y], torch.ones(num, SIZE, SIZE)], dim=-1
    ).flatten(1, 2)
    direction = in_cam @ rays.cam_from_world[..., :3]
    depth = torch.linspace(0.02, FAR, SAMPLES)
    turn, center, half = objects.world_from_object[:, 0], objects.center[:, 0], objects.half[:, 0]
    first = torch.full((num, SIZE * SIZE), math.inf)
    for view in range(num):
        point = rays.origins[view] + depth[:, None, None] * direction[view]
        is_inside = inside(shape, (point - center[view]) @ turn[view] / half[view], taper)
        first[view] = torch.where(is_inside.any(0), depth[is_inside.float().argmax(0)], math.inf)
    return first.unflatten(1, (SIZE, SIZE))


@pytest.mark.parametrize(
    ("shape", "slots", "taper"),
    [
        ("box", Slots(boxes=1, ellipsoids=0, cylinders=0), 0.0),
        ("ellipsoid", Slots(boxes=0, ellipsoids=1, cylinders=0), 0.0),
        ("cylinder", Slots(boxes=0, ellipsoids=0, cylinders=1), 0.0),
        ("cylinder", Slots(boxes=0, ellipsoids=0, cylinders=1), 0.9),
    ],
    ids=["box", "ellipsoid", "cylinder", "cone"],
)
def test_rays_meet_objects_where_a_search_finds_them(
    shape: str, slots: Slots, taper: float
) -> None:
    num = 12
    some_rays, objects = rays(num), one_object(num, taper)
    depth, slot = first_hits(some_rays, objects, empty(num), slots)
    expected = search(some_rays, objects, shape, taper)
    spacing = FAR / SAMPLES
    is_hit = slot == 0
    # Rays that only just touch may fall between two samples.
    assert int((is_hit != expected.isfinite()).sum()) <= 3
    both = is_hit & expected.isfinite()
    assert int(both.sum()) > 200
    late = (expected - depth)[both]
    assert float(late.min()) > -1e-3
    assert int((late > 2 * spacing).sum()) <= 3


def test_an_empty_slot_is_not_met_and_the_shell_is_behind_everything() -> None:
    slots = Slots(boxes=1, ellipsoids=0, cylinders=0)
    some_rays, objects, around = rays(4), one_object(4, 0.0), empty(4)
    objects.is_there[:] = False
    depth, slot = first_hits(some_rays, objects, around, slots)
    assert bool((slot == slots.shell).all())
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    in_cam = torch.stack(
        [some_rays.columns[:, x], some_rays.rows[:, y], torch.ones(4, SIZE, SIZE)], dim=-1
    )
    point = some_rays.origins[:, None, None] + depth[..., None] * (
        in_cam.flatten(1, 2) @ some_rays.cam_from_world[..., :3]
    ).unflatten(1, (SIZE, SIZE))
    # On the surface of a cube of half size 4.
    torch.testing.assert_close(point.abs().amax(-1), torch.full_like(depth, 4.0), atol=1e-4, rtol=0)


def test_points_on_waves_are_on_them_and_nothing_is_before_them() -> None:
    num, slots = 12, Slots(boxes=0, ellipsoids=0, cylinders=0)
    some_rays, around = rays(num), empty(num, has_terrain=True)
    is_above = some_rays.origins[:, 2] > 0.8
    assert int(is_above.sum()) >= 3
    objects = Objects(
        center=torch.zeros(num, 0, 3),
        world_from_object=torch.zeros(num, 0, 3, 3),
        half=torch.ones(num, 0, 3),
        taper=torch.zeros(num, 0),
        is_there=torch.zeros(num, 0, dtype=torch.bool),
    )
    depth, slot = first_hits(some_rays, objects, around, slots)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    in_cam = torch.stack(
        [some_rays.columns[:, x], some_rays.rows[:, y], torch.ones(num, SIZE, SIZE)], dim=-1
    ).flatten(1, 2)
    direction = in_cam @ some_rays.cam_from_world[..., :3]
    share = torch.linspace(0.0, 0.98, 300)[:, None]
    num_ground = 0
    for view in is_above.nonzero().flatten().tolist():
        is_ground = (slot[view] == slots.terrain).flatten()
        num_ground += int(is_ground.sum())
        reached = depth[view].flatten()
        for scale, on_ground in ((torch.ones(1, 1), True), (share, False)):
            point = some_rays.origins[view] + (scale * reached)[..., None] * direction[view]
            ground = around.take(torch.tensor([view])).terrain_height(
                point[..., :2].reshape(1, -1, 2)
            )
            above = (point[..., 2] - ground.view(point.shape[:-1]))[:, is_ground]
            if on_ground:
                assert float((above.abs() / reached[is_ground]).max()) < 3e-3
            else:
                assert float(above.min()) > -0.02
    assert num_ground > 200


def test_rays_along_the_axes_of_a_box_and_of_the_shell_meet_them() -> None:
    slots = Slots(boxes=1, ellipsoids=0, cylinders=0)
    straight = torch.cat([torch.eye(3), torch.tensor([[0.2], [0.1], [2.5]])], dim=1)[None]
    # The middle ray has two components that are zero to the last bit.
    grid = torch.tensor([[-1.5, 0.0, 1.5]])
    some_rays = Rays(columns=grid, rows=grid, cam_from_world=straight)
    box = Objects(
        center=torch.zeros(1, 1, 3),
        world_from_object=torch.eye(3)[None, None],
        half=torch.full((1, 1, 3), 0.5),
        taper=torch.zeros(1, 1),
        is_there=torch.ones(1, 1, dtype=torch.bool),
    )
    depth, slot = first_hits(some_rays, box, empty(1), slots)
    assert bool(depth.isfinite().all())
    assert int(slot[0, 1, 1]) == 0
    assert float(depth[0, 1, 1]) == pytest.approx(2.0)
    # Beside the box, to the side of the shell: from x = -0.2 to 4 at 1.5 a metre.
    assert int(slot[0, 1, 2]) == slots.shell
    assert float(depth[0, 1, 2]) == pytest.approx(4.2 / 1.5)
