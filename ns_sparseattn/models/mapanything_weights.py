# SPDX-License-Identifier: Apache-2.0
"""Load MapAnything with weights from the hub, a file or a seed, and adapt its published keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .loading import ModelFamily, load_model, save_model
from .mapanything import MapAnything
from .mapanything_config import MapAnythingConfig, mapanything_config_from_shapes
from .seeded import make_seeded_mapanything
from .weight_set import WeightSet, WeightsInfo

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


def load_mapanything(
    source: str | Path | None = None,
    *,
    commercial: bool = False,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
) -> tuple[MapAnything, WeightsInfo]:
    """Build a MapAnything and fill it with weights.

    Args:
        source: A named set (see `ns_sparseattn.configs.mapanything`), a repository on the Hugging
            Face hub, a weights file, a folder with one, or ``seeded``, ``seeded-v1`` or
            ``seeded-small`` for random weights. The default is ``map-anything``.
        commercial: Refuse weights whose licence forbids commercial use or is not known.
        device: Where the model goes.
        cache_dir: Where downloads are kept, if not in the hub's own cache.
        seed: Seed of random weights.

    Returns:
        The model in evaluation mode, and where its weights are from.

    Raises:
        ValueError: If the weights cannot be had, do not fit, or their licence does not allow the
            use.
    """
    return load_model(
        MAPANYTHING_FAMILY,
        source,
        commercial=commercial,
        device=device,
        cache_dir=cache_dir,
        seed=seed,
    )


def save_mapanything(model: MapAnything, path: Path) -> None:
    """Write a model's weights as safetensors together with its sizes, for `load_mapanything`.

    Args:
        model: The model.
        path: File to write, ending in ``.safetensors``.
    """
    save_model(MAPANYTHING_FAMILY, model, model.config, path)
