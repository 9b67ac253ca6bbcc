# SPDX-License-Identifier: Apache-2.0
"""Golden files with outputs and intermediates of Pi3 and Pi3X, small or of the published size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import invert_rigid
from ..models.compute import InferenceOptions
from ..models.pi3 import Pi3, Pi3Output
from ..models.pi3_conditions import Pi3XConditions, slopes_of_intrinsics, slopes_of_rays
from ..models.pi3_config import Pi3Config, Pi3XConfig
from ..models.pi3x import Pi3X
from ..models.ray_intrinsics import least_squares_intrinsics
from .golden_file import Check, GoldenFile, GoldenKind
from .last_network import keep_last
from .recipe import fill_weights, make_depth, make_images, make_intrinsics, make_pose

# Perturbing every weight by one float32 rounding moves tokens by up to 3e-6 of their RMS, and what
# the heads make of them by up to 1e-4.
_TOLERANCE = 2e-5
_TOLERANCE_OUTPUT = 5e-4
# One chunk, so that every part of the network is called once.
_OPTIONS = InferenceOptions(precision="fp32", frames_per_chunk=64, head_frames_per_chunk=64)
_LAST_ROW = (0.0, 0.0, 0.0, 1.0)

# Arrays that one part of the network returns, by the method that returns them.
_PARTS = {
    "point_decoder": "forward",
    "conf_decoder": "forward",
    "camera_decoder": "forward",
    "metric_decoder": "forward",
    "depth_encoder": "forward",
    "ray_embed": "forward",
    "pose_inject_blk": "inject",
}


def config_from_golden(sizes: dict[str, Any] | str, *, is_pi3x: bool) -> Pi3Config:
    """Return the sizes that a file states; words instead of numbers mean the published ones."""
    if isinstance(sizes, str):
        return Pi3XConfig() if is_pi3x else Pi3Config()
    common = {
        "image_size": sizes["img_size"],
        "embed_dim": sizes["embed_dim"],
        "encoder_depth": sizes["dino_depth"],
        "encoder_heads": sizes["dino_heads"],
        "depth": sizes["depth"],
        "num_heads": sizes["heads"],
        "head_dim": sizes["head_dim"],
        "head_heads": sizes["head_heads"],
        "head_depth": sizes["head_depth"],
        "camera_dim": sizes["cam_dim"],
    }
    if not is_pi3x:
        return Pi3Config(**common)
    return Pi3XConfig(
        **common,
        upsample_widths=tuple(sizes["dim_upsample"]),
        last_width=sizes["last_conv_channels"],
        metric_dim=sizes["cam_dim"],
        metric_heads=sizes["metric_heads"],
        inject_layers=tuple(sizes["inject_layers"]),
    )


def build_pi3(golden: GoldenFile, *, is_pi3x: bool = False) -> Pi3 | Pi3X:
    """Return the model that a file was recorded with."""
    stated = golden.config
    return _build(json.dumps(stated["config"]), golden.tag, stated["conv_gain"], is_pi3x)


@keep_last
def _build(sizes_json: str, tag: str, conv_gain: float, is_pi3x: bool) -> Pi3 | Pi3X:
    config = config_from_golden(json.loads(sizes_json), is_pi3x=is_pi3x)
    with torch.device("meta"):
        model = Pi3X(config) if isinstance(config, Pi3XConfig) else Pi3(config)
    fill_weights(model, tag, conv_gain)
    return model.eval()


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    stated = golden.config
    model = build_pi3(golden, is_pi3x="/pi3x" in golden.tag)
    if "in_images" in golden.arrays:
        images = golden.tensor("in_images")
    else:
        images = make_images(
            stated["image_tag"], stated["frames"], stated["height"], stated["width"]
        )
    layers = [int(name[4:]) for name in golden.arrays if name.startswith("dec_")]
    with _recorded_parts(model) as parts:
        if isinstance(model, Pi3X):
            conditions = _conditions(golden, images)
            output = model(images, conditions=conditions, keep_layers=layers, options=_OPTIONS)
        else:
            conditions = None
            output = model(images, keep_layers=layers, options=_OPTIONS)
    named = output_arrays(output)
    if "patch_tokens" in golden.arrays:
        named["patch_tokens"] = model.encode(images, options=_OPTIONS).flatten(0, 1)
    for name, computed in named.items():
        if name in golden.arrays:
            tolerance = _TOLERANCE_OUTPUT if name.startswith("out_") else _TOLERANCE
            yield Check(name, computed, golden.arrays[name], tolerance)
    for name, computed in parts.items():
        if name in golden.arrays:
            told = _told_frames(name, conditions)
            recorded = golden.tensor(name)
            if told is not None:
                recorded = recorded.reshape(len(told), -1, recorded.shape[-1])[told]
            yield Check(name, computed.reshape(recorded.shape), recorded.numpy(), _TOLERANCE)


def output_arrays(output: Pi3Output) -> dict[str, Tensor]:
    """Return outputs under the names and in the shapes of the published implementation."""
    poses = output.world_from_cam
    last_row = poses.new_tensor(_LAST_ROW).expand(*poses.shape[:2], 1, 4)
    named = {
        "out_points": output.points_in_world,
        "out_local_points": output.local_points,
        "out_rays": output.rays,
        "out_conf": output.confidence_logits.unsqueeze(-1),
        "out_camera_poses": torch.cat([poses, last_row], dim=2),
        "out_K_forced_center": published_intrinsics(output.rays, is_centered=True),
        "out_K_free": published_intrinsics(output.rays, is_centered=False),
    }
    if output.metric_scale is not None:
        named["out_metric"] = output.metric_scale
    for layer, tokens in output.layers.items():
        # Frames are batched in frame blocks and joined in global ones.
        named[f"dec_{layer:02d}"] = tokens.flatten(1, 2) if layer % 2 else tokens.flatten(0, 1)
    return named


def published_intrinsics(rays: Tensor, *, is_centered: bool) -> Tensor:
    """Return intrinsics as the published code counts pixels, with the first centre at (0, 0)."""
    intrinsics = least_squares_intrinsics(rays, is_centered=is_centered)
    intrinsics[..., :2, 2] -= 0.5
    return intrinsics


def _conditions(golden: GoldenFile, images: Tensor) -> Pi3XConditions | None:
    """Return what the published network was told."""
    height, width = images.shape[-2:]
    given = {name: golden.tensor(name) for name in golden.arrays if name.startswith("in_")}
    if "in_images" not in given and "pose_inject_0" in golden.arrays:
        given = _remade_conditions(golden.config["image_tag"], images.shape[0], height, width)
    slopes = None
    if "in_intrinsics" in given:
        slopes = slopes_of_intrinsics(given["in_intrinsics"], height, width)
    elif "in_rays" in given:
        slopes = slopes_of_rays(given["in_rays"])
    poses = given.get("in_poses")
    return Pi3XConditions(
        depth=given.get("in_depths"),
        has_depth=given.get("in_mask_add_depth"),
        ray_slopes=slopes,
        has_rays=given.get("in_mask_add_ray"),
        cam_from_world=None if poses is None else invert_rigid(poses[..., :3, :].double()),
        has_pose=given.get("in_mask_add_pose"),
    )


def _remade_conditions(tag: str, num_frames: int, height: int, width: int) -> dict[str, Tensor]:
    """Return poses, intrinsics and depth that a file with layers alone does not store."""
    frames = range(num_frames)
    last_row = torch.tensor([_LAST_ROW], dtype=torch.float64)
    poses = [torch.cat([make_pose(tag, frame), last_row]) for frame in frames]
    intrinsics = [make_intrinsics(tag, frame, height, width) for frame in frames]
    depths = [make_depth(tag, frame, height, width) for frame in frames]
    return {
        "in_poses": torch.stack(poses)[None],
        "in_intrinsics": torch.stack(intrinsics)[None],
        "in_depths": torch.stack(depths)[None],
    }


def _told_frames(name: str, conditions: Pi3XConditions | None) -> Tensor | None:
    """Return which frames a part sees here, if the published one is given all of them."""
    if conditions is None:
        return None
    told = {
        "depth_patch_tokens": conditions.has_depth,
        "ray_embed": conditions.has_rays,
    }.get(name, conditions.has_pose if name.startswith("pose_inject") else None)
    return None if told is None else told.flatten()


@contextmanager
def _recorded_parts(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect what parts of the network return, under the names of their arrays."""
    results: dict[str, Tensor] = {}
    with ExitStack() as undo:
        for path, module in model.named_modules():
            method = _PARTS.get(path.partition(".")[0])
            if method is None or not re.fullmatch(r"[a-z_]+(\.\d+)?", path):
                continue
            if isinstance(module, nn.ModuleList):
                continue
            name = path.replace("pose_inject_blk.", "pose_inject_")
            name = {"depth_encoder": "depth_patch_tokens"}.get(name, name)
            _record_method(module, method, name, results)
            undo.callback(delattr, module, method)
        yield results


def _record_method(module: nn.Module, method: str, name: str, results: dict[str, Tensor]) -> None:
    original = getattr(module, method)

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        results[name] = original(*args, **kwargs)
        return results[name]

    setattr(module, method, recording)


PI3_OUTPUTS = GoldenKind(name="pi3", tag_pattern=r"golden-\w+/pi3x?(/|$)", run=_run)
