# SPDX-License-Identifier: Apache-2.0
"""What MapAnything is told about frames, brought into the form that its encoders were trained on.

Quaternions here are (x, y, z, w), as the network reads and writes them.

Axes: ``F`` frames, ``H`` x ``W`` network pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..geometry import invert_rigid, quaternion_to_rotation
from .pose_encoding import rotation_to_quaternion
from .priors import FramePrior

# Keeps divisions and logarithms finite; the published value.
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class GeometryInputs:
    """Inputs of the six encoders for every frame; where a frame lacks one, a neutral value."""

    rays: Tensor  # [F, 3, H, W]
    """Unit directions in the camera, else 0."""
    has_rays: Tensor  # [F] bool
    log_depth: Tensor  # [F, 1, H, W]
    """``log(1 + d)`` of the depth along the ray in units of its mean, 0 where unknown."""
    has_depth: Tensor  # [F] bool
    log_depth_scale: Tensor  # [F, 1]
    """Logarithm of that mean."""
    has_depth_scale: Tensor  # [F] bool
    quaternions: Tensor  # [F, 4]
    """Rotation of the camera relative to the first frame's, ``world_from_cam``."""
    translations: Tensor  # [F, 3]
    """Position relative to the first frame, in units of the mean distance."""
    has_pose: Tensor  # [F] bool
    log_translation_scale: Tensor  # [F, 1]
    """Logarithm of that mean, the same for all frames."""
    has_translation_scale: Tensor  # [F] bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any frame."""
        return not bool((self.has_rays | self.has_depth | self.has_pose).any())

    def to(self, device: torch.device) -> GeometryInputs:
        """Return the same inputs on a device."""
        return GeometryInputs(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def prepare_geometry(priors: Sequence[FramePrior], height: int, width: int) -> GeometryInputs:
    """Bring checked priors of a scene into the form of the encoders.

    Args:
        priors: One per frame, as `check_priors` returns them.
        height: Rows of the images.
        width: Columns of the images.

    Returns:
        The inputs, float32 on the CPU.

    Raises:
        ValueError: If a frame has a depth without rays, or some frame a pose but not the first.
    """
    num_frames = len(priors)
    rays = torch.zeros(num_frames, height, width, 3)
    depth = torch.zeros(num_frames, height, width)
    for index, prior in enumerate(priors):
        known = prior.unit_rays(height, width)
        if known is not None:
            rays[index] = known
        if prior.depth is not None:
            if known is None:
                raise ValueError(
                    f"`priors[{index}]` has a depth, which MapAnything takes only together with "
                    "intrinsics or rays; add them or leave out the depth."
                )
            depth[index] = prior.depth.float().cpu() / known[..., 2]
    depth, depth_scale = normalize_depth(depth)
    quaternions, translations = _relative_to_first(priors)
    translations, translation_scale = normalize_translations(translations)

    def flags(values: list[bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool)

    has_depth = flags([prior.depth is not None for prior in priors])
    has_pose = flags([prior.cam_from_world is not None for prior in priors])
    return GeometryInputs(
        rays=rays.movedim(-1, 1),
        has_rays=flags([p.rays is not None or p.intrinsics is not None for p in priors]),
        log_depth=depth.log1p().unsqueeze(1),
        has_depth=has_depth,
        # Frames without a depth have a scale of 0, whose token is not used.
        log_depth_scale=(depth_scale * has_depth + _EPS).log().unsqueeze(1),
        has_depth_scale=has_depth & flags([prior.is_depth_metric for prior in priors]),
        quaternions=quaternions,
        translations=translations,
        has_pose=has_pose,
        log_translation_scale=(translation_scale + _EPS).log().expand(num_frames, 1),
        has_translation_scale=has_pose & flags([prior.is_pose_metric for prior in priors]),
    )


def normalize_depth(
    depth: Tensor,  # [F, H, W]
) -> tuple[Tensor, Tensor]:
    """Divide each frame's depth by the mean of its positive values; also return that ``[F]``."""
    total = depth.clamp(min=0).sum(dim=(1, 2))
    factor = (total / ((depth > 0).sum(dim=(1, 2)) + _EPS)).clamp(min=_EPS)
    return depth / factor[:, None, None], factor


def normalize_translations(
    translations: Tensor,  # [..., F, 3]
) -> tuple[Tensor, Tensor]:
    """Divide a scene's translations by the mean length of those not 0; also return it."""
    lengths = translations.norm(dim=-1)
    factor = (lengths.sum(-1) / ((lengths > 0).sum(-1) + _EPS)).clamp(min=_EPS)
    return translations / factor[..., None, None], factor


def relative_pose(
    base_quaternion: Tensor,  # [..., 4]
    base_translation: Tensor,  # [..., 3]
    quaternion: Tensor,  # [..., 4]
    translation: Tensor,  # [..., 3]
) -> tuple[Tensor, Tensor]:
    """Express poses ``world_from_cam`` in the camera frame of a base pose.

    The sign of the quaternion is that of the plain product, because the network, to which the two
    signs are different inputs, was trained on it.
    """
    inverse = base_quaternion * base_quaternion.new_tensor([-1, -1, -1, 1])
    rotation = rotation_from_xyzw(base_quaternion)
    offset = (rotation.mT @ (translation - base_translation).unsqueeze(-1)).squeeze(-1)
    return _multiply(inverse, quaternion), offset


def rotation_from_xyzw(quaternion: Tensor) -> Tensor:
    """Turn quaternions ``[..., 4]`` of any length into rotations ``[..., 3, 3]``."""
    return quaternion_to_rotation(quaternion.roll(1, dims=-1))


def rotation_to_xyzw(rotation: Tensor) -> Tensor:
    """Turn rotations ``[..., 3, 3]`` into unit quaternions ``[..., 4]`` with w >= 0."""
    return rotation_to_quaternion(rotation).roll(-1, dims=-1)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return the Hamilton product of quaternions ``[..., 4]``."""
    a_xyz, a_w, b_xyz, b_w = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    xyz = a_w * b_xyz + b_w * a_xyz + torch.linalg.cross(a_xyz, b_xyz)
    return torch.cat([xyz, a_w * b_w - (a_xyz * b_xyz).sum(-1, keepdim=True)], dim=-1)


def _relative_to_first(priors: Sequence[FramePrior]) -> tuple[Tensor, Tensor]:
    """Return quaternions ``[F, 4]`` and translations ``[F, 3]``, the identity where unknown."""
    num_frames = len(priors)
    quaternions = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(num_frames, 1)
    translations = torch.zeros(num_frames, 3)
    posed = [index for index, prior in enumerate(priors) if prior.cam_from_world is not None]
    if not posed:
        return quaternions, translations
    first = priors[0].cam_from_world
    if first is None:
        raise ValueError(
            f"`priors[{posed[0]}]` has a pose but `priors[0]` has none; MapAnything takes poses "
            "relative to the first frame, so give that one a pose or put a posed frame first."
        )
    base = invert_rigid(first.float().cpu())
    base_quaternion = rotation_to_xyzw(base[:, :3])
    for index in posed:
        cam_from_world = priors[index].cam_from_world
        assert cam_from_world is not None
        world_from_cam = invert_rigid(cam_from_world.float().cpu())
        quaternions[index], translations[index] = relative_pose(
            base_quaternion,
            base[:, 3],
            rotation_to_xyzw(world_from_cam[:, :3]),
            world_from_cam[:, 3],
        )
    return quaternions, translations
