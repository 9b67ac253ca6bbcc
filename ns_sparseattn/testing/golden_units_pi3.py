# SPDX-License-Identifier: Apache-2.0
"""Golden file of the small parts of Pi3 and Pi3X: rotations, rays, poses, heads, preprocessing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from ..frames.resize import plan_area, resize_image
from ..models.dpt import uv_coordinates
from ..models.pi3_conditions import normalize_depth
from ..models.pi3_conv_head import ConvHead
from ..models.pi3_heads import rotation_from_rows
from ..models.pi3_pose_injection import RelativePoses
from .golden_file import Check, GoldenFile, GoldenKind
from .golden_pi3 import published_intrinsics
from .published_masks import depth_edges, normal_edges, point_normals
from .recipe import fill_weights

_TOLERANCE = 2e-5
_PATCH_SIZE = 14
_EXAMPLE_PIXELS = 40_000
_UV_ASPECT = 1.5
_POSE_GRID = (4, 5)
_INPUTS = frozenset(
    {"svd_in", "rays", "pts", "pts_mask", "prope_viewmats_w2c", "prope_in", "depths", "convhead_in"}
)


def _geometry(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    yield "svd_out", rotation_from_rows(golden.tensor("svd_in"))
    rays = golden.tensor("rays")
    yield "K_forced_center", published_intrinsics(rays, is_centered=True)
    yield "K_free", published_intrinsics(rays, is_centered=False)
    u, v = uv_coordinates(7, 9, _UV_ASPECT)
    yield "uv_9x7", torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).float()
    normalized, mean = normalize_depth(golden.tensor("depths"))
    yield "depths_normalized_mean", normalized
    yield "depths_factor_mean", mean


def _edges(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    points, mask = golden.tensor("pts"), golden.tensor("pts_mask")
    normals, has_normal = point_normals(points, mask)
    yield "normals", normals
    yield "normals_mask", has_normal
    is_jump = depth_edges(points[..., 2], mask)
    yield "depth_edge", is_jump
    is_turn = normal_edges(normals, has_normal, has_faults=False)
    yield "depth_normal_edge", is_jump & is_turn & has_normal


def _relative_poses(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    poses, x = golden.tensor("prope_viewmats_w2c")[0], golden.tensor("prope_in")[0]
    encoding = RelativePoses.of(poses, _POSE_GRID, x.shape[-1])
    frames = x.unflatten(1, (len(poses), -1)).transpose(0, 1)
    for name, encode in (
        ("prope_q", encoding.encode_queries),
        ("prope_kv", encoding.encode_keys),
        ("prope_o", encoding.decode),
    ):
        yield name, encode(frames).transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _dense_head(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    patches = golden.tensor("convhead_in")
    height, width = golden.arrays["convhead_out0"].shape[2:]
    head = ConvHead(
        dim=patches.shape[-1],
        widths=(32, 32, 32),
        last_width=16,
        num_outputs=(2, 1),
        patch_size=_PATCH_SIZE,
        num_residual_blocks=1,
    )
    fill_weights(head, f"{golden.tag}/convhead")
    for i, values in enumerate(head(patches, (height // _PATCH_SIZE, width // _PATCH_SIZE))):
        yield f"convhead_out{i}", values


def _preprocessing(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    rows = [
        [width, height, *plan_area(width, height).network_size]
        for width, height, *_ in golden.arrays["pre_sizes_wh_to_wh"].tolist()
    ]
    yield "pre_sizes_wh_to_wh", torch.tensor(rows)
    for i in range(2):
        photo = Image.fromarray(golden.arrays[f"pre_{i}_input_u8"])
        plan = plan_area(*photo.size, max_pixels=_EXAMPLE_PIXELS)
        yield f"pre_{i}_out_u8", resize_image(photo, plan, "lanczos")


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    for part in (_geometry, _edges, _relative_poses, _dense_head, _preprocessing):
        for name, computed in part(golden):
            recorded = golden.arrays[name]
            is_exact = recorded.dtype.kind in "iub"
            yield Check(name, computed, recorded, 0.0 if is_exact else _TOLERANCE)


UNITS_PI3 = GoldenKind(
    name="units_pi3",
    tag_pattern=r"golden-\w+/units/pi3$",
    run=_run,
    is_input=lambda name: name in _INPUTS or name.endswith("_input_u8"),
)
