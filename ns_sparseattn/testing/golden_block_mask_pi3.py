# SPDX-License-Identifier: Apache-2.0
"""Golden files of small Pi3 models under the published block-sparse attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..attention import AttentionPlan, record_block_maps
from ..models.compute import InferenceOptions
from .golden_file import Check, GoldenFile, GoldenKind
from .golden_pi3 import build_pi3, output_arrays
from .recipe import make_images

_TOLERANCE = 5e-4
_FP32 = InferenceOptions(precision="fp32")


@torch.no_grad()
def _run(golden: GoldenFile) -> Iterator[Check]:
    stated = golden.config
    plan = AttentionPlan.paper(
        sparse_ratio=stated.get("sparse_ratio"),
        cdf_threshold=stated.get("cdf_threshold"),
        hilbert=stated["hilbert"],
    )
    images = make_images(stated["image_tag"], stated["frames"], stated["height"], stated["width"])
    with record_block_maps() as maps:
        output = build_pi3(golden)(images, plan=plan, options=_FP32)
    masks = {layer: block_map.to_mask() for layer, block_map in maps.items()}
    for layer, mask in masks.items():
        # Recorded under the number of the block; every other one is global.
        name = f"mask_layer{2 * layer + 1}"
        yield Check(name, mask, golden.arrays[name], 0.0)
    sparsity = 1 - torch.stack([mask.double().mean() for mask in masks.values()])
    yield Check("sparsity", sparsity, golden.arrays["sparsity"], _TOLERANCE)
    named = output_arrays(output)
    named["out_conf_frame0"] = named["out_conf"][:, :1]
    for name, computed in named.items():
        if name in golden.arrays:
            recorded = golden.arrays[name]
            # Points were recorded of the first frames alone.
            yield Check(name, computed[:, : recorded.shape[1]], recorded, _TOLERANCE)


BLOCK_MASK_PI3 = GoldenKind(
    name="block_mask_pi3", tag_pattern=r"golden-\w+/block_mask/sparse_pi3/", run=_run
)
