# SPDX-License-Identifier: Apache-2.0
"""The networks that come with the package, by the names that commands call them by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from .loading import ModelFamily
from .mapanything_weights import MAPANYTHING_FAMILY
from .pi3_weights import PI3_FAMILY, PI3X_FAMILY
from .weights import VGGT_FAMILY

ModelName = Literal["vggt", "pi3", "pi3x", "mapanything"]

MODELS: Mapping[str, ModelFamily[Any]] = MappingProxyType(
    {
        "vggt": VGGT_FAMILY,
        "pi3": PI3_FAMILY,
        "pi3x": PI3X_FAMILY,
        "mapanything": MAPANYTHING_FAMILY,
    }
)
"""Kinds of networks by name."""


def find_model(name: str) -> ModelFamily[Any]:
    """Return the kind of network of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in MODELS:
        raise ValueError(f"`model` must be one of {', '.join(MODELS)}, got {name!r}.")
    return MODELS[name]
