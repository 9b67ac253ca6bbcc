# SPDX-License-Identifier: Apache-2.0
"""Golden files with outputs and intermediates of MapAnything, v1 and v1.1, small or published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import invert_rigid
from ..models.compute import InferenceOptions
from ..models.mapanything import MapAnything, MapAnythingOutput
from ..models.mapanything_config import MapAnythingConfig
from ..models.mapanything_geometry import prepare_geometry, rotation_to_xyzw
from ..models.priors import FramePrior, check_priors
from ..models.ray_intrinsics import least_squares_intrinsics
from .golden_file import Check, GoldenFile, GoldenKind
from .last_network import keep_last
from .published_masks import published_mask
from .recipe import fill_weights, make_depth, make_images, make_intrinsics, make_pose

# Perturbing every weight by one float32 rounding moves tokens by up to 3e-6 of their RMS, and what
# the heads make of them by up to 1e-4; the tolerances are about five times that.
_TOLERANCE = 2e-5
_TOLERANCE_HEADS = 5e-4
_HEADS = ("out_", "dense_raw", "pose_raw", "scale_raw", "dpt_features")
# Of the pixels of a mask that rounding may flip: 0 to 2 of 14 000 were seen.
_FLIPPED_SHARE = 1e-3
_OPTIONS = InferenceOptions(precision="fp32", frames_per_chunk=8, head_frames_per_chunk=8)
# What the arrays call the encoders, and the names of their modules and inputs.
_ENCODERS = {
    "ray_dirs_features": ("ray_dirs_encoder", "rays"),
    "depth_features": ("depth_encoder", "log_depth"),
    "depth_scale_features": ("depth_scale_encoder", "log_depth_scale"),
    "cam_rot_features": ("cam_rot_encoder", "quaternions"),
    "cam_trans_features": ("cam_trans_encoder", "translations"),
    "cam_trans_scale_features": ("cam_trans_scale_encoder", "log_translation_scale"),
}


def config_from_golden(sizes: dict[str, Any] | str) -> MapAnythingConfig:
    """Return the sizes that a file states; words instead of numbers mean the published v1.1."""
    if isinstance(sizes, str):
        return MapAnythingConfig()
    is_first = sizes["variant"] == "v1"
    mlp = "swiglu" if sizes["ffn"] == "swiglufused" else "gelu"
    return MapAnythingConfig(
        image_size=sizes["img_size"],
        embed_dim=sizes["embed_dim"],
        encoder_depth=sizes["keep_first_n_layers"],
        encoder_heads=sizes["dino_heads"],
        encoder_mlp=mlp,
        has_encoder_norm=is_first,
        has_class_token=not is_first,
        dim=sizes["aat_dim"],
        depth=sizes["aat_depth"],
        num_heads=sizes["aat_heads"],
        mlp=mlp,
        has_layer_scale=not is_first,
        taps=tuple(sizes["aat_indices"]),
        dense_widths=tuple(sizes["dense_dims"]),
        global_widths=tuple(sizes["global_dims"]),
        dpt_features=sizes["dpt_feature_dim"],
        dpt_widths=tuple(sizes["dpt_layer_dims"]),
    )


@keep_last
def _build(sizes_json: str, tag: str, conv_gain: float) -> MapAnything:
    with torch.device("meta"):
        model = MapAnything(config_from_golden(json.loads(sizes_json)))
    fill_weights(model, tag, conv_gain)
    return model.eval()


def _priors(golden: GoldenFile, num_frames: int) -> tuple[FramePrior, ...]:
    """Return what a file's network was told, in our conventions."""
    ignores_pose_scale = "ignore_pose_scale_inputs=True" in golden.config.get("call", "")
    priors = []
    for index in range(num_frames):
        given = _given(golden, index)
        intrinsics, pose = given.get("intrinsics"), given.get("camera_poses")
        if intrinsics is not None:
            intrinsics = intrinsics.double()
            intrinsics[:2, 2] += 0.5  # Recorded with the first pixel's centre at 0.
        is_metric = bool(given.get("is_metric_scale", True))
        priors.append(
            FramePrior(
                intrinsics=intrinsics,
                depth=given.get("depth_z"),
                cam_from_world=None if pose is None else invert_rigid(pose[:3].double()),
                is_depth_metric=is_metric,
                is_pose_metric=is_metric and not ignores_pose_scale,
            )
        )
    return tuple(priors)


def _given(golden: GoldenFile, index: int) -> dict[str, Tensor]:
    """Return what one frame was told: as stored, or by the recipe for files without inputs."""
    if golden.path.stem.endswith("_all_layers"):
        tag = golden.config["image_tag"]
        size = (golden.config["height"], golden.config["width"])
        return {
            "intrinsics": make_intrinsics(tag, index, *size).float(),
            "camera_poses": make_pose(tag, index).float(),
            "depth_z": make_depth(tag, index, *size),
        }
    return {
        name: golden.tensor(f"in_view{index}_{name}")[0]
        for name in ("intrinsics", "depth_z", "camera_poses", "is_metric_scale")
        if f"in_view{index}_{name}" in golden.arrays
    }


@contextmanager
def _watch(model: MapAnything) -> Iterator[dict[str, Tensor]]:
    """Keep what some modules take and return while a model runs, by the names of the arrays."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
            seen[name] = output.clone()

        return hook

    def keep_input(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        seen["final_features"] = inputs[0].clone()

    features, regressor = model.dense_head
    handles = [
        model.fusion_norm_layer.register_forward_hook(keep("fused_features_bhwc")),
        features.register_forward_hook(keep("dpt_features_8x_view0")),
        regressor.register_forward_hook(keep("dense_raw")),
        model.pose_head.register_forward_hook(keep("pose_raw")),
        model.pose_head.register_forward_hook(keep_input),
        model.scale_head.register_forward_hook(keep("scale_raw")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    stated = golden.config
    model = _build(json.dumps(stated["config"]), golden.tag, stated["conv_gain"])
    if "in_images01" in golden.arrays:
        images = golden.tensor("in_images01")
    else:
        images = make_images(
            stated["image_tag"], stated["frames"], stated["height"], stated["width"]
        )
    priors = _priors(golden, len(images))
    layers = [int(name[4:]) for name in golden.arrays if name.startswith("aat_")]
    with _watch(model) as watched:
        output = model(images, priors=priors, keep_layers=layers, options=_OPTIONS)
    grid = watched["final_features"].shape[-2:]
    watched["fused_features_bhwc"] = watched["fused_features_bhwc"][0].unflatten(1, grid)
    watched["final_features"] = watched["final_features"].unsqueeze(0)
    watched["dpt_features_8x_view0"] = watched["dpt_features_8x_view0"][:1]
    watched["scale_raw"] = watched["scale_raw"].unsqueeze(-1)
    named = (
        _layers(output, len(images))
        | watched
        | _encoded(model, images, priors)
        | _outputs(output, watched["pose_raw"])
    )
    if "out_mask" in golden.arrays:
        yield from _masked(golden, output, named)
    for name, computed in named.items():
        if name in golden.arrays:
            recorded = golden.arrays[name]
            tolerance = _TOLERANCE_HEADS if name.startswith(_HEADS) else _TOLERANCE
            yield Check(name, computed, recorded, 0.0 if recorded.dtype == bool else tolerance)


def _masked(
    golden: GoldenFile, output: MapAnythingOutput, named: dict[str, Tensor]
) -> Iterator[Check]:
    """Check the mask, and mask the outputs that were recorded with it."""
    percentile = re.search(r"confidence_percentile=(\d+)", golden.config["call"])
    assert percentile is not None
    mask = published_mask(
        named["out_pts3d_cam"],
        output.confidence[0],
        named["out_non_ambiguous_mask"],
        float(percentile[1]),
    )
    recorded = golden.tensor("out_mask")[..., 0]
    differs = (mask != recorded).double().mean()
    yield Check("out_mask", differs, np.zeros(()), _FLIPPED_SHARE)
    for name in ("out_pts3d", "out_pts3d_cam", "out_depth_along_ray", "out_depth_z"):
        # By the recorded mask, so that a pixel whose mask flips counts once.
        named[name] = named[name] * recorded.unsqueeze(-1)


def _encoded(
    model: MapAnything, images: Tensor, priors: tuple[FramePrior, ...]
) -> dict[str, Tensor]:
    """Return what the encoders make of every frame, told of or not, as it was recorded."""
    height, width = images.shape[-2:]
    grid = (height // model.config.patch_size, width // model.config.patch_size)
    tokens = model.encode(images, options=_OPTIONS)[0]  # [F, P + 1, E]
    patches, class_token = tokens.mT.split([grid[0] * grid[1], 1], dim=2)
    named = {"enc_features": patches.unflatten(2, grid), "enc_registers": class_token}
    inputs = prepare_geometry(check_priors(priors, len(images), height, width), height, width)
    for array, (module, field) in _ENCODERS.items():
        encoded = model.get_submodule(module)(getattr(inputs, field))
        named[array] = encoded.movedim(-1, 1)
    return named


def _layers(output: MapAnythingOutput, num_frames: int) -> dict[str, Tensor]:
    named = {}
    for layer, tokens in output.layers.items():
        is_global = layer % 2 == 0
        named[f"aat_{layer:02d}"] = (
            tokens if is_global else tokens[0, :-1].unflatten(0, (num_frames, -1))
        )
    return named


def _outputs(output: MapAnythingOutput, pose_raw: Tensor) -> dict[str, Tensor]:
    """Return the outputs in the recorded conventions."""
    assert output.rays is not None
    assert output.depth_along_ray is not None
    rays, along_ray = output.rays[0], output.depth_along_ray[0].unsqueeze(-1)
    in_cam = rays * along_ray
    world_from_cam = invert_rigid(output.cam_from_world[0])
    rotation, translation = world_from_cam[..., :3], world_from_cam[..., 3]
    last_row = rotation.new_tensor([0, 0, 0, 1]).expand(len(rotation), 1, 4)
    quaternions = rotation_to_xyzw(rotation)
    # The recorded sign is that of the raw values.
    quaternions = quaternions * (quaternions * pose_raw[:, 3:]).sum(-1, keepdim=True).sign()
    intrinsics = least_squares_intrinsics(rays * rays[..., 2:].sign(), is_centered=False)
    intrinsics[:, :2, 2] -= 0.5
    in_world = torch.einsum("fij,fhwj->fhwi", rotation, in_cam) + translation[:, None, None]
    return {
        "out_pts3d": in_world,
        "out_pts3d_cam": in_cam,
        "out_ray_directions": rays,
        "out_depth_along_ray": along_ray,
        "out_cam_trans": translation,
        "out_cam_quats": quaternions,
        "out_metric_scaling_factor": output.metric_scale.expand(len(rays), 1),
        "out_conf": output.confidence[0],
        "out_non_ambiguous_mask": output.surface_logits[0] > 0,
        "out_non_ambiguous_mask_logits": output.surface_logits[0],
        "out_depth_z": output.depth[0].unsqueeze(-1),
        "out_intrinsics": intrinsics,
        "out_camera_poses": torch.cat([world_from_cam, last_row], dim=1),
    }


MAP_OUTPUTS = GoldenKind(name="mapanything", tag_pattern=r"golden-\w+/map(_v1)?(/|$)", run=_run)
