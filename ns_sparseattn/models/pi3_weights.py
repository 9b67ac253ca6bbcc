# SPDX-License-Identifier: Apache-2.0
"""Load Pi3 and Pi3X with weights from the hub, a file or a seed, and say what they allow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .loading import ModelFamily, load_model, save_model
from .pi3 import Pi3
from .pi3_config import Pi3Config, Pi3XConfig, pi3_config_from_shapes, pi3x_config_from_shapes
from .pi3x import Pi3X
from .seeded import make_seeded_pi3, make_seeded_pi3x
from .weight_set import WeightSet


def _pi3_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.pi3 import DEFAULT_WEIGHTS, WEIGHTS

    return WEIGHTS, DEFAULT_WEIGHTS


def _pi3x_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.pi3 import DEFAULT_PI3X_WEIGHTS, PI3X_WEIGHTS

    return PI3X_WEIGHTS, DEFAULT_PI3X_WEIGHTS


PI3_FAMILY: ModelFamily[Pi3] = ModelFamily(
    name="Pi3",
    config_metadata="pi3_config",
    build=Pi3,
    make_config=Pi3Config,
    config_from_shapes=pi3_config_from_shapes,
    named_sets=_pi3_sets,
    seeded={"seeded": Pi3Config, "seeded-small": Pi3Config.small},
    make_seeded=make_seeded_pi3,
)
"""How Pi3's weights are named, read and made."""

PI3X_FAMILY: ModelFamily[Pi3X] = ModelFamily(
    name="Pi3X",
    config_metadata="pi3x_config",
    build=Pi3X,
    make_config=Pi3XConfig,
    config_from_shapes=pi3x_config_from_shapes,
    named_sets=_pi3x_sets,
    seeded={"seeded": Pi3XConfig, "seeded-small": Pi3XConfig.small},
    make_seeded=make_seeded_pi3x,
)
"""How Pi3X's weights are named, read and made."""


load_pi3 = partial(load_model, PI3_FAMILY)
"""Build a Pi3 and fill it with weights, as `load_model`; ``pi3`` if none are named."""

load_pi3x = partial(load_model, PI3X_FAMILY)
"""Build a Pi3X and fill it with weights, as `load_model`; ``pi3x`` if none are named.

Weights without the parts for rays, depth and poses are accepted; the network can then be told
nothing.
"""

save_pi3 = partial(save_model, PI3_FAMILY)
"""Write a Pi3's weights, as `save_model`."""

save_pi3x = partial(save_model, PI3X_FAMILY)
"""Write a Pi3X's weights, as `save_model`."""
