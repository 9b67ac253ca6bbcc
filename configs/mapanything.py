# SPDX-License-Identifier: Apache-2.0
"""Named weights of MapAnything.

Sizes and keys were counted in the published networks; files may hold 76 more names of tensors that
are counted once. What is said about the licences repeats the statements of the model pages as
others quote them; read the page of the set that you use.
"""

from __future__ import annotations

from ns_sparseattn.models.mapanything_config import MapAnythingConfig
from ns_sparseattn.models.weight_set import WeightSet

# 1,228,491,222 float32 parameters in 735 tensors, and one constant.
_NUM_KEYS, _SIZE_GB = 736, 4.91
# 563,335,382 float32 parameters in 803 tensors, and one constant.
_NUM_KEYS_V1, _SIZE_GB_V1 = 804, 2.25


def _named(name: str, *, is_commercial: bool, is_first_version: bool) -> WeightSet:
    return WeightSet(
        name=name,
        repo_id=f"facebook/{name}",
        filename="model.safetensors",
        config=MapAnythingConfig.v1() if is_first_version else MapAnythingConfig(),
        num_keys=_NUM_KEYS_V1 if is_first_version else _NUM_KEYS,
        size_gb=_SIZE_GB_V1 if is_first_version else _SIZE_GB,
        licence="Apache-2.0" if is_commercial else "CC BY-NC 4.0",
        licence_summary=(
            "Any use, commercial use included, under the terms of the licence."
            if is_commercial
            else "Non-commercial use with attribution; no commercial use."
        ),
        commercial_use=is_commercial,
    )


WEIGHTS: dict[str, WeightSet] = {
    weights.name: weights
    for weights in (
        _named("map-anything", is_commercial=False, is_first_version=False),
        _named("map-anything-apache", is_commercial=True, is_first_version=False),
        _named("map-anything-v1", is_commercial=False, is_first_version=True),
        _named("map-anything-apache-v1", is_commercial=True, is_first_version=True),
    )
}
"""Published weights by name: v1.1, and v1 of September 2025."""

DEFAULT_WEIGHTS = "map-anything"
