# SPDX-License-Identifier: Apache-2.0
"""From the patch tokens of a frame to the numbers of its pose, as Pi3 and MapAnything do it.

Axes: ``F`` frames, ``P`` patches, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

_NUM_BLOCKS = 2


class PointwiseConv(nn.Conv2d):
    """A linear layer on the last axis whose weight is stored as that of a 1x1 convolution."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., dim_in]``."""
        return F.linear(input, self.weight.flatten(1), self.bias)


class _ResidualLayers(nn.Module):
    """Three layers around which the input is added, under their published names."""

    def __init__(self, dim: int, make_layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.res_conv1 = make_layer(dim, dim)
        self.res_conv2 = make_layer(dim, dim)
        self.res_conv3 = make_layer(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.res_conv2(F.relu(self.res_conv1(x))))
        return x + F.relu(self.res_conv3(hidden))


class PoseRegressor(nn.Module):
    """Layers per patch, the mean over patches, and layers per frame.

    Args:
        dim: Channels throughout.
        num_rotation: Numbers of a rotation.
        make_layer: Makes the layers per patch, which only differ in how they are stored.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_rotation: int,
        make_layer: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.res_conv = nn.Sequential(
            *(_ResidualLayers(dim, make_layer) for _ in range(_NUM_BLOCKS))
        )
        self.more_mlps = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, num_rotation)

    def regress(
        self,
        patches: Tensor,  # [F, P, C]
        patch_mask: Tensor | None = None,  # [F, P] bool
    ) -> tuple[Tensor, Tensor]:
        """Return translations ``[F, 3]`` and raw rotations ``[F, num_rotation]``.

        Masked patches do not count, unless a frame has no other.
        """
        values = self.res_conv(patches)
        if patch_mask is None:
            mean = values.mean(dim=1)
        else:
            counts = (patch_mask | ~patch_mask.any(1, keepdim=True)).to(values).unsqueeze(-1)
            mean = (values * counts).sum(1) / counts.sum(1)
        pooled = self.more_mlps(mean)
        return self.fc_t(pooled), self.fc_rot(pooled)
