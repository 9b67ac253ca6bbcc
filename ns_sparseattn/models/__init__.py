# SPDX-License-Identifier: Apache-2.0
"""Networks that turn photos into cameras and depth, and the parts that they share."""

from __future__ import annotations

from .compute import InferenceOptions
from .vggt import VGGT, VGGTOutput
from .vggt_config import VGGTConfig
from .weight_set import WeightSet, WeightsInfo
from .weights import load_vggt, save_vggt

__all__ = [
    "VGGT",
    "InferenceOptions",
    "VGGTConfig",
    "VGGTOutput",
    "WeightSet",
    "WeightsInfo",
    "load_vggt",
    "save_vggt",
]
