# SPDX-License-Identifier: Apache-2.0
"""Make predicted cameras agree with the full-resolution photos, or say which do not."""

from __future__ import annotations

from .audit import Audit, ImageVerdict, audit_scene, contradiction
from .given import Given
from .options import AuditOptions, MatchOptions, RefineMode, RefineOptions
from .points import fill_points
from .run import Refined, refine_scene
from .stage import RefinedPrediction, refine_prediction

__all__ = [
    "Audit",
    "AuditOptions",
    "Given",
    "ImageVerdict",
    "MatchOptions",
    "RefineMode",
    "RefineOptions",
    "Refined",
    "RefinedPrediction",
    "audit_scene",
    "contradiction",
    "fill_points",
    "refine_prediction",
    "refine_scene",
]
