# SPDX-License-Identifier: Apache-2.0
"""Named weights of VGGT: two published sets, and a small network that ships with the package.

Sizes and keys were counted in the published network. What is said about the licences repeats the
statements of the model pages as others quote them; read the page of the set that you use.
"""

from __future__ import annotations

from ns_sparseattn.models.vggt_config import VGGTConfig
from ns_sparseattn.models.weight_set import WeightSet

# 1,256,537,516 float32 parameters in 1,797 tensors; 65.9 million of them in the track head, which
# is not used.
_NUM_KEYS = 1797
_SIZE_GB = 5.03

TINY = VGGTConfig(
    image_size=112,
    embed_dim=192,
    encoder_depth=1,
    encoder_heads=3,
    depth=6,
    num_heads=3,
    num_registers=1,
    taps=(0, 2, 4, 5),
    camera_heads=6,
    camera_depth=1,
    dpt_features=32,
    dpt_widths=(32, 32, 64, 64),
)
"""Sizes of the network that ships with the package; `training/config.py` has them as ``cpu``."""
_TINY_NUM_KEYS = 391
_TINY_SIZE_GB = 0.018

WEIGHTS: dict[str, WeightSet] = {
    weights.name: weights
    for weights in (
        WeightSet(
            name="vggt-1b",
            repo_id="facebook/VGGT-1B",
            filename="model.safetensors",
            config=VGGTConfig(),
            num_keys=_NUM_KEYS,
            size_gb=_SIZE_GB,
            licence="CC BY-NC 4.0",
            licence_summary="Non-commercial use with attribution; no commercial use.",
            commercial_use=False,
        ),
        WeightSet(
            name="vggt-1b-commercial",
            repo_id="facebook/VGGT-1B-Commercial",
            filename="vggt_1B_commercial.pt",
            config=VGGTConfig(),
            num_keys=_NUM_KEYS,
            size_gb=_SIZE_GB,
            licence="VGGT License (commercial)",
            licence_summary="Commercial use is allowed, military use is not; gated.",
            commercial_use=True,
        ),
        WeightSet(
            name="tiny",
            repo_id=None,
            filename="tiny.safetensors",
            config=TINY,
            num_keys=_TINY_NUM_KEYS,
            size_gb=_TINY_SIZE_GB,
            licence="Apache-2.0",
            licence_summary=(
                "Any use, commercial use included, under the terms of the licence. Trained by this "
                "project on synthetic scenes alone."
            ),
            commercial_use=True,
            long_side=168,
            plans="tiny",
        ),
    )
}
"""Published and shipped weights by name."""

DEFAULT_WEIGHTS = "vggt-1b"
