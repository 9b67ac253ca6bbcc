# SPDX-License-Identifier: Apache-2.0
"""How Pi3X is told poses: attention among patches in which relative poses multiply channels.

The first half of a head's channels is cut into groups of four. With ``E`` the 4 x 4 matrix
``cam_from_world`` of a token's frame, a group of a query is multiplied by ``E^T``, one of a key or
value by ``E^-1``, and one of the result by ``E``; products therefore depend on relative poses
alone. The third quarter turns with the column of the patch and the last with its row, for values
too, and back in the result (Li et al., Cameras as Relative Positional Encoding, arXiv 2507.10496).

Axes: ``F`` frames, ``P`` patches of a ``gh x gw`` grid, ``C`` channels, ``h`` heads, ``D`` head
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.dense import dense_attention
from .block import Block, BlockConfig
from .compute import spans
from .rope import RopeTable, apply_rope, grid_positions, rope_table


@dataclass(frozen=True)
class RelativePoses:
    """Matrices and rotations of one scene, made once and used by every injection."""

    cam_from_world: Tensor  # [F, 4, 4]
    world_from_cam: Tensor  # [F, 4, 4]
    forth: RopeTable
    back: RopeTable

    @classmethod
    def of(
        cls,
        cam_from_world: Tensor,  # [F, 4, 4]
        grid: tuple[int, int],
        head_size: int,
    ) -> RelativePoses:
        """Prepare the encoding of a scene, on the device of its poses.

        Args:
            cam_from_world: Rigid 4 x 4 matrices.
            grid: Rows and columns of patches.
            head_size: Channels of a head, a multiple of 8.
        """
        if head_size % 8:
            raise ValueError(f"`head_size` must be a multiple of 8, got {head_size}.")
        row_column = grid_positions(*grid, 0, device=cam_from_world.device) - 1
        column_row = row_column.flip(-1)
        return cls(
            cam_from_world,
            torch.linalg.inv(cam_from_world),
            # Published with the opposite sense of rotation.
            rope_table(-column_row, head_size // 2),
            rope_table(column_row, head_size // 2),
        )

    def encode_queries(self, x: Tensor) -> Tensor:
        """Encode queries ``[F, h, P, D]``, in float32."""
        return _transform(x, self.cam_from_world.mT, self.forth)

    def encode_keys(self, x: Tensor) -> Tensor:
        """Encode keys or values ``[F, h, P, D]``, in float32."""
        return _transform(x, self.world_from_cam, self.forth)

    def decode(self, x: Tensor) -> Tensor:
        """Decode what was attended, ``[F, h, P, D]``, in float32."""
        return _transform(x, self.cam_from_world, self.back)


def _transform(x: Tensor, matrices: Tensor, rope: RopeTable) -> Tensor:
    posed, turned = x.float().chunk(2, dim=-1)
    # A group is a row here, so the matrix is applied from the right, transposed.
    groups = posed.unflatten(-1, (-1, 4)) @ matrices.mT[:, None, None]
    return torch.cat([groups.flatten(-2), apply_rope(turned, rope)], dim=-1)


class PoseInjection(Block):
    """A block that looks at the patches of posed frames and returns what to add to them.

    Unlike in its base class both branches read the input, and it is not added to them.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.head_size = config.head_size

    def inject(
        self,
        patches: Tensor,  # [F, P, C]
        poses: RelativePoses,
        frames_per_chunk: int,
        key_mask: Tensor | None = None,  # [F, P] bool
    ) -> Tensor:
        """Return the sum of both branches, ``[F, P, C]``.

        Args:
            patches: Patch tokens of all posed frames of one scene.
            poses: Their poses.
            frames_per_chunk: Frames that all but the attention processes together.
            key_mask: False for patches that none attends to.
        """
        num_frames, num_patches = patches.shape[:2]
        chunks = list(spans(num_frames, frames_per_chunk))
        parts = [self._encode(patches, poses, start, stop) for start, stop in chunks]
        q, k, v = (
            torch.cat(part).transpose(0, 1).flatten(1, 2).unsqueeze(0)  # [1, h, F * P, D]
            for part in zip(*parts, strict=True)
        )
        del parts
        mask = None if key_mask is None else key_mask.reshape(1, -1)
        attended = dense_attention(q, k, v, key_mask=mask)[0]
        attended = attended.unflatten(1, (num_frames, num_patches)).transpose(0, 1)
        return torch.cat([self._finish(patches, attended, poses, *chunk) for chunk in chunks])

    def _encode(
        self, patches: Tensor, poses: RelativePoses, start: int, stop: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return encoded queries, keys and values of a chunk, ``[f, h, P, D]``."""
        q, k, v = self.project(patches[start:stop])
        some = _of_frames(poses, start, stop)
        return (
            some.encode_queries(q).to(q.dtype),
            some.encode_keys(k).to(k.dtype),
            some.encode_keys(v).to(v.dtype),
        )

    def _finish(
        self, patches: Tensor, attended: Tensor, poses: RelativePoses, start: int, stop: int
    ) -> Tensor:
        """Return the sum of both branches for a chunk, ``[f, P, C]``."""
        some = _of_frames(poses, start, stop)
        decoded = some.decode(attended[start:stop]).to(attended.dtype)
        from_mlp = self.ls2(self.mlp(self.norm2(patches[start:stop])))
        return self.ls1(self.attn.merge(decoded)) + from_mlp


def _of_frames(poses: RelativePoses, start: int, stop: int) -> RelativePoses:
    return RelativePoses(
        poses.cam_from_world[start:stop],
        poses.world_from_cam[start:stop],
        poses.forth,
        poses.back,
    )
