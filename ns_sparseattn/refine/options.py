# SPDX-License-Identifier: Apache-2.0
"""Options of features, matching, audit and refinement; every threshold with unit and source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..options import check_range

RefineMode = Literal["none", "fast", "full"]
FeatureName = Literal["sift", "aliked", "loma"]
RefinedCameraModel = Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "OPENCV"]


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How photos are compared with each other."""

    features: FeatureName = "sift"
    """Local features. aliked and loma need a pycolmap that was built with ONNX."""
    max_features: int = 8192
    """Features kept of one photo. COLMAP's default."""
    max_feature_size: int = 3200
    """Photos with a longer side than this are searched for features at this size, pixels. COLMAP's
    default for SIFT; bounds time and memory."""
    pairs_per_image: int = 7
    """Photos that each photo is matched with, chosen by predicted overlap; `full` doubles it."""
    min_overlap: float = 0.1
    """Pairs with a smaller predicted overlap are not matched unless nothing else ties the photos
    together; share of the surface seen."""
    overlap_margin: float = 0.1
    """Photos are taken to reach this much farther on each side when overlap is judged, share of
    their size: predicted poses are off by a few degrees."""
    max_viewing_angle_deg: float = 60.0
    """A surface seen from directions farther apart counts as not shared, degrees. SIFT matches up
    to about 50 degrees; the rest is margin for what the prediction is off."""
    surface_samples: int = 256
    """Points of each photo's predicted surface that overlap is judged by."""
    partner_features: int = 768
    """Largest features of a photo that are compared when photos without predicted partners look
    for others."""
    partners_per_image: int = 10
    """Photos that a photo whose predicted place fails is matched with."""
    match_device: Literal["auto", "cpu"] = "auto"
    """auto: features and matching on the GPU if pycolmap was built with CUDA, which the wheels on
    PyPI are not. cpu: never."""
    match_threads: int = 0
    """CPU threads of features, matching and adjustment; 0 takes all cores."""

    def __post_init__(self) -> None:
        check_range("max_features", self.max_features, 64, 1_000_000)
        check_range("max_feature_size", self.max_feature_size, 64, 100_000, unit=" pixels")
        check_range("pairs_per_image", self.pairs_per_image, 1, 1_000)
        check_range("min_overlap", self.min_overlap, 0.0, 1.0)
        check_range("overlap_margin", self.overlap_margin, 0.0, 1.0)
        check_range("max_viewing_angle_deg", self.max_viewing_angle_deg, 1.0, 180.0)
        check_range("surface_samples", self.surface_samples, 16, 100_000)
        check_range("partner_features", self.partner_features, 16, 100_000)
        check_range("partners_per_image", self.partners_per_image, 1, 1_000)
        check_range("match_threads", self.match_threads, 0, 1024)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """When matches and poses are said to agree."""

    rotation_tolerance_deg: float = 15.0
    """A pair contradicts its poses if the relative rotation must be turned by more than this to
    explain the matches, degrees. Feed-forward networks are right to a few degrees or not at all."""
    epipolar_tolerance_px: float = 4.0
    """Poses are good if the median match of a pair lies closer than this to its epipolar line,
    original pixels. COLMAP's threshold for inliers."""
    firm_rotation_deg: float = 5.0
    """A pair ties two images firmly if its poses are good and its relative rotation need not be
    turned by more than this to explain the matches, degrees. After an adjustment right pairs are
    right to a fraction of a degree; parts of a scene that do not fit each other were 9 and more
    apart."""
    min_pair_matches: int = 15
    """Verified matches that make a pair count. COLMAP's default."""
    max_pair_weight: int = 200
    """Matches of a pair that count at most, so that one near-copy does not outvote the others."""
    max_checked_matches: int = 192
    """Matches of a pair that are looked at, spread evenly; bounds the time."""
    min_agreeing_share: float = 0.3
    """An image is contradicted if a smaller share of its matches agrees with its pose. Wrong poses
    reach 0.01, right ones 0.4 and more on the sets measured (docs/refinement.md)."""
    min_good_share: float = 0.5
    """An image is good if at least this share of its matches lies within the epipolar tolerance."""
    min_trusted_share: float = 0.7
    """A scene is trusted if at least this share of its images is good and in one component."""
    max_focal_change: float = 2.0
    """A scene is dropped if its adjustment made a focal length longer or shorter than predicted by
    more than this factor: it has found a way out, not the camera. Focal lengths that begin a half
    off are put right (docs/refinement.md)."""
    max_rotation_only_px: float = 2.0
    """A pair shows no parallax if a pure rotation explains its median match this well, pixels."""
    min_rotation_only_share: float = 0.9
    """The camera only turned if at least this share of the pairs shows no parallax."""
    reference_rotation_deg: float = 6.0
    """A model contradicts a prediction if its relative rotations differ by more than this in the
    median pair, degrees."""
    reference_position_share: float = 0.15
    """A model contradicts a prediction if, after the best similarity, the median camera lies
    farther off than this share of the scene's extent."""

    def __post_init__(self) -> None:
        check_range("rotation_tolerance_deg", self.rotation_tolerance_deg, 0.1, 90.0)
        check_range("epipolar_tolerance_px", self.epipolar_tolerance_px, 0.01, 1_000.0)
        check_range("firm_rotation_deg", self.firm_rotation_deg, 0.1, 90.0)
        check_range("min_pair_matches", self.min_pair_matches, 5, 100_000)
        check_range("max_pair_weight", self.max_pair_weight, 1, 1_000_000)
        check_range("max_checked_matches", self.max_checked_matches, 8, 1_000_000)
        for name in (
            "min_agreeing_share",
            "min_good_share",
            "min_trusted_share",
            "min_rotation_only_share",
        ):
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("max_focal_change", self.max_focal_change, 1.0, 1_000.0)
        check_range("max_rotation_only_px", self.max_rotation_only_px, 0.0, 1_000.0)
        check_range("reference_rotation_deg", self.reference_rotation_deg, 0.1, 180.0)
        check_range("reference_position_share", self.reference_position_share, 0.001, 10.0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Thresholds of one round of triangulation and adjustment."""

    max_angle_deg: float
    """Rays of a track may miss its point by this, degrees."""
    max_error_px: float
    """Observations farther from their point's projection are dropped, pixels."""
    robust_scale_px: float
    """Scale of the robust loss, pixels."""
    refine_distortion: bool
    """Whether the distortion is free; with wrong poses it would absorb their errors."""
    points_per_image: int | None
    """Points that an image keeps at most, the longest tracks first; ``None`` for all. Poses that
    are degrees off do not need thousands."""
    tolerance: float
    """Relative change of the cost that ends the adjustment. Rounds that others follow may stop
    early; the last must not, or what few matches tie, such as the closure of a loop, stays open."""
    skipped_below_px: float = 0.0
    """The round is left out if the median error before it is below this, pixels."""


FAST_ROUNDS = (
    # 12 degrees and 60 pixels hold the errors of poses that are 3 degrees, 5 per cent of the
    # extent and 10 per cent of the focal length off. The third round has COLMAP's own thresholds.
    # The last weighs matches as exactly as SIFT finds them, to a fraction of a pixel, which halves
    # the error of the focal length where few photos overlap.
    Round(
        max_angle_deg=12.0,
        max_error_px=60.0,
        robust_scale_px=15.0,
        refine_distortion=False,
        points_per_image=300,
        tolerance=1e-4,
    ),
    Round(
        max_angle_deg=4.0,
        max_error_px=15.0,
        robust_scale_px=4.0,
        refine_distortion=False,
        points_per_image=300,
        tolerance=1e-4,
        skipped_below_px=1.0,
    ),
    Round(
        max_angle_deg=2.0,
        max_error_px=4.0,
        robust_scale_px=1.0,
        refine_distortion=True,
        points_per_image=500,
        tolerance=1e-5,
        skipped_below_px=0.25,
    ),
    # Hundreds of the longest tracks in an image leave poses as right as all tracks do, in a third
    # of the time.
    Round(
        max_angle_deg=2.0,
        max_error_px=4.0,
        robust_scale_px=0.25,
        refine_distortion=True,
        points_per_image=500,
        tolerance=1e-6,
    ),
)
FULL_ROUNDS = (*FAST_ROUNDS, replace(FAST_ROUNDS[-1], points_per_image=None))


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How predicted cameras are corrected by what the photos show."""

    refine: RefineMode = "fast"
    """none: keep the prediction. fast: match photos that the prediction says overlap, audit,
    triangulate and adjust. full: twice the pairs and more rounds."""
    camera_model: RefinedCameraModel = "SIMPLE_RADIAL"
    """Camera model after refinement, COLMAP's name."""
    hold_intrinsics: bool = False
    """Keep all cameras as they are, also predicted ones. Those of ``--intrinsics`` are kept
    anyway."""
    adjust_known_intrinsics: bool = False
    """Let cameras that are given (``--intrinsics``) be adjusted, from the given values on; without
    it they are held fixed."""
    hold_poses: bool = False
    """Keep all poses as they are, also predicted ones: only triangulate and audit. Those of
    ``--poses`` are kept anyway."""
    known_position_sigma: float | None = None
    """Let poses that are given (``--poses``) be adjusted, their positions weighted by this standard
    deviation, in the unit of the poses; for GPS or odometry. None: they are held fixed."""
    accept_untrusted: bool = False
    """Warn of a scene that cannot be trusted instead of exiting with code 3."""
    keep_database: bool = False
    """Keep COLMAP's database of features and matches in the scene folder, colmap/database.db."""
    prior_position_share: float = 0.2
    """How far a predicted camera centre is expected to be off, share of the scene's extent: the
    weight of the prediction in the adjustment. With less, the error of the prediction bends scenes
    whose loops few matches close (docs/refinement.md)."""
    min_image_observations: int = 15
    """An image that sees fewer triangulated points keeps its predicted pose."""
    min_registration_inliers: int = 20
    """Points that a contradicted image must see to be placed anew by its matches. COLMAP asks for
    30 while it knows no pose at all."""
    registration_error_px: float = 12.0
    """Largest reprojection error of these points, pixels. COLMAP's default."""
    min_track_angle_deg: float = 1.0
    """Points seen under a smaller angle are dropped, degrees."""
    match: MatchOptions = field(default_factory=MatchOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)

    def __post_init__(self) -> None:
        check_range("prior_position_share", self.prior_position_share, 1e-6, 1e6)
        if self.known_position_sigma is not None:
            check_range("known_position_sigma", self.known_position_sigma, 1e-9, 1e9)
        if self.hold_intrinsics and self.adjust_known_intrinsics:
            raise ValueError("`hold_intrinsics` and `adjust_known_intrinsics` exclude each other.")
        if self.hold_poses and self.known_position_sigma is not None:
            raise ValueError("`hold_poses` and `known_position_sigma` exclude each other.")
        check_range("min_image_observations", self.min_image_observations, 4, 100_000)
        check_range("min_registration_inliers", self.min_registration_inliers, 6, 100_000)
        check_range("registration_error_px", self.registration_error_px, 0.1, 1_000.0)
        check_range("min_track_angle_deg", self.min_track_angle_deg, 0.0, 90.0)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of the mode."""
        return FULL_ROUNDS if self.refine == "full" else FAST_ROUNDS

    @property
    def pairs_per_image(self) -> int:
        """Pairs per image of the mode."""
        return self.match.pairs_per_image * (2 if self.refine == "full" else 1)
