# SPDX-License-Identifier: Apache-2.0
"""Cameras, rigid transforms and pixels: conventions and formulas of the whole package.

* Camera axes are OpenCV's: x right, y down, z forward.
* A rigid transform is called ``target_from_source`` and is stored as ``[..., 3, 4]``:
  ``cam_from_world`` maps world points into the camera, ``x_cam = R x_world + t``.
* Pixel coordinates are COLMAP's: the centre of the top-left pixel is (0.5, 0.5), so an image of
  width W spans [0, W] and its middle is W / 2. Array element ``[row, column]`` therefore lies at
  ``(column + 0.5, row + 0.5)``.
* Depth is z-depth: the third camera coordinate, not the distance along the ray.
* Quaternions are (w, x, y, z), scalar first, as in COLMAP's text files.

Axes: ``...`` any batch, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def invert_rigid(target_from_source: Tensor) -> Tensor:
    """Invert rigid transforms.

    Args:
        target_from_source: ``[..., 3, 4]``.

    Returns:
        ``source_from_target``, ``[..., 3, 4]``.
    """
    rotation_inverse = target_from_source[..., :3].transpose(-1, -2)
    translation = -(rotation_inverse @ target_from_source[..., 3:])
    return torch.cat([rotation_inverse, translation], dim=-1)


def transform_points(
    target_from_source: Tensor,  # [..., 3, 4]
    points: Tensor,  # [..., 3]
) -> Tensor:
    """Map points by a rigid transform; batch axes broadcast. Returns ``[..., 3]``."""
    rotated = (target_from_source[..., :3] @ points.unsqueeze(-1)).squeeze(-1)
    return rotated + target_from_source[..., 3]


def camera_centers(cam_from_world: Tensor) -> Tensor:
    """Return camera centres in the world, ``[..., 3]``, of poses ``[..., 3, 4]``."""
    return invert_rigid(cam_from_world)[..., 3]


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Project matrices ``[..., 3, 3]`` onto the closest rotations in the Frobenius norm."""
    u, _, vt = torch.linalg.svd(matrix)
    # A reflection becomes a rotation by flipping the direction of the smallest singular value.
    sign = torch.linalg.det(u @ vt)
    flip = torch.ones(*matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    flip[..., 2] = torch.where(sign < 0, -1.0, 1.0)
    return (u * flip.unsqueeze(-2)) @ vt


def project(
    points_in_cam: Tensor,  # [..., 3]
    intrinsics: Tensor,  # [..., 3, 3]
) -> tuple[Tensor, Tensor]:
    """Project camera-frame points with a pinhole camera.

    Args:
        points_in_cam: ``[..., 3]``.
        intrinsics: ``[..., 3, 3]``, without skew; batch axes broadcast.

    Returns:
        Pixels ``[..., 2]`` and z-depth ``[...]``. Points with depth <= 0 get meaningless pixels:
        test the depth.
    """
    depth = points_in_cam[..., 2]
    safe_depth = torch.where(depth > 0, depth, torch.ones_like(depth))
    x = points_in_cam[..., 0] / safe_depth * intrinsics[..., 0, 0] + intrinsics[..., 0, 2]
    y = points_in_cam[..., 1] / safe_depth * intrinsics[..., 1, 1] + intrinsics[..., 1, 2]
    return torch.stack([x, y], dim=-1), depth


def unproject(
    pixels: Tensor,  # [..., 2]
    depth: Tensor,  # [...]
    intrinsics: Tensor,  # [..., 3, 3]
) -> Tensor:
    """Lift pixels at a z-depth into the camera frame, ``[..., 3]``: the inverse of `project`."""
    x = (pixels[..., 0] - intrinsics[..., 0, 2]) / intrinsics[..., 0, 0] * depth
    y = (pixels[..., 1] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1] * depth
    return torch.stack([x, y, depth], dim=-1)


def pixel_centers(
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Return the centres of all pixels of an image as ``[H, W, 2]``, x first."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype, device=device) + 0.5,
        torch.arange(width, dtype=dtype, device=device) + 0.5,
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1)


def quaternion_to_rotation(quaternion_wxyz: Tensor) -> Tensor:
    """Turn quaternions ``[..., 4]`` (w, x, y, z) of any length into rotations ``[..., 3, 3]``.

    Dividing by the squared norm makes the result exact for any non-zero length.
    """
    w, x, y, z = quaternion_wxyz.unbind(-1)
    scale = 2.0 / (quaternion_wxyz * quaternion_wxyz).sum(-1)
    xx, yy, zz = scale * x * x, scale * y * y, scale * z * z
    xy, xz, yz = scale * x * y, scale * x * z, scale * y * z
    wx, wy, wz = scale * w * x, scale * w * y, scale * w * z
    rows = [
        torch.stack([1 - (yy + zz), xy - wz, xz + wy], dim=-1),
        torch.stack([xy + wz, 1 - (xx + zz), yz - wx], dim=-1),
        torch.stack([xz - wy, yz + wx, 1 - (xx + yy)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
