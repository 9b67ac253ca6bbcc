# SPDX-License-Identifier: Apache-2.0
"""Typed options of every stage. The text under a field is its documentation and its ``--help`` at once.

Every threshold of the pipeline is a field here, with its unit and the source of its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ResizeRule = Literal["fit", "crop", "pad"]
CameraMode = Literal["auto", "single", "per-folder", "per-image"]
CameraType = Literal["pinhole", "simple_pinhole", "perspective"]


def check_range(name: str, value: float, low: float, high: float, *, unit: str = "") -> None:
    """Raise ``ValueError`` unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be between {low:g} and {high:g}{unit}, got {value:g}.")


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """How photos are found and prepared."""

    masks: Path | None = None
    """Folder of mask images matched by name (a.jpg -> a.png, a.jpg.png or a.jpg); black pixels are ignored."""
    skip_broken: bool = False
    """Leave out files that cannot be read, and list them, instead of stopping."""
    resize: ResizeRule = "fit"
    """fit: the long side becomes `long_side`, nothing is lost. crop: VGGT's own rule, the width becomes `long_side`
    and rows of portrait photos are cut. pad: fit, then padded with white to a square."""
    long_side: int = 518
    """Longest side of the network's input, pixels. VGGT was trained at 518."""
    patch_size: int = 14
    """Both sides of the network's input are multiples of this, pixels."""

    def __post_init__(self) -> None:
        check_range("long_side", self.long_side, self.patch_size, 8192, unit=" pixels")
        check_range("patch_size", self.patch_size, 1, 64, unit=" pixels")
        if self.long_side % self.patch_size:
            raise ValueError(
                f"`long_side` must be a multiple of the patch size {self.patch_size}, got {self.long_side}."
            )


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a prediction becomes a scene."""

    camera_mode: CameraMode = "auto"
    """Which photos share one camera. auto: same EXIF camera, lens and focal length, and same size."""
    camera_type: CameraType = "pinhole"
    """Camera model that is written: pinhole (fx, fy), simple_pinhole (one f), perspective (OPENCV, no distortion)."""
    max_points: int = 200_000
    """Points kept at most; a voxel grid thins them evenly. Trainers start well from 200 000 to 500 000."""
    confidence_percentile: float = 25.0
    """Share of the least confident pixels that make no points, per cent of all valid pixels."""
    depth_tolerance: float = 0.02
    """Two views agree on a point if their depths differ by less than this share."""
    min_views: int = 2
    """Views that must agree on a point for it to be kept."""
    max_track_length: int = 30
    """Observations kept of one point; the best agreeing views stay."""
    edge_tolerance: float = 0.05
    """Pixels whose 3 x 3 neighbourhood spans more than this share of their depth lie on an edge and make no point."""

    def __post_init__(self) -> None:
        check_range("max_points", self.max_points, 1, 100_000_000)
        check_range("confidence_percentile", self.confidence_percentile, 0.0, 100.0, unit=" per cent")
        check_range("depth_tolerance", self.depth_tolerance, 1e-6, 1.0)
        check_range("min_views", self.min_views, 1, 1_000)
        check_range("max_track_length", self.max_track_length, 2, 100_000)
        check_range("edge_tolerance", self.edge_tolerance, 1e-6, 10.0)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written."""

    num_downscales: int = 3
    """Number of times to halve the photos: 3 writes images_2, images_4 and images_8."""
    colmap_text: bool = False
    """Also write the COLMAP model as text, in colmap/text."""
    overwrite: bool = False
    """Replace an existing output folder that this tool wrote."""

    def __post_init__(self) -> None:
        check_range("num_downscales", self.num_downscales, 0, 8)
