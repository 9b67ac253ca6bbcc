# SPDX-License-Identifier: Apache-2.0
"""Golden files with outputs and intermediates of VGGT, small or of the published size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models.compute import InferenceOptions
from ..models.vggt import VGGT, VGGTOutput
from ..models.vggt_config import VGGTConfig
from .golden_file import Check, GoldenFile, GoldenKind
from .last_network import keep_last
from .recipe import fill_weights, make_images

# Perturbing every weight by one float32 rounding moves tokens, depth and poses by up to 3e-6 of
# their RMS, and what is exponential or a tangent of them by up to 3e-5; the tolerances are about
# seven times that.
_TOLERANCE = 2e-5
_TOLERANCE_AMPLIFIED = 2e-4
_FP32 = InferenceOptions(precision="fp32")
_AMPLIFIED = ("out_world_points", "out_intrinsic")


def config_from_golden(sizes: dict[str, Any] | str) -> VGGTConfig:
    """Return the sizes that a file states; words instead of numbers mean the published ones."""
    if isinstance(sizes, str):
        return VGGTConfig()
    return VGGTConfig(
        image_size=sizes["img_size"],
        embed_dim=sizes["embed_dim"],
        encoder_depth=sizes["dino_depth"],
        encoder_heads=sizes["dino_heads"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        taps=tuple(sizes["taps"]),
        camera_heads=sizes["camera_heads"],
        camera_depth=sizes["trunk_depth"],
        dpt_features=sizes["dpt_features"],
        dpt_widths=tuple(sizes["dpt_out_channels"]),
    )


def build_vggt(golden: GoldenFile) -> VGGT:
    """Return the model that a file was recorded with."""
    stated = golden.config
    return _build(json.dumps(stated["config"]), golden.tag, stated["conv_gain"])


@keep_last
def _build(sizes_json: str, tag: str, conv_gain: float) -> VGGT:
    with torch.device("meta"):
        model = VGGT(config_from_golden(json.loads(sizes_json)))
    fill_weights(model, tag, conv_gain)
    return model.eval()


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    stated = golden.config
    model = build_vggt(golden)
    if "in_images" in golden.arrays:
        images = golden.tensor("in_images")
    else:
        images = make_images(
            stated["image_tag"], stated["frames"], stated["height"], stated["width"]
        )
    layers = [int(name[4:]) for name in golden.arrays if name.startswith("agg_")]
    wanted = {name for name in golden.arrays if name.startswith(("out_", "pose_"))}
    output = model(
        images,
        heads=("camera", "depth", "points") if wanted else (),
        keep_layers=layers,
        options=_FP32,
    )
    for name, computed in _named_outputs(output, images, model, golden).items():
        if name in golden.arrays:
            tolerance = _TOLERANCE_AMPLIFIED if name in _AMPLIFIED else _TOLERANCE
            yield Check(name, computed, golden.arrays[name], tolerance)


def _named_outputs(
    output: VGGTOutput, images: Tensor, model: VGGT, golden: GoldenFile
) -> dict[str, Tensor]:
    named = {f"agg_{layer:02d}": tokens for layer, tokens in output.layers.items()}
    if "patch_tokens" in golden.arrays:
        named["patch_tokens"] = model.encode(images, options=_FP32).flatten(0, 1)
    if output.pose_encodings is not None:
        named["pose_enc_iters"] = output.pose_encodings
        named["out_pose_enc"] = output.pose_encodings[-1]
    if output.depth is not None:
        named["out_depth"] = output.depth.unsqueeze(-1)
    fields = {
        "out_depth_conf": output.depth_confidence,
        "out_world_points": output.points_in_world,
        "out_world_points_conf": output.points_confidence,
        "out_extrinsic_w2c": output.cam_from_world,
        "out_intrinsic": output.intrinsics,
    }
    return named | {name: value for name, value in fields.items() if value is not None}


def _why_skipped(array: str) -> str:
    if array.startswith(("out_track", "out_vis")):
        return "the track head is not implemented"
    return f"{array} has no counterpart in the model"


VGGT_OUTPUTS = GoldenKind(
    name="vggt", tag_pattern=r"golden-\w+/vggt/", run=_run, why_skipped=_why_skipped
)
