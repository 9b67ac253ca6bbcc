# SPDX-License-Identifier: Apache-2.0
"""Camera paths: orbits, forward and sideways motion, scans of a room, all hand-held.

Axes: ``B`` scenes, ``V`` views along a path.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draws
from training.photographs import Domain
from training.scenes import KINDS, Kind, Stage
from training.world import Cameras, Surroundings

Path = Literal["orbit", "forward", "sideways", "scan"]
PATHS: tuple[Path, ...] = get_args(Path)
_PATH_SHARES: dict[Kind, tuple[float, float, float, float]] = {
    "room": (0.3, 0.2, 0.2, 0.3),
    "table": (0.75, 0.1, 0.15, 0.0),
    "terrain": (0.4, 0.3, 0.2, 0.1),
    "clutter": (0.75, 0.1, 0.15, 0.0),
    "facade": (0.3, 0.2, 0.5, 0.0),
}
"""How often each path is taken in each kind of scene."""

_FOV_DEG = (35.0, 90.0)
"""Field of view across the longer side."""
_MARGIN_M = 0.25
"""Cameras keep this far from the shell and the ground."""


def draw_cameras(
    seed: int,
    domain: Domain,
    indices: Tensor,
    stage: Stage,
    surroundings: Surroundings,
    num_views: int,
) -> Cameras:
    """Draw one path of cameras for each scene.

    Args:
        seed: Of the run.
        domain: Of the scenes.
        indices: Which scenes, ``[B]``.
        stage: What there is to look at.
        surroundings: What cameras must stay within.
        num_views: Views on the path, in the order of the motion.

    Returns:
        The cameras.
    """
    draws = Draws(seed, f"{domain}/cameras", indices)
    fov = torch.deg2rad(draws.uniform(1, low=_FOV_DEG[0], high=_FOV_DEG[1]))
    # Some photographers zoom.
    zoom = 1.0 + 0.15 * draws.chance(0.2, 1) * draws.uniform(num_views, low=-1.0)
    focal = zoom / (2.0 * (fov / 2.0).tan())
    along = torch.linspace(0.0, 1.0, num_views, device=indices.device).expand(len(indices), -1)
    along = along + draws.uniform(num_views, low=-0.4, high=0.4) / num_views
    shares = torch.tensor([_PATH_SHARES[kind] for kind in KINDS], device=indices.device)
    bounds = shares.cumsum(-1)[stage.kind]
    path = (draws.uniform(1) >= bounds[:, :-1]).sum(-1)

    makers = (_orbit, _forward, _sideways, _scan)
    moves = [make(draws, stage, focal.mean(1), along) for make in makers]
    rows = torch.arange(len(path), device=path.device)
    position = torch.stack([move[0] for move in moves], dim=1)[rows, path]
    target = torch.stack([move[1].expand_as(move[0]) for move in moves], dim=1)[rows, path]
    distance = (target - position).norm(dim=-1, keepdim=True)
    shake = draws.log_uniform(1, 1, low=0.003, high=0.05)
    position = position + shake * distance * draws.normal(num_views, 3)
    target = target + 2.0 * shake * distance * draws.normal(num_views, 3)
    position = _keep_inside(position, surroundings)
    roll = torch.deg2rad(draws.log_uniform(1, low=0.5, high=12.0) * draws.normal(num_views))
    return Cameras(cam_from_world=look_at(position, target, roll), focal=focal)


def look_at(
    position: Tensor,  # [..., 3]
    target: Tensor,  # [..., 3]
    roll: Tensor,  # [...]
) -> Tensor:
    """Return ``cam_from_world`` ``[..., 3, 4]`` of cameras that look at targets; z is up.

    Args:
        position: Camera centres.
        target: What they look at; not straight above or below.
        roll: Turn about the viewing direction, radians.
    """
    forward = F.normalize(target - position, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 2] = 1.0
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    rotation = torch.stack([cos * right - sin * down, sin * right + cos * down, forward], dim=-2)
    return torch.cat([rotation, -(rotation @ position[..., None])], dim=-1)


def _circle(angle: Tensor) -> Tensor:
    """Return unit vectors ``[..., 3]`` on the horizon."""
    return torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)


def _up(height: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(height), torch.zeros_like(height), height], dim=-1)


def _distance(draws: Draws, stage: Stage, focal: Tensor) -> Tensor:
    """Draw how far away to stand: what is worth seeing fills between a half and all of a photo."""
    return stage.reach * (0.5 + 1.6 * focal) * draws.uniform(low=0.8, high=1.4)


def _start_angle(draws: Draws, stage: Stage) -> Tensor:
    """Draw the direction from focus to camera; facades are looked at from before (-y)."""
    anywhere = draws.uniform(high=2.0 * math.pi)
    before = -math.pi / 2.0 + draws.uniform(low=-0.6, high=0.6)
    return torch.where(stage.kind == KINDS.index("facade"), before, anywhere)


def _orbit(draws: Draws, stage: Stage, focal: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    radius = _distance(draws, stage, focal)[:, None]
    extent = torch.deg2rad(draws.log_uniform(1, low=25.0, high=300.0))
    is_facade = (stage.kind == KINDS.index("facade"))[:, None]
    extent = torch.where(is_facade, extent.clamp(max=1.4), extent)
    angle = _start_angle(draws, stage)[:, None] + extent * (along - 0.5)
    height = radius * (
        draws.uniform(1, low=0.1, high=0.7) + draws.uniform(1, low=-0.25, high=0.25) * along
    )
    position = stage.focus[:, None] + radius[..., None] * _circle(angle) + _up(height)
    drift = 0.15 * stage.reach[:, None, None] * draws.normal(1, 3)
    return position, (stage.focus[:, None] + drift).expand_as(position)


def _forward(draws: Draws, stage: Stage, focal: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    far = _distance(draws, stage, focal)[:, None] * draws.uniform(1, low=1.0, high=1.5)
    near = far * draws.uniform(1, low=0.35, high=0.7)
    away = _circle(_start_angle(draws, stage))[:, None]
    aside = torch.stack([-away[..., 1], away[..., 0], away[..., 2]], dim=-1)
    distance = torch.lerp(far, near, along)
    sway = 0.12 * far * (2.0 * math.pi * (along + draws.uniform(1))).sin()
    position = stage.focus[:, None] + distance[..., None] * away + sway[..., None] * aside
    position = position + _up(0.25 * far * draws.uniform(1, low=-0.2) * torch.ones_like(along))
    # They look past the focus, or they would only ever turn towards it.
    beyond = stage.focus[:, None] - 1.5 * far[..., None] * away
    return position, beyond + 0.3 * far[..., None] * draws.normal(1, 3)


def _sideways(draws: Draws, stage: Stage, focal: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    distance = _distance(draws, stage, focal)[:, None]
    away = _circle(_start_angle(draws, stage))[:, None]
    aside = torch.stack([-away[..., 1], away[..., 0], away[..., 2]], dim=-1)
    slide = distance * draws.log_uniform(1, low=0.3, high=1.8) * (along - 0.5)
    rise = distance * draws.uniform(1, low=-0.15, high=0.3)
    position = stage.focus[:, None] + distance[..., None] * away + slide[..., None] * aside
    follow = draws.uniform(1, low=0.0, high=1.0)
    target = stage.focus[:, None] + (follow * slide)[..., None] * aside
    return position + _up(rise + 0.15 * slide * draws.uniform(1, low=-1.0)), target


def _scan(draws: Draws, stage: Stage, focal: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Stand near the focus and turn, as one who photographs a room from its middle."""
    extent = torch.deg2rad(draws.log_uniform(1, low=60.0, high=360.0))
    angle = draws.uniform(1, high=2.0 * math.pi) + extent * (along - 0.5)
    arm = stage.reach[:, None] * draws.uniform(1, low=0.15, high=0.5)
    lift = draws.uniform(1, low=-0.2, high=0.2) * arm
    position = stage.focus[:, None] + arm[..., None] * _circle(angle) + _up(lift * (along - 0.5))
    tilt = 0.25 * draws.normal(1) + torch.zeros_like(along)
    return position, position + 2.0 * stage.reach[:, None, None] * (_circle(angle) + _up(tilt))


def _keep_inside(position: Tensor, surroundings: Surroundings) -> Tensor:
    """Move cameras into the shell and above the ground, by as little as is needed."""
    center, half = surroundings.shell_center[:, None], surroundings.shell_half[:, None] - _MARGIN_M
    position = torch.minimum(torch.maximum(position, center - half), center + half)
    floor = surroundings.terrain_height(position[..., :2]) + 2.0 * _MARGIN_M
    height = torch.where(
        surroundings.has_terrain[:, None], torch.maximum(position[..., 2], floor), position[..., 2]
    )
    return torch.cat([position[..., :2], height[..., None]], dim=-1)
