# SPDX-License-Identifier: Apache-2.0
"""Named weights of Pi3 and Pi3X.

Sizes and keys were counted in the published networks. What is said about the licences repeats the
statements of the model pages as others quote them; read the page of the set that you use.
"""

from __future__ import annotations

from ns_sparseattn.models.pi3_config import Pi3Config, Pi3XConfig
from ns_sparseattn.models.weight_set import WeightSet

_LICENCE = "CC BY-NC 4.0"
_LICENCE_SUMMARY = (
    "Non-commercial use with attribution; no commercial use. The authors' code has another "
    "licence, BSD-3-Clause."
)

WEIGHTS: dict[str, WeightSet] = {
    "pi3": WeightSet(
        name="pi3",
        repo_id="yyfz233/Pi3",
        filename="model.safetensors",
        config=Pi3Config(),
        # 958,696,732 float32 parameters, and mean and deviation of the images.
        num_keys=1210,
        size_gb=3.83,
        licence=_LICENCE,
        licence_summary=_LICENCE_SUMMARY,
        commercial_use=False,
    ),
}
"""Published weights of Pi3 by name."""

DEFAULT_WEIGHTS = "pi3"

PI3X_WEIGHTS: dict[str, WeightSet] = {
    "pi3x": WeightSet(
        name="pi3x",
        repo_id="yyfz233/Pi3X",
        filename="model.safetensors",
        config=Pi3XConfig(),
        # 1,360,032,433 float32 parameters, 367.6 million of them for rays, depth and poses.
        num_keys=1873,
        size_gb=5.44,
        licence=_LICENCE,
        licence_summary=_LICENCE_SUMMARY,
        commercial_use=False,
    ),
}
"""Published weights of Pi3X by name."""

DEFAULT_PI3X_WEIGHTS = "pi3x"
