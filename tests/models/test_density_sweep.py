# SPDX-License-Identifier: Apache-2.0
"""The whole network under plans of rising density: its error falls, and at 1 there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan
from ns_sparseattn.models import VGGT
from ns_sparseattn.models.compute import InferenceOptions
from ns_sparseattn.testing.golden_file import GoldenFile
from ns_sparseattn.testing.golden_vggt import build_vggt
from ns_sparseattn.testing.recipe import make_images

DENSITIES = (0.1, 0.25, 0.5, 0.75, 1.0)
# Eight frames of 80 patches are ten key blocks: every density keeps another number of them.
NUM_FRAMES, HEIGHT, WIDTH = 8, 112, 140
# What perturbing every weight by one float32 rounding does to depth and poses is up to 3e-6 of
# their RMS (see the tolerances of `ns_sparseattn.testing.golden_vggt`).
ROUNDING = 3e-6


def _outputs(model: VGGT, images: Tensor, plan: AttentionPlan) -> dict[str, Tensor]:
    last = model.config.depth - 1
    with torch.no_grad():
        output = model(
            images, plan=plan, keep_layers=[last], options=InferenceOptions(precision="fp32")
        )
    assert output.pose_encodings is not None
    assert output.depth is not None
    return {
        "tokens": output.layers[last],
        "poses": output.pose_encodings[-1],
        "depth": output.depth,
    }


@pytest.mark.parametrize("coarse", [False, True], ids=["listed-only", "coarse"])
@pytest.mark.parametrize("name", ["block_mask_vggt_model_cdf90", "vggt_small_wide"])
def test_the_error_falls_as_density_rises(golden_folder: Path, name: str, coarse: bool) -> None:
    golden = GoldenFile.load(golden_folder / f"{name}.npz")
    model = build_vggt(golden)
    images = make_images(golden.config["image_tag"], NUM_FRAMES, HEIGHT, WIDTH)
    dense = _outputs(model, images, AttentionPlan.dense())
    errors: dict[str, list[float]] = {output: [] for output in dense}
    for density in DENSITIES:
        plan = AttentionPlan.block_sparse(density=density, coarse=coarse)
        for output, value in _outputs(model, images, plan).items():
            error = (value - dense[output]).norm() / dense[output].norm()
            errors[output].append(float(error))
    for output, falling in errors.items():
        steps = list(zip(falling, falling[1:], strict=False))
        assert all(more > less for more, less in steps), (output, falling)
        assert falling[0] > 1e-3, "the sparsest plan must make a difference, or this shows nothing"
        assert falling[-1] < ROUNDING, (output, falling)
