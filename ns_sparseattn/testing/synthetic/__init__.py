# SPDX-License-Identifier: Apache-2.0
"""Closed-form scenes with exact depth and cameras, for tests and for the demo's photos."""

from __future__ import annotations

from .photos import make_frames, write_photos
from .prediction import exact_prediction
from .scenes import SyntheticScene, View, look_at, make_plane, make_room
from .truth import no_points, true_scene

__all__ = [
    "SyntheticScene",
    "View",
    "exact_prediction",
    "look_at",
    "make_frames",
    "make_plane",
    "make_room",
    "no_points",
    "true_scene",
    "write_photos",
]
