# SPDX-License-Identifier: Apache-2.0
"""Poses that come from files: rigid but for rounding, or refused.

Axes: ``F`` images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..geometry import nearest_rotation

_TOLERANCE = 1e-3
"""Largest distance (Frobenius norm) to a rotation that is taken for rounding: files with four
decimals exist."""


def check_poses(target_from_source: Tensor, names: Sequence[str], path: Path) -> Tensor:
    """Return transforms with their rotations made exact.

    Args:
        target_from_source: ``[F, 3, 4]`` float64, as read.
        names: Names of the images, for the message.
        path: The file, for the message.

    Returns:
        Rigid transforms, ``[F, 3, 4]``.

    Raises:
        ValueError: If a number is not finite, or a matrix is no rotation.
    """
    is_finite = torch.isfinite(target_from_source).flatten(1).all(1)
    matrices = torch.where(is_finite[:, None, None], target_from_source, 0.0)
    rotations = nearest_rotation(matrices[..., :3])
    distance = torch.linalg.matrix_norm(rotations - matrices[..., :3])
    is_bad = ~is_finite | (distance > _TOLERANCE)
    if bool(is_bad.any()):
        name = names[int(is_bad.nonzero()[0])]
        raise ValueError(
            f"{path} must hold rigid poses, got another matrix for {name}"
            f"{'' if int(is_bad.sum()) == 1 else f' and {int(is_bad.sum()) - 1} more'}."
        )
    return torch.cat([rotations, matrices[..., 3:]], dim=-1)
