# SPDX-License-Identifier: Apache-2.0
"""Scenes of five kinds, drawn for a whole batch at once.

* room: furniture on the floor, things on furniture, pictures on the walls;
* table: small things on a table or block in a room;
* terrain: waves of ground with large things on it, under a sky;
* clutter: things of all sizes and orientations around a point;
* facade: a wall with doors, windows and ledges, and pillars before it.

Every kind fills the same slots, so that a batch may mix them.

Axes: ``B`` scenes, ``K`` objects, ``J`` waves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from training.draws import Draws
from training.photographs import Domain
from training.world import Looks, Objects, Slots, Surroundings, World

Kind = Literal["room", "table", "terrain", "clutter", "facade"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SHARES = (0.3, 0.25, 0.12, 0.18, 0.15)
"""How often each kind is drawn: indoor photos are what the tool meets most."""

_NUM_WAVES = 5
_NUM_PICTURES = 3
"""Boxes that hang on the walls of a room."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where cameras may be and what they look at."""

    kind: Tensor  # [B] int64
    """Index into `KINDS`."""
    focus: Tensor  # [B, 3]
    """Middle of what is worth looking at."""
    reach: Tensor  # [B]
    """Radius of it, metres."""


def draw_world(
    seed: int, domain: Domain, indices: Tensor, slots: Slots, num_textures: int
) -> tuple[World, Stage]:
    """Draw scenes.

    Args:
        seed: Of the run.
        domain: Held-out scenes have cones for cylinders, and other random numbers.
        indices: Which scenes, ``[B]``.
        slots: Room for objects.
        num_textures: Textures of the bank that the scenes choose from.

    Returns:
        The scenes and what cameras need to know about them.
    """
    draws = Draws(seed, f"{domain}/scene", indices)
    kind = _draw_kind(draws)
    shell_half = torch.cat(
        [draws.uniform(2, low=2.0, high=4.5), draws.uniform(1, low=1.15, high=2.0)], dim=1
    )
    is_outside = kind == KINDS.index("terrain")
    shell_half = torch.where(is_outside[:, None], 4.0 * shell_half, shell_half)
    shell_center = shell_half * shell_half.new_tensor([0.0, 0.0, 1.0])

    layouts = (_lay_room, _lay_table, _lay_terrain, _lay_clutter, _lay_facade)
    parts = [layout(draws, shell_half, slots) for layout in layouts]
    center, half, turns, focus, reach = (
        torch.stack([getattr(part, name) for part in parts], dim=1)[_rows(kind), kind]
        for name in ("center", "half", "turns", "focus", "reach")
    )
    surroundings = _surround(draws, kind, is_outside, shell_center, shell_half)
    # Things on waves stand a little in the ground, so that none floats.
    lift = surroundings.terrain_height(center[..., :2]) - 0.1 * half[..., 2]
    lift = torch.where(surroundings.has_terrain[:, None], lift, 0.0)
    focus = focus + lift[:, 0, None] * focus.new_tensor([0.0, 0.0, 1.0])
    center = torch.cat([center[..., :2], (center[..., 2] + lift)[..., None]], dim=-1)

    taper = draws.uniform(slots.objects, low=0.4, high=0.95) * (domain == "held_out")
    objects = Objects(
        center=center,
        world_from_object=_rotations(turns),
        half=half,
        taper=taper,
        is_there=draws.chance(0.85, slots.objects),
    )
    looks = _draw_looks(draws, slots, num_textures, shell_half)
    world = World(objects=objects, surroundings=surroundings, looks=looks)
    return world, Stage(kind=kind, focus=focus, reach=reach)


def _rows(kind: Tensor) -> Tensor:
    return torch.arange(len(kind), device=kind.device)


def _draw_kind(draws: Draws) -> Tensor:
    bounds = torch.tensor(_SHARES).cumsum(0)
    value = draws.uniform(1)
    return (value >= bounds[:-1].to(value)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    center: Tensor  # [B, K, 3]
    half: Tensor  # [B, K, 3]
    turns: Tensor  # [B, K, 3]
    """Angles about z, then x, then z, radians."""
    focus: Tensor  # [B, 3]
    reach: Tensor  # [B]


def _sizes(draws: Draws, slots: Slots, low: float, high: float) -> Tensor:
    """Draw half sizes; ellipsoids are not too flat, cylinders are round."""
    overall = draws.log_uniform(slots.objects, 1, low=low, high=high)
    half = overall * draws.uniform(slots.objects, 3, low=0.45, high=1.3)
    first = slots.boxes + slots.ellipsoids
    half[:, first:, 1] = half[:, first:, 0]
    return half


def _yaws(draws: Draws, slots: Slots) -> Tensor:
    yaw = draws.uniform(slots.objects, 1, high=2.0 * math.pi)
    return torch.cat([yaw, torch.zeros_like(yaw), torch.zeros_like(yaw)], dim=-1)


def _flat(draws: Draws, slots: Slots, shell_half: Tensor, share: float) -> Tensor:
    """Draw places on the floor within a share of the shell, ``[B, K, 2]``."""
    return share * shell_half[:, None, :2] * draws.uniform(slots.objects, 2, low=-1.0)


def _hang(
    draws: Draws, shell_half: Tensor, count: int, depth_m: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Draw centres and half sizes ``[B, count, 3]`` of flat boxes on the four walls."""
    wall = draws.integers(count, high=4)
    along_x = (wall % 2 == 0)[..., None]
    sign = 1.0 - 2.0 * (wall >= 2).float()
    size = draws.uniform(count, 2, low=0.25, high=0.9)
    depth = draws.uniform(count, low=depth_m[0], high=depth_m[1])
    x_half, y_half, z_half = (half[:, None] for half in shell_half.unbind(-1))
    slide = draws.uniform(count, low=-0.8, high=0.8)
    height = z_half + draws.uniform(count, low=-0.4, high=0.4) * z_half
    on_x = torch.stack([sign * (x_half - depth), slide * y_half, height], dim=-1)
    on_y = torch.stack([slide * x_half, sign * (y_half - depth), height], dim=-1)
    half_x = torch.stack([depth, size[..., 0], size[..., 1]], dim=-1)
    half_y = torch.stack([size[..., 0], depth, size[..., 1]], dim=-1)
    return torch.where(along_x, on_x, on_y), torch.where(along_x, half_x, half_y)


def _stand(place: Tensor, half: Tensor, support: Tensor) -> Tensor:
    """Put things onto supports of given heights ``[B, K]``."""
    return torch.cat([place, (support + half[..., 2])[..., None]], dim=-1)


def _lay_room(draws: Draws, shell_half: Tensor, slots: Slots) -> _Layout:
    half, turns = _sizes(draws, slots, 0.12, 0.7), _yaws(draws, slots)
    place = _flat(draws, slots, shell_half, 0.85)
    # Some things stand on the first piece of furniture that is no picture.
    base = _NUM_PICTURES
    is_on = draws.chance(0.35, slots.objects) & (
        torch.arange(slots.objects, device=half.device) > base
    )
    small = torch.where(is_on[..., None], 0.35 * half, half)
    spot = place[:, base, None] + 0.6 * half[:, base, None, :2] * draws.uniform(
        slots.objects, 2, low=-1.0
    )
    place = torch.where(is_on[..., None], spot, place)
    support = torch.where(is_on, 2.0 * half[:, base, None, 2], 0.0)
    center, half = _stand(place, small, support), small
    hung = _hang(draws, shell_half, _NUM_PICTURES, (0.01, 0.06))
    center[:, :_NUM_PICTURES], half[:, :_NUM_PICTURES] = hung
    turns[:, :_NUM_PICTURES] = 0.0
    focus = torch.cat(
        [0.4 * shell_half[:, :2] * draws.uniform(2, low=-1.0), shell_half[:, 2:] * 0.7], 1
    )
    return _Layout(
        center=center, half=half, turns=turns, focus=focus, reach=shell_half[:, :2].amin(1) * 0.6
    )


def _lay_table(draws: Draws, shell_half: Tensor, slots: Slots) -> _Layout:
    half, turns = _sizes(draws, slots, 0.05, 0.22), _yaws(draws, slots)
    top = draws.uniform(1, low=0.45, high=0.95)
    table = torch.cat([draws.uniform(2, low=0.45, high=0.9), 0.5 * top], dim=1)
    spread = table[:, None, :2] * draws.uniform(slots.objects, 2, low=-0.85, high=0.85)
    cos, sin = turns[:, :1, 0].cos(), turns[:, :1, 0].sin()
    x, y = spread.unbind(-1)
    place = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    center = _stand(place, half, top.expand(-1, slots.objects))
    center[:, 0] = torch.cat([torch.zeros_like(table[:, :2]), 0.5 * top], dim=1)
    half[:, 0] = table
    hung = _hang(draws, shell_half, 2, (0.01, 0.06))
    center[:, 1:3], half[:, 1:3] = hung
    turns[:, 1:3] = 0.0
    # Half of the tables are plates on the air: a thin top shows what is behind and below.
    is_plate = draws.chance(0.5, 1)
    half[:, 0, 2:] = torch.where(is_plate, 0.03, half[:, 0, 2:])
    center[:, 0, 2:] = torch.where(is_plate, top - 0.03, center[:, 0, 2:])
    focus = torch.cat([0.2 * draws.uniform(2, low=-1.0), top + 0.05], dim=1)
    return _Layout(center=center, half=half, turns=turns, focus=focus, reach=table[:, 0] * 0.8)


def _lay_terrain(draws: Draws, shell_half: Tensor, slots: Slots) -> _Layout:
    half, turns = _sizes(draws, slots, 0.3, 1.4), _yaws(draws, slots)
    place = 5.0 * draws.uniform(slots.objects, 2, low=-1.0)
    center = _stand(place, half, torch.zeros_like(half[..., 0]))
    focus = torch.cat([1.5 * draws.uniform(2, low=-1.0), draws.uniform(1, high=0.8)], dim=1)
    return _Layout(
        center=center, half=half, turns=turns, focus=focus, reach=draws.uniform(low=2.0, high=4.0)
    )


def _lay_clutter(draws: Draws, shell_half: Tensor, slots: Slots) -> _Layout:
    half = _sizes(draws, slots, 0.1, 0.5)
    turns = draws.uniform(slots.objects, 3, high=2.0 * math.pi)
    reach = draws.uniform(low=0.7, high=1.3)
    focus = torch.cat([0.3 * draws.uniform(2, low=-1.0), shell_half[:, 2:]], dim=1)
    offset = draws.uniform(slots.objects, 3, low=-1.0) * reach[:, None, None]
    return _Layout(center=focus[:, None] + offset, half=half, turns=turns, focus=focus, reach=reach)


def _lay_facade(draws: Draws, shell_half: Tensor, slots: Slots) -> _Layout:
    """Put most boxes onto the wall at +y, round things before it."""
    half, turns = _sizes(draws, slots, 0.15, 0.5), _yaws(draws, slots)
    wall_y = shell_half[:, None, 1]
    width = shell_half[:, None, 0].clamp(max=5.0)
    depth = draws.uniform(slots.objects, low=0.02, high=0.15)
    x = 0.9 * width * draws.uniform(slots.objects, low=-1.0)
    height = (0.15 + 0.8 * draws.uniform(slots.objects)) * (2.0 * shell_half[:, None, 2]).clamp(
        max=4.0
    )
    on_wall = torch.stack([x, wall_y - depth, height], dim=-1)
    before = _stand(
        torch.stack([x, wall_y - draws.uniform(slots.objects, low=0.4, high=1.6)], dim=-1),
        half,
        torch.zeros_like(x),
    )
    is_box = torch.arange(slots.objects, device=half.device) < slots.boxes
    is_flat = is_box & draws.chance(0.8, slots.objects)
    center = torch.where(is_flat[..., None], on_wall, before)
    flat_half = torch.stack([half[..., 0], depth, half[..., 2]], dim=-1)
    half = torch.where(is_flat[..., None], flat_half, half)
    turns = torch.where(is_flat[..., None], 0.0, turns)
    focus = torch.stack(
        [
            0.4 * width[:, 0] * draws.uniform(low=-1.0),
            wall_y[:, 0],
            draws.uniform(low=0.9, high=1.7),
        ],
        dim=1,
    )
    return _Layout(
        center=center, half=half, turns=turns, focus=focus, reach=draws.uniform(low=0.8, high=1.8)
    )


def _rotations(turns: Tensor) -> Tensor:
    """Return ``Rz(a) Rx(b) Rz(c)`` of angles ``[..., 3]``."""
    (ca, cb, cc), (sa, sb, sc) = turns.cos().unbind(-1), turns.sin().unbind(-1)
    rows = [
        torch.stack([ca * cc - sa * cb * sc, -ca * sc - sa * cb * cc, sa * sb], dim=-1),
        torch.stack([sa * cc + ca * cb * sc, -sa * sc + ca * cb * cc, -ca * sb], dim=-1),
        torch.stack([sb * sc, sb * cc, cb], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _surround(
    draws: Draws, kind: Tensor, is_open: Tensor, shell_center: Tensor, shell_half: Tensor
) -> Surroundings:
    length = draws.log_uniform(_NUM_WAVES, low=1.2, high=8.0)
    direction = draws.uniform(_NUM_WAVES, high=2.0 * math.pi)
    vector = (
        torch.stack([direction.cos(), direction.sin()], dim=-1)
        * (2.0 * math.pi / length)[..., None]
    )
    # Heights in proportion to lengths: slopes of all waves are alike, and none is a cliff.
    height = 0.03 * length * draws.uniform(_NUM_WAVES, low=0.3)
    lamp_place = torch.cat(
        [0.7 * shell_half[:, :2] * draws.uniform(2, low=-1.0), 1.9 * shell_half[:, 2:]], dim=1
    )
    return Surroundings(
        shell_center=shell_center,
        shell_half=shell_half,
        is_open=is_open,
        has_terrain=kind == KINDS.index("terrain"),
        wave_vector=vector,
        wave_phase=draws.uniform(_NUM_WAVES, high=2.0 * math.pi),
        wave_height=height,
        lamp=lamp_place,
        lamp_strength=draws.uniform(low=0.3, high=1.0),
        ambient=draws.uniform(low=0.25, high=0.7),
    )


def _draw_looks(draws: Draws, slots: Slots, num_textures: int, shell_half: Tensor) -> Looks:
    count = slots.total
    metres = draws.log_uniform(count, low=0.35, high=1.6)
    # Large surfaces carry large pictures; open country is a few times larger than a room.
    metres[:, slots.shell :] *= 3.5 * (shell_half[:, :1] / 3.0).clamp(min=1.0)
    gain = draws.uniform(count, 1, low=0.4, high=1.0) * draws.uniform(count, 3, low=0.7)
    offset = draws.uniform(count, 1, high=0.15) * draws.uniform(count, 3, low=0.5)
    return Looks(
        texture=draws.integers(count, high=num_textures),
        metres=metres,
        shift=draws.uniform(count, 2, high=2.0),
        gain=gain,
        offset=offset,
        gloss=draws.uniform(count, high=0.5) * draws.chance(0.25, count),
    )
