# SPDX-License-Identifier: Apache-2.0
"""Golden files of small VGGT models under the published block-sparse attention."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..attention import AttentionPlan, record_block_maps
from ..models.compute import InferenceOptions
from .golden_file import Check, GoldenError, GoldenFile, GoldenKind
from .golden_vggt import build_vggt
from .recipe import make_images

# About seven times what one float32 rounding of every weight does; masks have to be equal.
_TOLERANCE = 2e-5
_FP32 = InferenceOptions(precision="fp32")
_IMAGES_SHA = "in_images_sha_only"


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    stated = golden.config
    plan = AttentionPlan.paper(
        sparse_ratio=stated.get("sparse_ratio"),
        cdf_threshold=stated.get("cdf_threshold"),
        hilbert=stated["hilbert"],
    )
    model = build_vggt(golden)
    last = model.config.depth - 1
    with record_block_maps() as maps:
        output = model(_images(golden), plan=plan, keep_layers=[last], options=_FP32)
    masks = {layer: block_map.to_mask() for layer, block_map in maps.items()}
    computed: dict[str, Tensor] = {f"mask_layer{layer}": mask for layer, mask in masks.items()}
    computed["sparsity"] = 1 - torch.stack([mask.double().mean() for mask in masks.values()])
    computed["agg_last_frame0"] = output.layers[last][:, :1]
    if output.pose_encodings is not None:
        computed["out_pose_enc"] = output.pose_encodings[-1]
    if output.depth is not None and output.depth_confidence is not None:
        computed["out_depth"] = output.depth.unsqueeze(-1)
        computed["out_depth_conf_frame0"] = output.depth_confidence[:, :1]
    for name, value in computed.items():
        if name in golden.arrays:
            is_exact = golden.arrays[name].dtype == np.bool_
            yield Check(name, value, golden.arrays[name], 0.0 if is_exact else _TOLERANCE)


def _images(golden: GoldenFile) -> Tensor:
    """Make the images anew, and make sure that they are those that were recorded."""
    stated = golden.config
    images = make_images(stated["image_tag"], stated["frames"], stated["height"], stated["width"])
    digest = hashlib.sha256(images.numpy().tobytes()).digest()
    if digest != golden.arrays[_IMAGES_SHA].tobytes():
        raise GoldenError(f"{golden.path}: the images could not be made as they were recorded.")
    return images


BLOCK_MASK_VGGT = GoldenKind(
    name="block_mask_vggt", tag_pattern=r"golden-\w+/block_mask/sparse_vggt/", run=_run
)
