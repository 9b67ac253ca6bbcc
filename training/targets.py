# SPDX-License-Identifier: Apache-2.0
"""What the network should say about views, and cheap variations of views.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ns_sparseattn.geometry import invert_rigid, pixel_centers, transform_points, unproject
from ns_sparseattn.models.pose_encoding import encode_pose
from training.draws import Draws
from training.world import Views

_LEAST_SEEN = 0.05
"""Share of pixels with depth below which a scene has no scale."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The truth, in the frame of the first camera, with the mean distance of all points one."""

    cam_from_world: Tensor  # [B, F, 3, 4]
    """The world is the first camera."""
    intrinsics: Tensor  # [B, F, 3, 3]
    encodings: Tensor  # [B, F, 9]
    """The same cameras in the network's nine numbers."""
    depth: Tensor  # [B, F, H, W]
    points_in_world: Tensor  # [B, F, H, W, 3]
    valid: Tensor  # [B, F, H, W] bool
    scale: Tensor  # [B]
    """Metres of one unit."""
    has_scale: Tensor  # [B] bool
    """Whether enough is seen of a scene to set its scale; some photos show little but sky."""


def make_targets(views: Views) -> Targets:
    """Express views in the first camera's frame, at the scale that the losses take for one.

    The scale is the mean distance of all points with depth from the first camera (arXiv 2503.11651,
    section 3.4).
    """
    height, width = views.depth.shape[-2:]
    cam_from_world = _compose(views.cam_from_world, invert_rigid(views.cam_from_world[:, :1]))
    # The first pose is the identity, but for rounding that need not be learned.
    cam_from_world[:, 0] = torch.eye(3, 4, device=cam_from_world.device)
    pixels = pixel_centers(height, width, dtype=torch.float32, device=views.depth.device)
    in_cam = unproject(pixels, views.depth, views.intrinsics[:, :, None, None])
    points = transform_points(invert_rigid(cam_from_world)[:, :, None, None], in_cam)
    distance = points.norm(dim=-1) * views.valid
    count = views.valid.sum((1, 2, 3)).clamp(min=1)
    scale = (distance.sum((1, 2, 3)) / count).clamp(min=1e-6)
    has_scale = views.valid.float().mean((1, 2, 3)) >= _LEAST_SEEN
    cam_from_world[..., 3] /= scale[:, None, None]
    return Targets(
        cam_from_world=cam_from_world,
        intrinsics=views.intrinsics,
        encodings=encode_pose(cam_from_world, views.intrinsics, height, width),
        depth=views.depth / scale[:, None, None, None],
        points_in_world=points / scale[:, None, None, None, None],
        valid=views.valid,
        scale=scale,
        has_scale=has_scale,
    )


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Return ``a_from_b`` after ``b_from_c``, both ``[..., 3, 4]``."""
    rotation = first[..., :3] @ second[..., :3]
    translation = first[..., :3] @ second[..., 3:] + first[..., 3:]
    return torch.cat([rotation, translation], dim=-1)


def vary(views: Views, draws: Draws) -> Views:
    """Mirror scenes, exchange and dim colours, so that a rendered scene can be used again.

    Args:
        views: ``[B, F]`` views.
        draws: Random numbers of the use, for each scene.

    Returns:
        Views that are as consistent as those given.
    """
    is_mirrored = draws.chance(0.5)
    flip = is_mirrored[:, None, None, None]
    images = torch.where(flip[..., None], views.images.flip(-1), views.images)
    depth = torch.where(flip, views.depth.flip(-1), views.depth)
    sign = torch.where(is_mirrored, -1.0, 1.0)
    # Mirroring world and cameras by x turns R into S R S and t into S t.
    mirror = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], dim=-1)
    across = torch.cat([mirror, torch.ones_like(sign)[:, None]], dim=-1)
    poses = views.cam_from_world * mirror[:, None, :, None] * across[:, None, None, :]
    order = draws.uniform(3).argsort(-1)[:, None, :, None, None].expand_as(images)
    gain = draws.uniform(1, 3, 1, 1, low=0.75, high=1.1)
    colours = images.gather(2, order).float().mul_(gain).clamp_(max=255.0)
    return Views(
        images=colours.to(torch.uint8),
        depth=depth,
        cam_from_world=poses,
        intrinsics=views.intrinsics,
    )
