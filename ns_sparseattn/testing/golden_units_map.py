# SPDX-License-Identifier: Apache-2.0
"""Golden file of MapAnything's small parts: rays, poses, scales, the dense head, masks, photos."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..frames.cover import choose_size, cover_image, plan_cover, resize_depth
from ..models.mapanything_geometry import (
    normalize_depth,
    normalize_translations,
    relative_pose,
    rotation_from_xyzw,
    rotation_to_xyzw,
)
from ..models.mapanything_heads import DenseFeatures, DenseRegressor
from ..models.priors import FramePrior
from ..models.ray_intrinsics import least_squares_intrinsics
from .golden_file import Check, GoldenFile, GoldenKind
from .published_masks import depth_edges, normal_edges, point_normals
from .recipe import fill_weights, make_pose

_TOLERANCE = 2e-5
# Slopes of rays are differences of nearly equal numbers.
_TOLERANCE_INTRINSICS = 2e-4
_INPUTS = frozenset(
    {"K", "rays_noisy", "rays_stride", "q1", "q2", "t1", "t2", "depth_z", "trans"}
    | {"pts", "pts_mask", "dpt_in0", "dpt_in1", "dpt_in2", "dpt_in3"}
)
# Sizes of the recorded head, which the file does not state.
_DPT_WIDTHS = (6, 8, 10, 12)
_DPT_FEATURES = 8
_DPT_CONV_GAIN = 0.9


def _rays(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    height, width = golden.arrays["rays_from_K"].shape[1:3]
    # Recorded with the first pixel's centre at 0.
    half = torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], dtype=torch.float64)
    rays = [
        FramePrior(intrinsics=k.double() + half).unit_rays(height, width)
        for k in golden.tensor("K")
    ]
    yield "rays_from_K", torch.stack([frame for frame in rays if frame is not None])
    for name, source in (("clean", "rays_from_K"), ("noisy", "rays_noisy")):
        fitted = least_squares_intrinsics(golden.tensor(source), is_centered=False)
        yield f"K_recovered_{name}", fitted - half
    # Every second pixel of a large image takes part; those are the pixels of one of half the size.
    fitted = least_squares_intrinsics(golden.tensor("rays_stride")[:, ::2, ::2], is_centered=False)
    yield "K_recovered_stride", torch.diag(fitted.new_tensor([2, 2, 1])) @ (fitted - half)


def _poses(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    q1, q2, t1, t2 = (golden.tensor(name) for name in ("q1", "q2", "t1", "t2"))
    yield "rel_q", relative_pose(q1, t1, q2, t2)[0]
    yield "rel_t", relative_pose(q1, t1, q2, t2)[1]
    yield "q1_mat", rotation_from_xyzw(q1)
    yield "q1_back", rotation_to_xyzw(rotation_from_xyzw(q1))
    depth, rays = golden.tensor("depth_z"), golden.tensor("rays_from_K")
    world_from_cam = torch.stack([make_pose(golden.tag, frame) for frame in range(len(rays))])
    in_cam = (rays * depth.unsqueeze(-1)).double()
    in_world = torch.einsum("fij,fhwj->fhwi", world_from_cam[..., :3], in_cam)
    yield "pointmap", in_world + world_from_cam[:, None, None, :, 3]


def _scales(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    normalized, factor = normalize_depth(golden.tensor("depth_z"))
    yield "depth_norm", normalized.unsqueeze(-1)
    yield "depth_norm_factor", factor
    yield "depth_log", golden.tensor("depth_norm").log1p()
    yield "trans_norm", normalize_translations(golden.tensor("trans"))[0]
    yield "trans_factor", normalize_translations(golden.tensor("trans"))[1]


def _masks(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    points, mask = golden.tensor("pts")[None], golden.tensor("pts_mask")[None]
    normals, has_normal = point_normals(points, mask)
    yield "normals", normals[0]
    yield "normals_mask", has_normal[0]
    yield "depth_edge_3pct", depth_edges(points[..., 2], mask)[0]
    # From the recorded normals, whose last bits decide what is lost to NaN.
    stored = golden.tensor("normals")[None], golden.tensor("normals_mask")[None]
    yield "normals_edge_5deg", normal_edges(*stored)[0]


def _head(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    maps = [golden.tensor(f"dpt_in{level}") for level in range(4)]
    features = DenseFeatures([x.shape[1] for x in maps], _DPT_WIDTHS, _DPT_FEATURES)
    regressor = DenseRegressor(_DPT_FEATURES)
    fill_weights(nn.Sequential(features, regressor), f"{golden.tag}/dpt", _DPT_CONV_GAIN)
    yield "dpt_out_70x42", regressor(features(maps), (70, 42))


def _photos(golden: GoldenFile) -> Iterator[tuple[str, Tensor]]:
    for i in range(2):
        photo = Image.fromarray(golden.arrays[f"pre_{i}_input_u8"])
        height, width = golden.arrays[f"pre_{i}_out_u8"].shape[1:]
        plan = plan_cover(*photo.size, (width, height))
        yield f"pre_{i}_out_u8", cover_image(photo, plan)
        yield f"pre_{i}_out_depth", resize_depth(golden.arrays[f"pre_{i}_depth"], plan)[None]


def _sizes(golden: GoldenFile) -> Check:
    """Compare the sizes that are chosen; the last four columns are intrinsics."""
    name = "pre_sizes_wh_to_wh_K"
    recorded = golden.arrays[name][:, :4]
    rows = [(w, h, *choose_size([(w, h)])) for w, h in recorded[:, :2].astype(int).tolist()]
    return Check(name, torch.tensor(rows), recorded, 0.0)


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    yield _sizes(golden)
    for part in (_rays, _poses, _scales, _masks, _head, _photos):
        for name, computed in part(golden):
            recorded = golden.arrays[name]
            tolerance = _TOLERANCE_INTRINSICS if name.startswith("K_") else _TOLERANCE
            yield Check(
                name, computed, recorded, 0.0 if recorded.dtype in (bool, np.uint8) else tolerance
            )


def _why_skipped(array: str) -> str:
    if array == "K_recovered_geometric":
        return "a second formula for large images; ours takes images of any size"
    if array == "nan_self_angle_fraction":
        return "a remark on the recording, not an output"
    if array.endswith("_out_K"):
        return (
            "the published intrinsics follow the scale before sizes are rounded to whole pixels; "
            "ours follow the pixels"
        )
    return f"{array} has no counterpart here"


UNITS_MAP = GoldenKind(
    name="units_map",
    tag_pattern=r"golden-\w+/units/map$",
    run=_run,
    is_input=lambda name: name in _INPUTS or bool(re.fullmatch(r"pre_\d_(input_u8|K|depth)", name)),
    why_skipped=_why_skipped,
)
