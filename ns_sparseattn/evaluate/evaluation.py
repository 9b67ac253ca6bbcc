# SPDX-License-Identifier: Apache-2.0
"""One model judged by another: matching, all errors, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..geometry import camera_centers
from .alignment import MIN_IMAGES, TrajectoryError, trajectory_error
from .intrinsics import IntrinsicsError, intrinsics_error
from .matching import MAX_TIME_DIFFERENCE_S, Match, match_names, match_times
from .pairs import Curve, PairErrors, pair_errors, summarise
from .pixels import PixelError, pixel_error
from .types import PosedModel


@dataclass(frozen=True, kw_only=True)
class PairFigures:
    """Figures over all pairs of images of the reference."""

    num_pairs: int
    """Pairs of which both images have an estimate."""
    num_missing: int
    """Further pairs, counted as off by 180 degrees in areas and shares."""
    num_without_direction: int
    """Pairs of reference cameras at one place: only their rotation is judged."""
    rotation: Curve
    """``rotation.recall`` is RRA."""
    direction: Curve
    """``direction.recall`` is RTA."""
    larger: Curve
    """Of the larger of both; ``larger.auc`` is what is called AUC without a further word."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How an estimate compares with a reference."""

    estimate: str
    reference: str
    matched_by: str
    num_images: int
    """Images of the reference that count."""
    missing: tuple[str, ...]
    """Those of them without an estimate: failures."""
    extra: tuple[str, ...]
    """Images of the estimate without a reference: not judged."""
    unmatched: tuple[str, ...]
    """Images of the reference without an estimate that were left out, not counted as failures."""
    pairs: PairFigures
    trajectory: TrajectoryError | None
    """``None`` with fewer than three images."""
    intrinsics: IntrinsicsError | None
    pixels: PixelError | None
    notes: tuple[str, ...]
    """Sentences about what was left out or could not be measured."""


def evaluate(
    estimate: PosedModel,
    reference: PosedModel,
    *,
    photos: Sequence[str] | None = None,
    only_common: bool = False,
    max_time_difference_s: float = MAX_TIME_DIFFERENCE_S,
) -> Evaluation:
    """Judge poses, intrinsics and, with points, pixels of an estimate by a reference.

    Images are matched by name (see `matching`), or by time if one side is a trajectory. Images of
    the reference without an estimate are failures; a trajectory as reference lists poses rather
    than images, so that it cannot say which are missing unless `photos` does.

    Args:
        estimate: The model to judge.
        reference: What is taken for the truth.
        photos: Names of the photos that were to be posed, if the reference holds more.
        only_common: Whether images of one model alone are left out instead of counted as failures.
        max_time_difference_s: Largest difference of an image's and a pose's time.

    Returns:
        All figures; what could not be measured is ``None`` and has a note.

    Raises:
        ValueError: If no image can be matched, or only ambiguously.
        ReconstructionError: If pixels need pycolmap and it is missing.
    """
    notes: list[str] = []
    if photos is not None:
        reference, num_without = _restrict(reference, photos, max_time_difference_s)
        if num_without:
            notes.append(f"{num_without} of {len(photos)} photos have no reference.")
    match = _match(estimate, reference, max_time_difference_s)
    truth_of = {truth: index for index, truth in match.pairs}
    extra = _others(estimate.names, truth_of.values())
    is_dense = reference.has_times and not estimate.has_times
    lone = () if is_dense else _others(reference.names, truth_of)
    missing = () if only_common else lone
    common = sorted(truth_of)
    posed = estimate.select([truth_of[truth] for truth in common])
    truth = reference.select(common)
    errors = pair_errors(
        posed.cam_from_world, truth.cam_from_world, num_missing_images=len(missing)
    )
    trajectory, pixels, more_notes = _aligned(posed, truth)
    intrinsics = intrinsics_error(posed.lenses, truth.lenses)
    if intrinsics is None:
        notes.append("No focal lengths: not both models hold intrinsics of images of one shape.")
    return Evaluation(
        estimate=estimate.source,
        reference=reference.source,
        matched_by=match.rule,
        num_images=len(common) + len(missing),
        missing=missing,
        extra=extra,
        unmatched=lone if only_common else (),
        pairs=_figures(errors),
        trajectory=trajectory,
        intrinsics=intrinsics,
        pixels=pixels,
        notes=(*notes, *more_notes),
    )


def _match(first: PosedModel, second: PosedModel, max_difference_s: float) -> Match:
    """Match by time if either is a trajectory."""
    if second.has_times:
        return _by_second(match_times(first.names, second.names, max_difference_s=max_difference_s))
    if first.has_times:
        match = match_times(second.names, first.names, max_difference_s=max_difference_s)
        return Match(pairs=tuple((b, a) for a, b in match.pairs), rule=match.rule)
    return match_names(first.names, second.names)


def _by_second(match: Match) -> Match:
    return Match(pairs=tuple(sorted(match.pairs, key=lambda pair: pair[1])), rule=match.rule)


def _restrict(
    reference: PosedModel, photos: Sequence[str], max_difference_s: float
) -> tuple[PosedModel, int]:
    """Return the reference of the photos alone, under their names, and how many have none."""
    if reference.has_times:
        match = match_times(photos, reference.names, max_difference_s=max_difference_s)
    else:
        match = match_names(photos, reference.names)
    pairs = sorted(match.pairs)
    kept = reference.select(
        [truth for _, truth in pairs], names=[photos[photo] for photo, _ in pairs]
    )
    return kept, len(photos) - len(pairs)


def _others(names: Sequence[str], matched: Iterable[int]) -> tuple[str, ...]:
    taken = set(matched)
    return tuple(name for index, name in enumerate(names) if index not in taken)


def _figures(errors: PairErrors) -> PairFigures:
    missing = errors.num_missing
    rotation, direction = errors.rotation_deg, errors.direction_deg
    return PairFigures(
        num_pairs=len(errors),
        num_missing=missing,
        num_without_direction=int(direction.isnan().sum()),
        rotation=summarise(rotation, rotation, num_missing=missing),
        direction=summarise(direction, errors.vggt_direction_deg, num_missing=missing),
        larger=summarise(errors.larger_deg, errors.vggt_larger_deg, num_missing=missing),
    )


def _aligned(
    posed: PosedModel, truth: PosedModel
) -> tuple[TrajectoryError | None, PixelError | None, list[str]]:
    """Measure what needs both worlds aligned; also return notes about what could not be."""
    if len(truth) < MIN_IMAGES:
        return None, None, [f"No trajectory error: that needs {MIN_IMAGES} images in both models."]
    centers = camera_centers(posed.cam_from_world)
    trajectory, similarity = trajectory_error(centers, camera_centers(truth.cam_from_world))
    if truth.structure is None:
        return trajectory, None, []
    if not similarity.scale:
        return trajectory, None, ["No pixel errors: the estimated cameras stand at one place."]
    pixels = pixel_error(posed, truth, similarity.inverse())
    notes = (
        [] if pixels else ["No pixel errors: no image has points and intrinsics in both models."]
    )
    return trajectory, pixels, notes
