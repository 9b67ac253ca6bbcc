# SPDX-License-Identifier: Apache-2.0
"""Predictions become scenes: cameras, posed images, and points with colours and tracks."""

from __future__ import annotations

from ..options import SceneOptions
from .build import build_scene
from .types import Camera, ImageSummary, Points, PosedImage, Scene
from .up import Levelling, estimate_up, level_world

__all__ = [
    "Camera",
    "ImageSummary",
    "Levelling",
    "Points",
    "PosedImage",
    "Scene",
    "SceneOptions",
    "build_scene",
    "estimate_up",
    "level_world",
]
