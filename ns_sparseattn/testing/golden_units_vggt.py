# SPDX-License-Identifier: Apache-2.0
"""Golden file of VGGT's small parts: poses, embeddings, activations, preprocessing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..frames.resize import common_size, plan_resize, resize_image
from ..geometry import (
    invert_rigid,
    pixel_centers,
    quaternion_to_rotation,
    transform_points,
    unproject,
)
from ..models.dpt import FusionBlock, sinusoids, uv_coordinates
from ..models.pose_encoding import (
    activate_pose_encoding,
    decode_pose,
    encode_pose,
    rotation_to_quaternion,
)
from ..models.rope import apply_rope, rope_table
from ..models.vggt import activate_depth, activate_points
from ..models.vit import resize_position_grid
from .golden_file import Check, GoldenFile, GoldenKind
from .recipe import fill_weights

_TOLERANCE = 2e-5
# A tangent of the field of view, and its inverse, amplify rounding.
_TOLERANCE_INTRINSICS = 2e-4
_INPUTS = frozenset(
    {
        "depth",
        "dino_pos_embed",
        "fusion_in0",
        "fusion_in1",
        "head_raw",
        "pose_enc",
        "pose_hw",
        "pose_raw",
        "rope_in",
        "rope_pos_yx",
        "rotations",
    }
)


def _poses(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    height, width = (int(side) for side in golden.arrays["pose_hw"])
    cam_from_world, intrinsics = decode_pose(golden.tensor("pose_enc"), height, width)
    yield "extrinsic", cam_from_world
    yield "intrinsic", intrinsics
    stored = golden.tensor("extrinsic")
    yield "pose_enc_back", encode_pose(stored, golden.tensor("intrinsic"), height, width)
    inverse = invert_rigid(stored.flatten(0, 1))
    last_row = inverse.new_tensor([0, 0, 0, 1]).expand(len(inverse), 1, 4)
    yield "extrinsic_inverse", torch.cat([inverse, last_row], dim=1)
    yield "pose_act", activate_pose_encoding(golden.tensor("pose_raw"))

    rotations = golden.tensor("rotations")
    quaternions_xyzw = rotation_to_quaternion(rotations).roll(-1, dims=-1)
    yield "rotations_quat_xyzw", quaternions_xyzw
    stored_xyzw = golden.tensor("rotations_quat_xyzw")
    yield "rotations_back", quaternion_to_rotation(stored_xyzw.roll(1, dims=-1))


def _unprojection(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    depth = golden.tensor("depth").double()
    # The recorded function counts pixels from integers; half a pixel separates that from our
    # convention.
    pixels = pixel_centers(depth.shape[1], depth.shape[2]) - 0.5
    intrinsics = golden.tensor("intrinsic")[0].double()
    world_from_cam = invert_rigid(golden.tensor("extrinsic")[0].double())
    in_cam = unproject(pixels, depth, intrinsics[:, None, None])
    yield "unprojected", transform_points(world_from_cam[:, None, None], in_cam)


def _embeddings(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    tables = [
        rope_table(positions, golden.arrays["rope_in"].shape[-1])
        for positions in golden.tensor("rope_pos_yx")
    ]
    rotated = [
        apply_rope(x, table) for x, table in zip(golden.tensor("rope_in"), tables, strict=True)
    ]
    yield "rope_out", torch.stack(rotated)

    for name, array in golden.arrays.items():
        if match := re.fullmatch(r"uv_(\d+)x(\d+)", name):
            yield name, _uv_map(int(match[1]), int(match[2]))
        elif match := re.fullmatch(r"uvembed_(\d+)x(\d+)_c(\d+)", name):
            yield name, _uv_embedding(int(match[1]), int(match[2]), array.shape[-1])
        elif match := re.fullmatch(r"dino_pos_embed_(\d+)x(\d+)", name):
            grid = (int(match[1]) // 14, int(match[2]) // 14)
            yield name, resize_position_grid(golden.tensor("dino_pos_embed"), *grid)


def _uv_map(width: int, height: int) -> Tensor:
    u, v = uv_coordinates(height, width, width / height)
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).float()


def _uv_embedding(width: int, height: int, num_channels: int) -> Tensor:
    u, v = uv_coordinates(height, width, width / height)
    columns = sinusoids(u, num_channels // 2).T.expand(height, -1, -1)
    rows = sinusoids(v, num_channels // 2).T.unsqueeze(1).expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1)


def _heads(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    raw = golden.tensor("head_raw")
    yield "head_inv_log", activate_points(raw)[0]
    yield "head_conf_expp1", activate_points(raw)[1]
    yield "head_exp", torch.stack([activate_depth(raw[:, [i, 3]])[0] for i in range(3)], dim=-1)

    coarse, skip = golden.tensor("fusion_in0"), golden.tensor("fusion_in1")
    block = FusionBlock(coarse.shape[1])
    fill_weights(block, f"{golden.tag}/fusion")
    yield "fusion_out_9x11", block(coarse, skip, (9, 11))
    twice = (2 * coarse.shape[2], 2 * coarse.shape[3])
    yield "fusion_out_scale2", block(coarse, skip, twice)


def _preprocessing(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    photos = [Image.fromarray(golden.arrays[f"pre_{i}_input_u8"]) for i in range(2)]
    plans = [plan_resize(*photo.size, "crop") for photo in photos]
    for i, (photo, plan) in enumerate(zip(photos, plans, strict=True)):
        yield f"pre_{i}_out_u8", resize_image(photo, plan)

    size = common_size(plans)
    mixed = torch.stack(
        [
            resize_image(photo, plan.padded_to(size))
            for photo, plan in zip(photos, plans, strict=True)
        ]
    )
    yield "pre_mixed_shape", torch.tensor(mixed.shape)
    yield "pre_mixed_white_rows", (mixed == 255).all(dim=3).all(dim=1)

    rows = []
    for mode, width, height, *_ in golden.arrays["pre_sizes"].tolist():
        plan = plan_resize(width, height, "pad" if mode else "crop")
        rows.append([mode, width, height, *plan.network_size, *plan.box])
    yield "pre_sizes", torch.tensor(rows)


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    for part in (_poses, _unprojection, _embeddings, _heads, _preprocessing):
        for name, computed in part(golden):
            if name in golden.arrays:
                is_exact = np.issubdtype(golden.arrays[name].dtype, np.integer) or (
                    golden.arrays[name].dtype == np.bool_
                )
                tolerance = _TOLERANCE_INTRINSICS if name == "intrinsic" else _TOLERANCE
                yield Check(name, computed, golden.arrays[name], 0.0 if is_exact else tolerance)


UNITS_VGGT = GoldenKind(
    name="units_vggt",
    tag_pattern=r"golden-\w+/units/vggt$",
    run=_run,
    is_input=lambda name: name in _INPUTS or name.endswith("_input_u8"),
)
