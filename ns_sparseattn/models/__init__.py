# SPDX-License-Identifier: Apache-2.0
"""Networks that turn photos into cameras and depth, and the parts that they share."""

from __future__ import annotations

from .compute import InferenceOptions
from .mapanything import MapAnything, MapAnythingOutput
from .mapanything_config import MapAnythingConfig
from .mapanything_weights import load_mapanything, save_mapanything
from .priors import FramePrior
from .vggt import VGGT, VGGTOutput
from .vggt_config import VGGTConfig
from .weight_set import WeightSet, WeightsInfo
from .weights import load_vggt, save_vggt

__all__ = [
    "VGGT",
    "FramePrior",
    "InferenceOptions",
    "MapAnything",
    "MapAnythingConfig",
    "MapAnythingOutput",
    "VGGTConfig",
    "VGGTOutput",
    "WeightSet",
    "WeightsInfo",
    "load_mapanything",
    "load_vggt",
    "save_mapanything",
    "save_vggt",
]
