# SPDX-License-Identifier: Apache-2.0
"""Load VGGT with weights from the hub, a file or a seed, and say what their licence allows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from .loading import ModelFamily, load_model, save_model
from .seeded import make_seeded_vggt
from .vggt import VGGT
from .vggt_config import VGGTConfig, config_from_shapes
from .weight_set import WeightSet

DROPPED_PREFIXES = ("track_head.",)
"""Keys of published files that are read past: the track head is not part of our network."""


def _drop_track_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x for key, x in tensors.items() if not key.startswith(DROPPED_PREFIXES)}


def _named_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.vggt import DEFAULT_WEIGHTS, WEIGHTS

    return WEIGHTS, DEFAULT_WEIGHTS


VGGT_FAMILY: ModelFamily[VGGT] = ModelFamily(
    name="VGGT",
    config_metadata="vggt_config",
    build=VGGT,
    make_config=VGGTConfig,
    config_from_shapes=config_from_shapes,
    named_sets=_named_sets,
    seeded={"seeded": VGGTConfig, "seeded-small": VGGTConfig.small},
    make_seeded=make_seeded_vggt,
    adapt_keys=_drop_track_head,
)
"""How VGGT's weights are named, read and made."""


load_vggt = partial(load_model, VGGT_FAMILY)
"""Build a VGGT and fill it with weights, as `load_model`; ``vggt-1b`` if none are named."""

save_vggt = partial(save_model, VGGT_FAMILY)
"""Write a VGGT's weights, as `save_model`."""
