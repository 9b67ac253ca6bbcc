# SPDX-License-Identifier: Apache-2.0
"""Networks that turn photos into cameras and depth, and the parts that they share."""

from __future__ import annotations

from .compute import InferenceOptions
from .mapanything import MapAnything, MapAnythingOutput
from .mapanything_config import MapAnythingConfig
from .mapanything_weights import load_mapanything, save_mapanything
from .pi3 import Pi3, Pi3Output
from .pi3_config import Pi3Config, Pi3XConfig
from .pi3_weights import load_pi3, load_pi3x, save_pi3, save_pi3x
from .pi3x import Pi3X
from .priors import FramePrior
from .registry import MODELS, ModelEntry, ModelName, find_model, model_names
from .vggt import VGGT, VGGTOutput
from .vggt_config import VGGTConfig
from .weight_set import WeightSet, WeightsInfo
from .weights import load_vggt, save_vggt

__all__ = [
    "MODELS",
    "VGGT",
    "FramePrior",
    "InferenceOptions",
    "MapAnything",
    "MapAnythingConfig",
    "MapAnythingOutput",
    "ModelEntry",
    "ModelName",
    "Pi3",
    "Pi3Config",
    "Pi3Output",
    "Pi3X",
    "Pi3XConfig",
    "VGGTConfig",
    "VGGTOutput",
    "WeightSet",
    "WeightsInfo",
    "find_model",
    "load_mapanything",
    "load_pi3",
    "load_pi3x",
    "load_vggt",
    "model_names",
    "save_mapanything",
    "save_pi3",
    "save_pi3x",
    "save_vggt",
]
