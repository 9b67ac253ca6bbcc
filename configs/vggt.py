# SPDX-License-Identifier: Apache-2.0
"""Named weights of VGGT.

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
    )
}
"""Published weights by name."""

DEFAULT_WEIGHTS = "vggt-1b"
