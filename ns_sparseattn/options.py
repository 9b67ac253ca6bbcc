# SPDX-License-Identifier: Apache-2.0
"""Typed options of every stage.

The text under a field is its documentation and its ``--help`` at once. Every threshold of the
pipeline is a field here, with its unit and the source of its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Suppress

ResizeRule = Literal["fit", "crop", "pad"]
SizingRule = Literal["auto", "fit", "crop", "pad", "area", "cover"]
DEFAULT_LONG_SIDE = 518
"""Longest side of the network's input that all published models were trained at, pixels."""

CameraMode = Literal["auto", "single", "per-folder", "per-image"]
CameraType = Literal["pinhole", "simple_pinhole", "perspective"]
WorldFrame = Literal["level", "model"]


def check_range(name: str, value: float, low: float, high: float, *, unit: str = "") -> None:
    """Raise ``ValueError`` unless ``low <= value <= high``."""
    if not low <= value <= high:
        # Digits enough that a hundred million is written out.
        raise ValueError(
            f"`{name}` must be between {low:.12g} and {high:.12g}{unit}, got {value:.12g}."
        )


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """How photos are found and prepared."""

    masks: Path | None = None
    """Folder of mask images matched by name (a.jpg -> a.png, a.jpg.png or a.jpg); black pixels are
    ignored."""
    skip_broken: bool = False
    """Leave out files that cannot be read, and list them, instead of stopping."""
    resize: SizingRule = "auto"
    """auto: the rule of the model, which is fit for VGGT, area for Pi3 and Pi3X, cover for
    MapAnything. fit: the long side becomes `long_side`, nothing is lost. crop: VGGT's own rule, the
    width becomes `long_side` and rows of portrait photos are cut. pad: fit, then padded with white
    to a square. area: Pi3's rule, a number of pixels, 255 000 at the default `long_side`. cover:
    MapAnything's rule, all photos are cut to the nearest of ten shapes."""
    long_side: int | None = None
    """Longest side of the network's input, pixels; for area, what the number of pixels goes with.
    None: what the weights were trained at, which is 518 for all that are published and 168 for
    tiny."""
    patch_size: Annotated[int, Suppress] = 14
    """Both sides of the network's input are multiples of this, pixels. A property of the model, and
    therefore no flag of the command line."""

    def __post_init__(self) -> None:
        check_range("patch_size", self.patch_size, 1, 64, unit=" pixels")
        if self.long_side is None:
            return
        check_range("long_side", self.long_side, self.patch_size, 8192, unit=" pixels")
        if self.long_side % self.patch_size:
            raise ValueError(
                f"`long_side` must be a multiple of the patch size {self.patch_size}, "
                f"got {self.long_side}."
            )


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a prediction becomes a scene."""

    camera_mode: CameraMode = "auto"
    """Which photos share one camera. auto: same EXIF camera, lens and focal length, and same
    size."""
    camera_type: CameraType = "pinhole"
    """Camera model that is written: pinhole (fx, fy), simple_pinhole (one f), perspective (OPENCV,
    no distortion)."""
    world: WorldFrame = "level"
    """level: the world is turned so that up is -y (+z in nerfstudio's files), as the cameras tell;
    scale and origin stay. model: the model's own world, that of the first camera for most."""
    max_points: int = 200_000
    """Points kept at most; a voxel grid thins them evenly. Trainers start well from 200 000 to 500
    000."""
    confidence_percentile: float = 25.0
    """Share of the least confident pixels that make no points, per cent of all valid pixels."""
    depth_tolerance: float = 0.02
    """Two views agree on a point if their depths differ by less than this share."""
    min_views: int = 2
    """Views that must agree on a point for it to be kept."""
    max_track_length: int = 30
    """Observations kept of one point; the best agreeing views stay."""
    edge_tolerance: float = 0.05
    """Pixels whose 3 x 3 neighbourhood spans more than this share of their depth lie on an edge and
    make no point."""
    candidates_per_point: float = 4.0
    """Pixels tried per point of `max_points`, spread evenly over the photos: bounds memory and
    time. With 4, enough remain after the filters on all scenes tried."""
    min_candidates: int = 20_000
    """Pixels tried at least, however few points are wanted: they show whether the views agree."""
    min_fov_deg: float = 5.0
    """Predicted focal lengths with a narrower field of view, across or down, are replaced, degrees.
    A 500 mm telephoto lens on a full-frame camera has 4.1 across."""
    max_fov_deg: float = 170.0
    """Predicted focal lengths with a wider field of view, across or down, are replaced, degrees.
    Near 180 no pinhole camera exists."""
    default_focal_factor: float = 1.2
    """Focal length assumed when neither the model nor EXIF knows it, as a share of the photo's
    longer side. This is COLMAP's `default_focal_length_factor`."""
    rotation_tolerance: float = 0.1
    """A predicted rotation whose matrix differs by more than this (Frobenius norm) from every
    rotation is no pose."""
    min_agreeing_points: int = 100
    """With fewer points that two views agree on, unchecked points of single views are kept and a
    note says so. Less than 100 points tie no scene together."""
    min_agreement_share: float = 0.1
    """A note warns if a smaller share of all pixels tried is confirmed by other views. Overlapping
    photos of a static scene reach 0.5 and more with exact depth."""
    max_unchecked_points: int = 20_000
    """Points of single views kept at most when the views do not agree; enough to look at, too few
    to train on."""
    min_triangulation_angle_deg: float = 1.5
    """A note warns if the median point is seen under a smaller angle between its views, degrees.
    This is COLMAP's `filter_min_tri_angle`: below it, depth cannot be checked between views."""

    max_roll_deg: float = 15.0
    """Up is told from the cameras only if the median photo is tilted sideways by less than this,
    degrees. Hand-held photos are within a few degrees; chosen well above."""
    min_heading_spread_deg: float = 5.0
    """Cameras whose x axes differ by less than this (root mean square), degrees, look the same way;
    how far they all look up or down is then not known. Chosen: for two photos at this bound, rolls
    of 2 degrees make an error of 16 degrees, no better than the guess that is made below it."""

    def __post_init__(self) -> None:
        check_range("max_points", self.max_points, 1, 100_000_000)
        check_range(
            "confidence_percentile", self.confidence_percentile, 0.0, 100.0, unit=" per cent"
        )
        check_range("depth_tolerance", self.depth_tolerance, 1e-6, 1.0)
        check_range("min_views", self.min_views, 1, 1_000)
        check_range("max_track_length", self.max_track_length, 2, 100_000)
        check_range("edge_tolerance", self.edge_tolerance, 1e-6, 10.0)
        if self.min_views > self.max_track_length:
            raise ValueError(
                f"`min_views` must not exceed `max_track_length` {self.max_track_length}, "
                f"got {self.min_views}."
            )
        check_range("candidates_per_point", self.candidates_per_point, 1.0, 1_000.0)
        check_range("min_candidates", self.min_candidates, 1, 100_000_000)
        check_range("min_fov_deg", self.min_fov_deg, 0.01, 179.0, unit=" degrees")
        check_range("max_fov_deg", self.max_fov_deg, self.min_fov_deg, 179.9, unit=" degrees")
        check_range("default_focal_factor", self.default_focal_factor, 0.1, 100.0)
        check_range("rotation_tolerance", self.rotation_tolerance, 1e-6, 1.0)
        check_range("min_agreeing_points", self.min_agreeing_points, 1, 1_000_000)
        check_range("min_agreement_share", self.min_agreement_share, 0.0, 1.0)
        check_range("max_unchecked_points", self.max_unchecked_points, 1, 100_000_000)
        check_range(
            "min_triangulation_angle_deg",
            self.min_triangulation_angle_deg,
            0.0,
            90.0,
            unit=" degrees",
        )
        check_range("max_roll_deg", self.max_roll_deg, 0.1, 45.0, unit=" degrees")
        check_range(
            "min_heading_spread_deg", self.min_heading_spread_deg, 0.1, 45.0, unit=" degrees"
        )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written."""

    num_downscales: int = 3
    """Number of times to halve the photos: 3 writes images_2, images_4 and images_8."""
    colmap_text: bool = False
    """Also write the COLMAP model as text, in colmap/text."""
    undistort: bool = False
    """Also write the scene without lens distortion, in undistorted/: PINHOLE cameras, and photos
    bent straight, for trainers that know no distortion."""
    overwrite: bool = False
    """Replace an existing output folder that this tool wrote."""

    def __post_init__(self) -> None:
        check_range("num_downscales", self.num_downscales, 0, 8)
