# SPDX-License-Identifier: Apache-2.0
"""What Pi3X is told about frames, as tensors, and how it is brought to the network's scale.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_tensor
from ..geometry import pixel_centers
from .priors import FramePrior, check_priors

_SCALE_EPS = 1e-8
_RAY_EPS = 1e-6
# Cameras closer together than this, in units of the mean depth where depth is given, count as
# standing still: the published threshold.
_STATIC_DISTANCE = 0.02
_MIN_POSED_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Pi3XConditions:
    """What is known about the frames of scenes; a mask that is not given stands for all frames."""

    depth: Tensor | None = None  # [B, F, H, W]
    """z-depth, 0 where unknown. The scale comes from all frames, told or not."""
    has_depth: Tensor | None = None  # [B, F] bool
    """Frames whose depth is told."""
    ray_slopes: Tensor | None = None  # [B, F, H, W, 2]
    """x / z and y / z of every pixel's ray."""
    has_rays: Tensor | None = None  # [B, F] bool
    """Frames whose rays are told."""
    cam_from_world: Tensor | None = None  # [B, F, 3, 4]
    """Poses in a world that the frames of a scene share."""
    has_pose: Tensor | None = None  # [B, F] bool
    """Frames whose pose is told. A scene with a single one is told none."""

    @classmethod
    def from_priors(
        cls, priors: Sequence[FramePrior | None], num_frames: int, height: int, width: int
    ) -> Pi3XConditions:
        """Collect what is known about single frames of one scene.

        Raises:
            TypeError: If something is no floating-point tensor.
            ValueError: If counts, shapes or values do not fit.
        """
        checked = check_priors(priors, num_frames, height, width)
        depth = [prior.depth for prior in checked]
        slopes = [_ray_slopes(prior, height, width) for prior in checked]
        poses = [prior.cam_from_world for prior in checked]
        return cls(
            depth=_stack(depth, torch.zeros(height, width)),
            has_depth=_is_given(depth),
            ray_slopes=_stack(slopes, torch.zeros(height, width, 2)),
            has_rays=_is_given(slopes),
            cam_from_world=_stack(poses, torch.eye(4)[:3]),
            has_pose=_is_given(poses),
        )

    def check(self, batch: int, num_frames: int, height: int, width: int) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless everything has the shape of the images."""
        frames = (batch, num_frames)
        shapes = {
            "depth": (*frames, height, width),
            "ray_slopes": (*frames, height, width, 2),
            "cam_from_world": (*frames, 3, 4),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None:
                check_tensor(f"conditions.{name}", value, shape, is_floating=True)
        for name in ("has_depth", "has_rays", "has_pose"):
            value = getattr(self, name)
            if value is not None:
                check_tensor(f"conditions.{name}", value, frames, is_floating=False)


@dataclass(frozen=True, kw_only=True)
class ScaledConditions:
    """Conditions as the network takes them, with every mask filled in; poses are 4 x 4."""

    depth: Tensor | None  # [B, F, H, W]
    has_depth: Tensor  # [B, F] bool
    ray_slopes: Tensor | None  # [B, F, H, W, 2]
    has_rays: Tensor  # [B, F] bool
    cam_from_world: Tensor | None  # [B, F, 4, 4]
    has_pose: Tensor  # [B, F] bool

    @classmethod
    def of(
        cls, conditions: Pi3XConditions, batch: int, num_frames: int, device: torch.device
    ) -> ScaledConditions:
        """Scale conditions that `Pi3XConditions.check` accepts, on the device of the network.

        Depth is divided by the mean of a scene's known depth, and so are distances between cameras;
        where no depth is told, both are divided by the mean distance from the first posed frame.
        """

        def mask(told: Tensor | None, given: Tensor | None) -> Tensor:
            if told is None:
                return torch.zeros(batch, num_frames, dtype=torch.bool, device=device)
            if given is None:
                return torch.ones(batch, num_frames, dtype=torch.bool, device=device)
            return given.to(device).bool()

        has_depth = mask(conditions.depth, conditions.has_depth)
        has_pose = mask(conditions.cam_from_world, conditions.has_pose)
        has_pose = has_pose & (has_pose.sum(1, keepdim=True) >= _MIN_POSED_FRAMES)
        depth, scale = None, torch.ones(batch, device=device)
        if conditions.depth is not None:
            depth, scale = normalize_depth(conditions.depth.to(device).float())
        poses = None
        if conditions.cam_from_world is not None and bool(has_pose.any()):
            poses = _relative_poses(conditions.cam_from_world.to(device), has_pose)
            poses[..., :3, 3] /= scale[:, None, None]
            factor = _pose_scale(poses, has_pose, has_depth)
            poses[..., :3, 3] /= factor[:, None, None]
        slopes = conditions.ray_slopes
        return cls(
            depth=depth,
            has_depth=has_depth,
            ray_slopes=None if slopes is None else slopes.to(device).float(),
            has_rays=mask(slopes, conditions.has_rays),
            cam_from_world=poses,
            has_pose=has_pose,
        )


def normalize_depth(
    depth: Tensor,  # [B, F, H, W]
) -> tuple[Tensor, Tensor]:
    """Divide depth by the mean of what is known of each scene.

    Returns:
        ``[B, F, H, W]``, and the means ``[B]``, 1 where nothing is known.
    """
    is_known = depth > 0
    count = is_known.flatten(1).sum(1)
    total = torch.where(is_known, depth, 0).flatten(1).sum(1)
    mean = torch.where(count > 0, total / count.clamp_min(1), 1.0)
    return depth / (mean[:, None, None, None] + _SCALE_EPS), mean


def slopes_of_intrinsics(
    intrinsics: Tensor,  # [..., 3, 3]
    height: int,
    width: int,
) -> Tensor:
    """Return x / z and y / z of the ray through every pixel centre, ``[..., H, W, 2]`` float32."""
    pixels = pixel_centers(height, width, device=intrinsics.device)
    k = intrinsics.double()[..., None, None, :, :]
    focal = torch.stack([k[..., 0, 0], k[..., 1, 1]], dim=-1)
    return ((pixels - k[..., :2, 2]) / focal).float()


def slopes_of_rays(
    rays: Tensor,  # [..., 3]
) -> Tensor:
    """Return x / z and y / z of rays of unit length, ``[..., 2]``, as published."""
    return rays[..., :2] / (rays[..., 2:] + _RAY_EPS)


def _relative_poses(
    cam_from_world: Tensor,  # [B, F, 3, 4]
    has_pose: Tensor,  # [B, F]
) -> Tensor:
    """Return poses in the first posed camera of each scene, ``[B, F, 4, 4]`` float32."""
    last_row = cam_from_world.new_tensor([0, 0, 0, 1]).expand(*cam_from_world.shape[:2], 1, 4)
    matrices = torch.cat([cam_from_world, last_row], dim=2).double()
    first = has_pose.int().argmax(1)
    reference = matrices[torch.arange(len(matrices), device=first.device), first]
    return (matrices @ torch.linalg.inv(reference).unsqueeze(1)).float()


def _pose_scale(
    poses: Tensor,  # [B, F, 4, 4]
    has_pose: Tensor,  # [B, F]
    has_depth: Tensor,  # [B, F]
) -> Tensor:
    """Return by how much distances are divided where no depth sets the scale, ``[B]``."""
    distances = torch.where(has_pose, poses[..., :3, 3].norm(dim=-1), 0)
    # The first posed frame, at distance 0, does not count.
    mean = distances.sum(1) / (has_pose.sum(1) - 1).clamp_min(1)
    is_moving = distances.amax(1) >= _STATIC_DISTANCE
    return torch.where(is_moving & ~has_depth.any(1), mean + _SCALE_EPS, 1.0)


def _ray_slopes(prior: FramePrior, height: int, width: int) -> Tensor | None:
    if prior.intrinsics is not None:
        return slopes_of_intrinsics(prior.intrinsics, height, width)
    if prior.rays is None:
        return None
    return slopes_of_rays(torch.nn.functional.normalize(prior.rays.float(), dim=-1))


def _stack(parts: Sequence[Tensor | None], missing: Tensor) -> Tensor | None:
    """Return ``[1, F, ...]`` with a stand-in for frames that lack it; ``None`` if all do."""
    if all(part is None for part in parts):
        return None
    return torch.stack([missing if part is None else part.float().cpu() for part in parts])[None]


def _is_given(parts: Sequence[Tensor | None]) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    return torch.tensor([[part is not None for part in parts]])
