# SPDX-License-Identifier: Apache-2.0
"""From prediction to scene, with refinement in between: what the pipeline calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..frames.types import Frames
from ..options import SceneOptions
from ..prediction import Prediction
from ..scene import build_scene
from ..scene.cameras import SceneCameras, build_cameras
from ..scene.types import Points, PosedImage, Scene
from .audit import Audit
from .given import NOTHING_GIVEN, Given
from .options import RefineOptions
from .pairs import sample_surface
from .points import fill_points
from .run import Refined, refine_scene

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""

_MIN_PHOTOS = 2
"""Photos that matching needs."""


@dataclass(frozen=True, kw_only=True)
class RefinedPrediction:
    """A scene, and what refinement did on the way; `refined` is ``None`` if it was not asked."""

    scene: Scene
    refined: Refined | None

    @property
    def is_trusted(self) -> bool:
        """Whether matches confirm the scene; true as well if nobody looked."""
        return self.refined is None or self.refined.after.is_trusted

    def manifest(self) -> dict[str, Any] | None:
        """Return what a reader of the scene folder may want to know."""
        if self.refined is None:
            return None
        refined = self.refined
        return {
            "source": refined.source,
            "is_refined": refined.is_refined,
            "is_trusted": refined.after.is_trusted,
            "reasons": list(refined.after.reasons),
            "placed_by_matches": list(refined.placed),
            "num_pairs": refined.num_pairs,
            "steps": refined.steps,
            "times_s": refined.times_s,
            "audit_of_prediction": _verdicts(refined.before),
            "audit": _verdicts(refined.after),
        }


def refine_prediction(
    prediction: Prediction,
    frames: Frames,
    scene_options: SceneOptions,
    options: RefineOptions,
    *,
    given: Given = NOTHING_GIVEN,
    database_path: Path | None = None,
    progress: Progress | None = None,
) -> RefinedPrediction:
    """Build the scene of a prediction, its cameras corrected by matches first if asked.

    Args:
        prediction: What the model predicted for these frames.
        frames: The photos, in the prediction's order.
        scene_options: Filters and camera grouping.
        options: Mode and thresholds; mode none builds the scene as it was predicted.
        given: Photos whose poses or intrinsics in the prediction are known ones.
        database_path: Where to keep COLMAP's database; it is removed if not given.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The scene: triangulated tracks first, then dense points where these leave gaps. If nothing
        could be refined, the predicted scene, with the reason in its notes.

    Raises:
        ReconstructionError: If the prediction holds no usable pose or depth, or pycolmap lacks the
            features.
    """
    if options.refine == "none" or len(frames) < _MIN_PHOTOS:
        built = build_scene(prediction, frames, scene_options, progress=progress)
        return RefinedPrediction(scene=built, refined=None)
    cameras = build_cameras(prediction, frames.frames, scene_options)
    start = _without_points(cameras, frames)
    surface = sample_surface(start, options.match, prediction=prediction, frames=frames)
    refined = refine_scene(
        start,
        frames,
        options,
        given=given,
        surface=surface,
        database_path=database_path,
        progress=progress,
    )
    if not refined.is_refined:
        built = build_scene(prediction, frames, scene_options, progress=progress)
        noted = replace(built, notes=(*built.notes, *refined.notes))
        return RefinedPrediction(scene=noted, refined=refined)
    filled = fill_points(refined.scene, prediction, frames, scene_options, progress=progress)
    noted = replace(filled, notes=(*prediction.notes, *cameras.notes, *refined.notes))
    return RefinedPrediction(scene=noted, refined=refined)


def _without_points(cameras: SceneCameras, frames: Frames) -> Scene:
    """Return the predicted cameras as a scene."""
    none = torch.zeros(0, dtype=torch.int64)
    points = Points(
        xyz=torch.zeros(0, 3, dtype=torch.float64),
        rgb=torch.zeros(0, 3, dtype=torch.uint8),
        error=torch.zeros(0, dtype=torch.float64),
        obs_point=none,
        obs_image=none,
        obs_xy=torch.zeros(0, 2, dtype=torch.float64),
    )
    images = tuple(
        PosedImage(image_id=index + 1, name=name, camera_id=camera_id, cam_from_world=pose)
        for index, (name, camera_id, pose) in enumerate(
            zip(frames.names, cameras.camera_ids, cameras.cam_from_world, strict=True)
        )
    )
    return Scene(cameras=cameras.cameras, images=images, points=points)


def _verdicts(audit: Audit) -> list[dict[str, Any]]:
    """Return the verdicts on the images; those on pairs would fill the manifest."""
    return [vars(image) for image in audit.images]
