# SPDX-License-Identifier: Apache-2.0
"""From photos to a prediction: which photo the network sees first, what it is told, what holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .attention import AttentionPlan
from .conditioning import Known, apply_known
from .frames.masks import name_some
from .frames.types import Frames
from .models.compute import InferenceOptions
from .models.reference import choose_reference
from .models.registry import ModelEntry
from .options import SceneOptions
from .prediction import Prediction
from .stages import Progress, StageRecorder

_logger = logging.getLogger(__name__)

AUTO, FIRST = "auto", "first"
"""Names of the ways to choose a reference; anything else is the name of a photo."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A prediction of the photos in their own order, and what it is relative to."""

    prediction: Prediction
    reference: str | None
    """Photo that the network saw first; none if no photo is special to it."""


def predict_scene(
    model: Any,
    entry: ModelEntry,
    photos: Frames,
    *,
    plan: AttentionPlan,
    inference: InferenceOptions,
    scene: SceneOptions,
    reference: str = AUTO,
    known: Known | None = None,
    recorder: StageRecorder | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """Run a network on photos, with all that is known of them.

    Args:
        model: The network that `entry` builds.
        entry: What it can be told, and whether a photo is special to it.
        photos: The photos.
        plan: Attention of its global layers.
        inference: Precision, chunks, memory.
        scene: How photos share cameras.
        reference: ``auto``, ``first``, or the name of a photo.
        known: What is known of the photos.
        recorder: Records the choice of the reference; the network records itself.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The prediction in the order of the photos.

    Raises:
        ValueError: If no photo has the name of the reference, or its pose is unknown while others
            are told.
        ReconstructionError: If the run does not fit in memory.
    """
    if entry.has_reference and reference == AUTO and recorder is not None:
        with recorder.stage("reference"):
            first = _reference_index(model, entry, photos, reference, known, inference)
    else:
        first = _reference_index(model, entry, photos, reference, known, inference)
    order = [first, *(index for index in range(len(photos)) if index != first)]
    inputs: dict[str, Any] = {}
    usable = photos.usable_pixels()
    if entry.takes_masks and usable is not None:
        inputs["masks"] = usable[order] if first else usable
    priors = None if known is None else known.priors(photos.frames, entry)
    if priors is not None and any(prior is not None for prior in priors):
        inputs["priors"] = [priors[index] for index in order]
    prediction = model.predict(
        # Copied only if the order changes.
        photos.images[order] if first else photos.images,
        plan=plan,
        options=inference,
        progress=progress,
        **inputs,
    )
    if first:
        prediction = _reordered(prediction, order)
    if known is not None:
        prediction = apply_known(prediction, known, photos, scene)
        prediction = replace(prediction, notes=(*prediction.notes, *_untold(known, photos, entry)))
    name = photos.frames[first].name if entry.has_reference else None
    return Predicted(prediction=prediction, reference=name)


def _reference_index(
    model: Any,
    entry: ModelEntry,
    photos: Frames,
    reference: str,
    known: Known | None,
    inference: InferenceOptions,
) -> int:
    names = photos.names
    if reference not in (AUTO, FIRST) and reference not in names:
        raise ValueError(
            f"`reference` must be auto, first or the name of a photo such as {names[0]}, "
            f"got {reference!r}."
        )
    if not entry.has_reference:
        if reference != AUTO:
            _logger.warning("`reference` has no effect: no photo is special to %s.", entry.title)
        return 0
    # Told poses are relative to the first photo's.
    posed = known.posed if known is not None and "poses" in entry.told else ()
    if reference == AUTO:
        index = choose_reference(
            model,
            photos.images,
            masks=photos.usable_pixels(),
            candidates=posed or None,
            options=inference,
        )
        _logger.info("The reference view is %s, which overlaps the others most.", names[index])
        return index
    index = 0 if reference == FIRST else names.index(reference)
    if posed and index not in posed:
        raise ValueError(
            f"`reference` must be a photo whose pose is known, got {names[index]}: {entry.title} "
            "takes poses relative to it. Use auto, or one of "
            f"{name_some([names[i] for i in posed])}."
        )
    return index


def _reordered(prediction: Prediction, order: Sequence[int]) -> Prediction:
    """Return a prediction of photos in some order in their own order."""
    place = torch.argsort(torch.tensor(order))
    return replace(
        prediction,
        cam_from_world=prediction.cam_from_world[place],
        intrinsics=prediction.intrinsics[place],
        depth=prediction.depth[place],
        confidence=prediction.confidence[place],
    )


def _untold(known: Known, photos: Frames, entry: ModelEntry) -> tuple[str, ...]:
    """Say which known depth could not be told to the network."""
    if not ("depth" in entry.told and entry.depth_needs_intrinsics):
        return ()
    names = [
        frame.name
        for frame, depth, intrinsics in zip(
            photos.frames, known.depth, known.intrinsics, strict=True
        )
        if depth is not None and intrinsics is None
    ]
    if not names:
        return ()
    return (
        f"{entry.title} was not told the depth of {name_some(names)}, which it takes only together "
        "with intrinsics; the scene has it.",
    )
