# SPDX-License-Identifier: Apache-2.0
"""VGGT's nine-number camera: translation, quaternion (x, y, z, w), fields of view (y, x).

The pose is ``cam_from_world`` and the principal point is the middle of the image, which in the
package's pixel convention is ``(W / 2, H / 2)``.

Axes: ``...`` any batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import quaternion_to_rotation


def activate_pose_encoding(raw: Tensor) -> Tensor:
    """Clip the fields of view of raw encodings ``[..., 9]`` at zero; the rest is linear."""
    return torch.cat([raw[..., :7], F.relu(raw[..., 7:])], dim=-1)


def decode_pose(
    encoding: Tensor,  # [..., 9]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Turn pose encodings into cameras.

    Args:
        encoding: Activated encodings; the quaternion may have any length but zero.
        height: Rows of the network image.
        width: Columns of the network image.

    Returns:
        ``cam_from_world`` ``[..., 3, 4]`` and intrinsics ``[..., 3, 3]`` in network pixels. A field
        of view of zero gives an infinite focal length.
    """
    translation, quaternion_xyzw, fov = encoding.split([3, 4, 2], dim=-1)
    rotation = quaternion_to_rotation(quaternion_xyzw.roll(1, dims=-1))
    cam_from_world = torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)

    focal_y, focal_x = (fov.new_tensor([height / 2, width / 2]) / torch.tan(fov / 2)).unbind(-1)
    intrinsics = fov.new_zeros(*fov.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = focal_x
    intrinsics[..., 1, 1] = focal_y
    intrinsics[..., 0, 2] = width / 2
    intrinsics[..., 1, 2] = height / 2
    intrinsics[..., 2, 2] = 1.0
    return cam_from_world, intrinsics


def encode_pose(
    cam_from_world: Tensor,  # [..., 3, 4]
    intrinsics: Tensor,  # [..., 3, 3]
    height: int,
    width: int,
) -> Tensor:
    """Turn cameras into encodings ``[..., 9]``; the principal point is taken to be central."""
    quaternion_xyzw = rotation_to_quaternion(cam_from_world[..., :3]).roll(-1, dims=-1)
    fov_y = 2 * torch.atan((height / 2) / intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan((width / 2) / intrinsics[..., 0, 0])
    fov = torch.stack([fov_y, fov_x], dim=-1)
    return torch.cat([cam_from_world[..., 3], quaternion_xyzw, fov], dim=-1)


def rotation_to_quaternion(
    rotation: Tensor,  # [..., 3, 3]
) -> Tensor:
    """Turn rotations into unit quaternions ``[..., 4]`` (w, x, y, z) with w >= 0.

    Each of the four components can be read off with a division by itself; dividing by the largest
    one keeps the result accurate for every rotation.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Row i holds 4 q_i (q_w, q_x, q_y, q_z), so its diagonal entry is 4 q_i^2.
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 1, 0] + m[..., 0, 1],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 2, 1] + m[..., 1, 2],
    )
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        dim=-2,
    )
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.take_along_dim(largest[..., None, None], dim=-2).squeeze(-2)
    quaternion = F.normalize(row, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
