# SPDX-License-Identifier: Apache-2.0
"""Models of closed form: cameras on a ring, and the same after a known change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from torch import Tensor

from ns_sparseattn.evaluate.types import Lens, PosedModel, Structure
from ns_sparseattn.geometry import camera_centers, invert_rigid

FOCAL, SIZE = 500.0, (640, 480)


def turn(axis: Sequence[float], angle_deg: float) -> Tensor:
    """Rotation ``[3, 3]`` about an axis."""
    x, y, z = torch.tensor(axis, dtype=torch.float64) / math.hypot(*axis)
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(generator * math.radians(angle_deg))


def rigid(rotation: Tensor, center: Sequence[float] | Tensor) -> Tensor:
    """``cam_from_world`` ``[3, 4]`` of a camera at a place."""
    place = torch.as_tensor(center, dtype=torch.float64)
    return torch.cat([rotation, -(rotation @ place)[:, None]], dim=1)


def ring(count: int = 6, *, seed: int = 0) -> Tensor:
    """Poses ``[F, 3, 4]`` around the origin, none of them special."""
    random = np.random.default_rng(seed)
    poses = []
    for index in range(count):
        angle = 360.0 * index / count
        facing = turn(random.normal(size=3).tolist(), 8.0) @ turn((0, 1, 0), angle)
        poses.append(rigid(facing, facing.T @ torch.tensor([0.1, -0.2, -4.0]).double()))
    return torch.stack(poses)


def lens(focal: float = FOCAL, size: tuple[int, int] = SIZE, center: float = 0.0) -> Lens:
    width, height = size
    middle = (width / 2 + center, height / 2)
    return Lens(
        model="PINHOLE",
        width=width,
        height=height,
        params=(focal, focal, *middle),
        focal=(focal, focal),
        center=middle,
    )


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"{index:03d}.jpg" for index in range(count))


def make_model(
    poses: Tensor,
    *,
    names: Sequence[str] | None = None,
    camera: Lens | None = None,
    with_points: bool = False,
    source: str = "model",
) -> PosedModel:
    count = len(poses)
    structure = None
    if with_points:
        random = np.random.default_rng(1)
        xyz = torch.from_numpy(random.uniform(-0.5, 0.5, (20, 3)))
        structure = Structure(
            xyz=xyz,
            obs_point=torch.arange(20).repeat(count),
            obs_image=torch.arange(count).repeat_interleave(20),
        )
    return PosedModel(
        source=source,
        kind="test",
        names=tuple(names or names_of(count)),
        cam_from_world=poses,
        lenses=((camera or lens()),) * count,
        structure=structure,
    )


def moved(poses: Tensor, *, scale: float, rotation: Tensor, translation: Tensor) -> Tensor:
    """The same cameras in another world: ``x' = scale R x + t``."""
    centers = scale * camera_centers(poses) @ rotation.T + translation
    turned = poses[..., :3] @ rotation.T
    return torch.cat([turned, -(turned @ centers[..., None])], dim=-1)


def write_text_model(
    folder: Path, poses: Tensor, names: Sequence[str] | None = None, *, camera: str | None = None
) -> Path:
    """Write a COLMAP text model of the old kind, without rigs and frames, as ETH3D's are."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    line = camera or f"1 PINHOLE {width} {height} {FOCAL} {FOCAL} {width / 2} {height / 2}"
    (folder / "cameras.txt").write_text(line + "\n")
    (folder / "points3D.txt").write_text("")
    lines = []
    for index, (pose, name) in enumerate(zip(poses, names or names_of(len(poses)), strict=True)):
        x, y, z, w = pycolmap.Rotation3d(pose[:, :3].numpy()).quat
        t = " ".join(str(float(value)) for value in pose[:, 3])
        lines.append(f"{index + 1} {w} {x} {y} {z} {t} 1 {name}\n\n")
    (folder / "images.txt").write_text("".join(lines))
    return folder


def tum_lines(poses: Tensor, times: Sequence[float]) -> str:
    lines = []
    for pose, time in zip(invert_rigid(poses), times, strict=True):
        quat = pycolmap.Rotation3d(pose[:, :3].numpy()).quat
        numbers = [*pose[:, 3].tolist(), *quat]
        lines.append(" ".join([f"{time:.4f}", *(f"{float(n):.12f}" for n in numbers)]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def poses() -> Tensor:
    return ring()
