# SPDX-License-Identifier: Apache-2.0
"""Two models side by side, neither of them the truth."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .evaluation import Evaluation, evaluate
from .matching import MAX_TIME_DIFFERENCE_S
from .types import PosedModel


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model holds."""

    source: str
    kind: str
    num_images: int
    num_cameras: int
    """Different intrinsics."""
    num_points: int
    images_per_point: float
    """Mean number of images that see a point."""
    median_focal_px: float | None
    """``None`` without intrinsics in pixels."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models, and how far the second is from the first over the images that they share."""

    first: ModelFacts
    second: ModelFacts
    difference: Evaluation
    """The second judged by the first; images of one alone are left out and named."""


def compare(
    first: PosedModel,
    second: PosedModel,
    *,
    max_time_difference_s: float = MAX_TIME_DIFFERENCE_S,
) -> Comparison:
    """Compare two models over the images that both hold.

    Args:
        first: A model.
        second: Another of the same photos.
        max_time_difference_s: As in `evaluate`.

    Raises:
        ValueError: If they share no image, or names are ambiguous.
        ReconstructionError: If pixels need pycolmap and it is missing.
    """
    difference = evaluate(
        second, first, only_common=True, max_time_difference_s=max_time_difference_s
    )
    return Comparison(
        first=_facts(first),
        second=_facts(second),
        difference=difference,
    )


def _facts(model: PosedModel) -> ModelFacts:
    lenses = [lens for lens in model.lenses if lens is not None]
    focals = [lens.focal[0] for lens in lenses if lens.has_pixels]
    structure = model.structure
    num_points = 0 if structure is None else len(structure.xyz)
    return ModelFacts(
        source=model.source,
        kind=model.kind,
        num_images=len(model),
        num_cameras=len(set(lenses)),
        num_points=num_points,
        images_per_point=0.0 if structure is None else len(structure.obs_point) / num_points,
        median_focal_px=statistics.median(focals) if focals else None,
    )
