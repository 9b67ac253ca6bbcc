# SPDX-License-Identifier: Apache-2.0
"""Which way is up, told by how people hold cameras; and the world turned so that it is -y.

Photos (upright after their EXIF rotation) lean forward and backward at will, but hardly sideways:
the x axes of their cameras are level. Up is therefore the direction that is most nearly
perpendicular to all x axes, in the sense of least absolute deviations, which a few tilted photos
do not disturb. If all cameras look the same way, that leaves a plane of directions; up is then the
mean of the cameras' own up, made perpendicular to their x axes.

-y is COLMAP's own guess of up, and what nerfstudio's files turn to +z.

Axes: ``F`` images.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import SceneOptions
from .types import Scene

_logger = logging.getLogger(__name__)

_NUM_ITERATIONS = 20
"""Reweightings; the direction settles to rounding within ten on all scenes tried."""
_LEAST_SINE = math.sin(math.radians(0.01))
"""Deviations below this weigh alike: a hundredth of a degree."""
_OPPOSITE = 1e-9
"""Length of the sum of two unit vectors below which any axis between them is the shortest."""
_NO_TURN_RAD = 1e-9
"""A world that is level to rounding is left alone."""


@dataclass(frozen=True, kw_only=True)
class Levelling:
    """How the world of a scene was turned."""

    turned_deg: float
    """Angle of the rotation about the origin; 0 if the world was left as it was."""
    median_roll_deg: float | None
    """How far the median photo is tilted sideways against the up direction found; ``None`` if none
    was looked for or found."""
    reason: str
    """Why the world is as it is, a sentence."""

    @classmethod
    def of_known_poses(cls) -> Levelling:
        """Return what is said of a world that known poses define."""
        reason = "The world is that of the poses given."
        return cls(turned_deg=0.0, median_roll_deg=None, reason=reason)


def level_world(scene: Scene, options: SceneOptions) -> tuple[Scene, Levelling]:
    """Turn the world about its origin so that up is -y.

    Scale and origin stay, so that a metric scene remains one.

    Args:
        scene: Any scene; it is not changed.
        options: `SceneOptions.world` and the bounds beside it.

    Returns:
        The scene and what was done. A scene whose up cannot be told stays as it is, and its notes
        say so.

    Example:
        >>> from ns_sparseattn.testing.synthetic import look_at
        >>> tilted = look_at((0.0, -1.0, -4.0), (0.0, 0.0, 0.0))[:, :3]
        >>> estimate_up(tilted[None], SceneOptions()).numpy().round(3).tolist()
        [0.0, -0.97, 0.243]
    """
    if options.world == "model":
        reason = "The world is the model's own, as asked."
        return scene, Levelling(turned_deg=0.0, median_roll_deg=None, reason=reason)
    rotations = torch.stack([image.cam_from_world for image in scene.images]).double()[..., :3]
    up = estimate_up(rotations, options)
    if up is None:
        reason = "Up cannot be told from the cameras, so the world is the model's own."
        _logger.info(reason)
        levelling = Levelling(turned_deg=0.0, median_roll_deg=None, reason=reason)
        return dataclasses.replace(scene, notes=(*scene.notes, reason)), levelling
    level_from_world = _shortest_turn(up, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    angle = math.atan2(math.hypot(float(up[0]), float(up[2])), -float(up[1]))
    levelling = Levelling(
        turned_deg=math.degrees(angle) if angle > _NO_TURN_RAD else 0.0,
        median_roll_deg=math.degrees(math.asin(min(1.0, _median_sine(rotations, up)))),
        reason="Up is -y, as the cameras' level x axes tell.",
    )
    if angle <= _NO_TURN_RAD:
        return scene, levelling
    _logger.info("The world was turned by %.1f degrees so that up is -y.", levelling.turned_deg)
    return _turned(scene, level_from_world), levelling


def estimate_up(
    rotations: Tensor,  # [F, 3, 3]
    options: SceneOptions,
) -> Tensor | None:
    """Tell which way is up.

    Args:
        rotations: Those of ``cam_from_world``, axes x right, y down.
        options: Hold the bounds.

    Returns:
        A unit vector ``[3]`` in the world, or ``None`` if the cameras are tilted in every direction
        or point up in opposite ones.
    """
    rotations = rotations.double()
    rights, ups, forwards = rotations[:, 0], -rotations[:, 1], rotations[:, 2]
    mean_up = ups.mean(0)
    spread, axes = torch.linalg.eigh(rights.T @ rights / len(rights))
    heading_sine = math.sin(math.radians(options.min_heading_spread_deg))
    if float(spread[1]) < heading_sine**2:
        # One heading: the principal x axis is level, and nothing else is known but the mean.
        level = axes[:, 2]
        up = mean_up - level * float(level @ mean_up)
    else:
        starts = [*axes.T, mean_up]
        found = [_least_deviation(rights, start) for start in starts]
        up = min(found, key=lambda axis: float((rights @ axis).abs().mean()))
        up = up * _sign(up, mean_up, forwards.mean(0), options)
    length = float(up.norm())
    if length < _agreement_bound(options):
        return None
    up = up / length
    bound = math.sin(math.radians(options.max_roll_deg))
    return up if _median_sine(rotations, up) <= bound else None


def _least_deviation(rights: Tensor, start: Tensor) -> Tensor:
    """Return the unit vector ``[3]`` near a start whose mean ``|x . up|`` is least."""
    axis = start
    for _ in range(_NUM_ITERATIONS):
        weight = 1.0 / (rights @ axis).abs().clamp(min=_LEAST_SINE)
        _, axes = torch.linalg.eigh((rights * weight[:, None]).T @ rights / float(weight.sum()))
        axis = axes[:, 0]
    return axis


def _sign(axis: Tensor, mean_up: Tensor, mean_forward: Tensor, options: SceneOptions) -> float:
    """Return 1 or -1 so that the axis points up, or 0 if nothing tells.

    Cameras that look straight down have no level up of their own; they look down, not up.
    """
    bound = _agreement_bound(options)
    for hint in (float(axis @ mean_up), -float(axis @ mean_forward)):
        if abs(hint) >= bound:
            return math.copysign(1.0, hint)
    return 0.0


def _agreement_bound(options: SceneOptions) -> float:
    """Return the length of a mean of unit vectors below which they are taken to cancel out."""
    return math.sin(math.radians(options.min_heading_spread_deg))


def _median_sine(rotations: Tensor, up: Tensor) -> float:
    return float((rotations[:, 0] @ up).abs().quantile(0.5))


def _shortest_turn(source: Tensor, target: Tensor) -> Tensor:
    """Return the rotation ``[3, 3]`` that takes a unit vector to another the shortest way."""
    identity = torch.eye(3, dtype=torch.float64)
    middle = source + target
    if float(middle.norm()) < _OPPOSITE:
        axis = _perpendicular(target)
        return 2.0 * torch.outer(axis, axis) - identity
    # Half a turn about the one, then half a turn about the middle: twice the angle between them.
    middle = middle / middle.norm()
    about_source = 2.0 * torch.outer(source, source) - identity
    return (2.0 * torch.outer(middle, middle) - identity) @ about_source


def _perpendicular(vector: Tensor) -> Tensor:
    """Return a unit vector perpendicular to a unit vector."""
    basis = torch.zeros(3, dtype=torch.float64)
    basis[int(vector.abs().argmin())] = 1.0
    other = torch.linalg.cross(vector, basis)
    return other / other.norm()


def _turned(scene: Scene, rotation: Tensor) -> Scene:
    """Return a scene with its world turned by ``new_from_old`` ``[3, 3]``."""
    images = tuple(
        dataclasses.replace(
            image,
            cam_from_world=torch.cat(
                [image.cam_from_world[:, :3] @ rotation.T, image.cam_from_world[:, 3:]], dim=1
            ),
        )
        for image in scene.images
    )
    points = dataclasses.replace(scene.points, xyz=scene.points.xyz @ rotation.T)
    return dataclasses.replace(scene, images=images, points=points)
