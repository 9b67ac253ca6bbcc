# SPDX-License-Identifier: Apache-2.0
"""What may be told to a model about single frames beside their pixels: rays, depth, pose.

Conventions are those of `ns_sparseattn.geometry`: OpenCV axes, ``cam_from_world``, network pixels
whose first centre is (0.5, 0.5), z-depth.

Axes: ``H`` x ``W`` network pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_tensor
from ..geometry import pixel_centers

# How far the columns of a rotation may be from orthonormal. Six digits, as text files carry, stay
# far below it.
_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class FramePrior:
    """What is known about one frame; every part is optional."""

    intrinsics: Tensor | None = None  # [3, 3]
    """Pinhole intrinsics without skew, network pixels."""
    rays: Tensor | None = None  # [H, W, 3]
    """Direction of every pixel in the camera, of any length, instead of intrinsics."""
    depth: Tensor | None = None  # [H, W]
    """z-depth, 0 where unknown."""
    cam_from_world: Tensor | None = None  # [3, 4]
    """Pose in a world that all frames with a pose share."""
    is_depth_metric: bool = True
    """Whether the depth is in metres; otherwise its scale means nothing."""
    is_pose_metric: bool = True
    """Whether the translation is in metres; otherwise its scale means nothing."""

    def unit_rays(self, height: int, width: int) -> Tensor | None:
        """Return the unit direction of every pixel, ``[H, W, 3]``, ``None`` if not known."""
        if self.rays is not None:
            return torch.nn.functional.normalize(self.rays.float(), dim=-1)
        if self.intrinsics is None:
            return None
        k = self.intrinsics.double().cpu()
        pixels = pixel_centers(height, width)
        x = (pixels[..., 0] - k[0, 2]) / k[0, 0]
        y = (pixels[..., 1] - k[1, 2]) / k[1, 1]
        rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        return torch.nn.functional.normalize(rays, dim=-1).float()


def check_priors(
    priors: Sequence[FramePrior | None], num_frames: int, height: int, width: int
) -> tuple[FramePrior, ...]:
    """Check priors against the images that they go with.

    Args:
        priors: One entry per frame, ``None`` where nothing is known.
        num_frames: Frames of the scene.
        height: Rows of the images.
        width: Columns of the images.

    Returns:
        One prior per frame, those that know nothing empty.

    Raises:
        TypeError: If something is no floating-point tensor.
        ValueError: If counts, shapes or values do not fit; the message names the frame.
    """
    if len(priors) != num_frames:
        raise ValueError(
            f"`priors` must have one entry for each of {num_frames} frames, got {len(priors)}."
        )
    checked = tuple(FramePrior() if prior is None else prior for prior in priors)
    for index, prior in enumerate(checked):
        name = f"priors[{index}]"
        if prior.intrinsics is not None and prior.rays is not None:
            raise ValueError(f"`{name}` must have intrinsics or rays, got both.")
        if prior.intrinsics is not None:
            _check_intrinsics(f"{name}.intrinsics", prior.intrinsics)
        if prior.rays is not None:
            _check_rays(f"{name}.rays", prior.rays, height, width)
        if prior.depth is not None:
            _check_depth(f"{name}.depth", prior.depth, height, width)
        if prior.cam_from_world is not None:
            _check_pose(f"{name}.cam_from_world", prior.cam_from_world)
    return checked


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")


def _check_intrinsics(name: str, k: Tensor) -> None:
    check_tensor(name, k, (3, 3), is_floating=True)
    _check_finite(name, k)
    expected = torch.zeros_like(k)
    expected[0, 0], expected[1, 1], expected[2, 2] = k[0, 0], k[1, 1], 1.0
    expected[:2, 2] = k[:2, 2]
    if float(k[0, 0]) <= 0 or float(k[1, 1]) <= 0 or not torch.equal(k, expected):
        raise ValueError(
            f"`{name}` must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths, "
            f"got {k.tolist()}."
        )


def _check_rays(name: str, rays: Tensor, height: int, width: int) -> None:
    check_tensor(name, rays, (height, width, 3), is_floating=True)
    _check_finite(name, rays)
    if not bool((rays[..., 2] > 0).all()):
        raise ValueError(f"`{name}` must point forward: every z must be positive.")


def _check_depth(name: str, depth: Tensor, height: int, width: int) -> None:
    check_tensor(name, depth, (height, width), is_floating=True)
    _check_finite(name, depth)
    if bool((depth < 0).any()):
        raise ValueError(
            f"`{name}` must be positive, or 0 where unknown, got {float(depth.min()):g}."
        )
    if not bool((depth > 0).any()):
        raise ValueError(f"`{name}` must be known somewhere, got 0 everywhere; leave it out.")


def _check_pose(name: str, cam_from_world: Tensor) -> None:
    check_tensor(name, cam_from_world, (3, 4), is_floating=True)
    _check_finite(name, cam_from_world)
    rotation = cam_from_world[:, :3].double()
    error = float((rotation @ rotation.mT - torch.eye(3).to(rotation)).abs().max())
    if error > _ROTATION_TOLERANCE or float(torch.linalg.det(rotation)) < 0:
        raise ValueError(
            f"`{name}` must hold a rotation in its first three columns, got {rotation.tolist()}."
        )
