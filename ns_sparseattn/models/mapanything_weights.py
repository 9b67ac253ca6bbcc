# SPDX-License-Identifier: Apache-2.0
"""Load MapAnything with weights from the hub, a file or a seed, and adapt its published keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from .loading import ModelFamily, load_model, save_model
from .mapanything import MapAnything
from .mapanything_config import MapAnythingConfig, mapanything_config_from_shapes
from .seeded import make_seeded_mapanything
from .weight_set import WeightSet

# Names under which the published network reaches tensors of its dense head a second time, and how
# we call them. Files hold some of these names, all or none.
_ALIASES = (
    (r"dpt_feature_head\.", "dense_head.0."),
    (r"dpt_regressor_head\.", "dense_head.1."),
)
_ALIASED_LAYERS = (
    (r"dense_head\.0\.scratch\.layer([1-4])_rn\.weight", 1),
    (r"dense_head\.0\.scratch\.layer_rn\.([0-3])\.weight", 0),
)


def canonical_key(key: str) -> str:
    """Return our name of a published tensor."""
    for pattern, prefix in _ALIASES:
        key = re.sub(rf"^{pattern}", prefix, key)
    for pattern, first in _ALIASED_LAYERS:
        if match := re.fullmatch(pattern, key):
            return f"dense_head.0.input_process.{int(match[1]) - first}.1.weight"
    return key


def merge_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor once, under our name.

    Args:
        tensors: Content of a published file, with or without aliases.

    Returns:
        Our names to tensors.

    Raises:
        ValueError: If two names of one tensor hold different values.
    """
    merged: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = canonical_key(key)
        if name in merged and not torch.equal(merged[name], tensor):
            raise ValueError(
                f"`{key}` must equal `{name}`, another name of the same tensor of MapAnything, but "
                "their values differ: the file is damaged, or was trained with them apart."
            )
        merged.setdefault(name, tensor)
    return merged


def _named_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.mapanything import DEFAULT_WEIGHTS, WEIGHTS

    return WEIGHTS, DEFAULT_WEIGHTS


MAPANYTHING_FAMILY: ModelFamily[MapAnything] = ModelFamily(
    name="MapAnything",
    config_metadata="mapanything_config",
    build=MapAnything,
    make_config=MapAnythingConfig,
    config_from_shapes=mapanything_config_from_shapes,
    named_sets=_named_sets,
    seeded={
        "seeded": MapAnythingConfig,
        "seeded-v1": MapAnythingConfig.v1,
        "seeded-small": MapAnythingConfig.small,
    },
    make_seeded=make_seeded_mapanything,
    adapt_keys=merge_aliases,
)
"""How MapAnything's weights are named, read and made."""


load_mapanything = partial(load_model, MAPANYTHING_FAMILY)
"""Build a MapAnything and fill it with weights, as `load_model`; ``map-anything`` if none are
named. Random weights are also ``seeded-v1``, of the first release's sizes."""

save_mapanything = partial(save_model, MAPANYTHING_FAMILY)
"""Write a MapAnything's weights, as `save_model`."""
