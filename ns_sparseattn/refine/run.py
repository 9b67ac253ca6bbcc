# SPDX-License-Identifier: Apache-2.0
"""The refine stage: features, guided pairs, audit, triangulation, adjustment, audit.

Axes: ``F`` frames, ``S`` surface samples of a frame.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..frames.masks import name_some
from ..frames.types import Frames
from ..scene.types import Scene
from .adjust import Model, Step, finish, load_model, run_round
from .audit import Audit, audit_scene, contradiction
from .cameras import convert_cameras, read_back, with_cameras, with_poses
from .database import (
    PairMatches,
    create_database,
    quiet_colmap,
    read_matches,
    restore_names,
)
from .features import ReadRgb, extract_features
from .given import NOTHING_GIVEN, Given, Held
from .mapping import map_from_matches
from .matching import find_partners, match_pairs
from .options import RefineOptions, Round
from .pairs import propose_pairs, sample_surface
from .points import read_tracks
from .register import register_images

_logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A refined scene and how it came about."""

    scene: Scene
    """With triangulated points alone, or the scene as it was if nothing could be gained."""
    source: str
    """prediction, incremental or global: whose poses the scene was adjusted from."""
    before: Audit
    """Of the prediction."""
    after: Audit
    """Of the result."""
    placed: tuple[str, ...]
    """Images that were placed anew by their matches."""
    num_pairs: int
    """Verified pairs."""
    steps: tuple[Step, ...]
    times_s: dict[str, float]
    """Seconds of each part."""
    notes: tuple[str, ...]
    """Sentences that the user should read."""

    @property
    def is_refined(self) -> bool:
        """Whether any adjustment was kept."""
        return any(step.is_kept for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """A scene that was adjusted from some poses."""

    scene: Scene
    source: str
    audit: Audit
    placed: tuple[int, ...]
    steps: tuple[Step, ...]


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure one part; parts of one name add up."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.times_s[name] = self.times_s.get(name, 0.0) + seconds
        _logger.info("Refinement, %s: %.1f s", name, seconds)


def refine_scene(
    scene: Scene,
    frames: Frames,
    options: RefineOptions,
    *,
    given: Given = NOTHING_GIVEN,
    surface: Tensor | None = None,
    database_path: Path | None = None,
    reader: ReadRgb | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Correct the cameras and poses of a scene by matches between its photos, and judge it.

    Args:
        scene: One posed image per frame, in order.
        frames: The photos.
        options: Mode and thresholds.
        given: Which poses and intrinsics of the scene are known; the options say how firmly.
        surface: World points that each image shows, ``[F, S, 3]``, of `sample_surface`; from the
            scene's points or an assumed distance if not given.
        database_path: Where to keep COLMAP's database; it is removed if not given.
        reader: Reads a photo; `ns_sparseattn.frames.read_rgb` if not given.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The refined scene. If nothing can be gained, it is the scene as it was, with a note.

    Raises:
        BrokenPhotoError: If a photo cannot be read any more.
        ReconstructionError: If pycolmap is missing, too old, or lacks the features asked for.
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        path = Path(folder) / "database.db" if database_path is None else database_path
        run = _Run(scene, frames, options, given, path, clock)
        with clock.part("features"):
            run.extract(reader, progress)
        with clock.part("pairs"):
            run.match_guided(sample_surface(scene, options.match) if surface is None else surface)
        refined = run.refine()
        if database_path is not None:
            restore_names(path, scene)
    return refined


class _Run:
    """One run over one database."""

    def __init__(
        self,
        scene: Scene,
        frames: Frames,
        options: RefineOptions,
        given: Given,
        path: Path,
        clock: _Clock,
    ) -> None:
        self._unrefined = scene
        self._given = given
        self._held = Held.of(scene, given, options)
        self._scene = convert_cameras(scene, options.camera_model, held=self._held.cameras)
        self._frames = frames
        self._options = options
        self._path = path
        self._clock = clock

    def extract(self, reader: ReadRgb | None, progress: Progress | None) -> None:
        """Make the database and fill it with features."""
        total = len(self._frames)

        def report(done: int) -> None:
            if progress is not None:
                progress("features", done, total)

        create_database(self._path, self._scene, calibrated=self._held.cameras)
        extract_features(
            self._path, self._frames.frames, self._options.match, reader=reader, progress=report
        )

    def match_guided(self, surface: Tensor) -> None:
        """Match the pairs that the prediction proposes."""
        pairs = propose_pairs(
            self._scene, surface, self._options.match, pairs_per_image=self._options.pairs_per_image
        )
        match_pairs(self._path, pairs, self._options.match)

    def refine(self) -> Refined:
        """Audit, adjust, and take the better of what prediction and matches lead to."""
        options, scene = self._options, self._scene
        before = self._audit(scene)
        doubtful = before.indices("contradicted", "unmatched")
        if doubtful and not before.is_rotation_only:
            with self._clock.part("partners"):
                partners = find_partners(self._path, doubtful, len(scene.images), options.match)
                match_pairs(self._path, partners, options.match)
            before = self._audit(scene)
        attempts = []
        is_useless = _is_useless(before)
        if not before.is_rotation_only and before.pairs:
            if not is_useless or self._held.has_all_poses:
                attempts.append(self._attempt(scene, "prediction", before))
            is_doubtful = is_useless or not self._is_enough(attempts[0])
            if is_doubtful and not self._held.has_all_poses:
                # Poses from which no sound structure follows, or that leave apart what matches tie
                # together, are no judges of others.
                may_contradict = is_useless or not self._holds_together(attempts[0])
                attempts += self._attempts_mapped(may_contradict=may_contradict)
            if not self._held.has_all_poses:
                attempts = [attempt for attempt in attempts if self._is_sound(attempt)]
        best = max(attempts, key=_rank, default=None)
        if best is None or not any(step.is_kept for step in best.steps):
            return self._unchanged(before)
        return Refined(
            scene=best.scene,
            source=best.source,
            before=before,
            after=best.audit,
            placed=tuple(scene.images[index].name for index in best.placed),
            num_pairs=len(before.pairs),
            steps=best.steps,
            times_s=self._clock.times_s,
            notes=_notes(best, before),
        )

    def _unchanged(self, before: Audit) -> Refined:
        """Give back the scene as it was, with the reason if matches do not confirm it."""
        reasons = before.reasons
        return Refined(
            scene=self._unrefined,
            source="prediction",
            before=before,
            after=before,
            placed=(),
            num_pairs=len(before.pairs),
            steps=(),
            times_s=self._clock.times_s,
            notes=reasons,
        )

    def _matches(self) -> tuple[PairMatches, ...]:
        return read_matches(self._path, min_matches=self._options.audit.min_pair_matches)

    def _audit(self, scene: Scene) -> Audit:
        with self._clock.part("audit"):
            return audit_scene(scene, self._matches(), self._options.audit)

    def _attempt(self, scene: Scene, source: str, audit: Audit) -> _Attempt:
        """Adjust a scene whose doubtful images are left out first and placed anew later.

        Images whose poses are held stay in, whatever the matches say of them.
        """
        held = self._held
        doubtful = tuple(
            index for index in audit.indices("contradicted", "unmatched") if index not in held.poses
        )
        with self._clock.part("adjust"):
            model = load_model(
                self._path, scene, self._options, given=self._given, held=held, left_out=doubtful
            )
            steps, placed = _adjust(model, doubtful, self._options)
            adjusted, _ = read_back(scene, model.reconstruction)
            # To the last digit, which the adjustment's own coordinates do not keep.
            adjusted = self._with_held(adjusted)
            tracks = read_tracks(model.reconstruction, adjusted)
        result = replace(adjusted, points=tracks)
        return _Attempt(
            scene=result, source=source, audit=self._audit(result), placed=placed, steps=steps
        )

    def _map(self) -> list[tuple[str, Scene]]:
        """Match what the prediction did not propose, and let pycolmap's mappers work on it."""
        num_images = len(self._scene.images)
        with self._clock.part("partners"):
            pairs = find_partners(self._path, range(num_images), num_images, self._options.match)
            match_pairs(self._path, pairs, self._options.match)
        with self._clock.part("mappers"):
            mapped = map_from_matches(
                self._path, self._scene, self._options, given=self._given, held=self._held
            )
        return [(found.mapper, self._with_held(found.scene)) for found in mapped]

    def _with_held(self, scene: Scene) -> Scene:
        """Return a scene with what is held as it was given."""
        poses = {index: self._scene.images[index].cam_from_world for index in self._held.poses}
        return with_cameras(with_poses(scene, poses), self._scene, self._held.cameras)

    def _is_enough(self, attempt: _Attempt) -> bool:
        """Whether so many images are confirmed that pycolmap's mappers have little to add.

        Unlike the verdict on the scene, this does not mind components that no match ties: no mapper
        joins what shares nothing.
        """
        least = self._options.audit.min_trusted_share * len(self._frames)
        return attempt.audit.num_confirmed >= least and self._holds_together(attempt)

    def _is_sound(self, attempt: _Attempt) -> bool:
        """Whether most images see triangulated points, by cameras like those predicted.

        Epipolar lines alone do not tell: with a focal length that is many times too long or short,
        matches lie near them whatever the photos show.
        """
        options = self._options
        counts = torch.bincount(attempt.scene.points.obs_image, minlength=len(self._frames))
        num_seeing = int((counts >= options.min_image_observations).sum())
        change = max(
            (
                abs(math.log(float(now.intrinsics[0, 0] / before.intrinsics[0, 0])))
                for now, before in zip(attempt.scene.cameras, self._scene.cameras, strict=True)
            ),
            default=0.0,
        )
        return 2 * num_seeing >= len(self._frames) - self._num_unmatched(
            attempt
        ) and change <= math.log(options.audit.max_focal_change)

    def _num_unmatched(self, attempt: _Attempt) -> int:
        return len(attempt.audit.indices("unmatched"))

    def _holds_together(self, attempt: _Attempt) -> bool:
        """Whether an attempt is sound, has no more groups than the matches leave, and fits.

        It does not if many of its good images are in parts of their own.
        """
        if not self._is_sound(attempt):
            return False
        audit = attempt.audit
        pairs = [(pair.first, pair.second) for pair in audit.pairs]
        num_good = len(audit.indices("good"))
        fits = audit.num_confirmed >= self._options.audit.min_trusted_share * num_good
        return fits and audit.num_components <= _num_groups(pairs, len(self._frames))

    def _attempts_mapped(self, *, may_contradict: bool) -> list[_Attempt]:
        """Adjust the mappers' models as if each were the prediction.

        Unless the prediction is useless, a model that contradicts it is dropped: matches of
        repeated things fold models that fit them perfectly.
        """
        return [
            self._attempt(scene, mapper, self._audit(scene))
            for mapper, scene in self._map()
            if may_contradict or not contradiction(scene, self._scene, self._options.audit)
        ]


def _adjust(
    model: Model, doubtful: tuple[int, ...], options: RefineOptions
) -> tuple[tuple[Step, ...], tuple[int, ...]]:
    """Run the rounds that are needed; doubtful images join before the last two, if they can."""
    steps: list[Step] = []
    placed: tuple[int, ...] = ()
    *first, joining, last = options.rounds
    for settings in first:
        if not _is_done(steps, settings):
            steps.append(run_round(model, settings, options))
    for settings in (joining, last):
        waiting = tuple(index for index in doubtful if index not in placed)
        if waiting:
            placed += register_images(model, waiting, settings, options)
        if waiting or not _is_done(steps, settings):
            steps.append(run_round(model, settings, options))
    finish(model, last, options)
    return tuple(steps), placed


def _num_groups(pairs: Sequence[tuple[int, int]], num_images: int) -> int:
    """Return the number of groups of two images and more that pairs tie together."""
    group = list(range(num_images))
    for first, second in pairs:
        old, new = group[second], group[first]
        group = [new if member == old else member for member in group]
    return sum(count > 1 for count in Counter(group).values())


def _is_done(steps: list[Step], settings: Round) -> bool:
    """Whether the rounds before have left a round nothing to do."""
    return bool(steps) and steps[-1].error_px < settings.skipped_below_px


def _is_useless(audit: Audit) -> bool:
    """Whether the majority of the images that have matches stands elsewhere."""
    num_contradicted = len(audit.indices("contradicted"))
    num_unmatched = len(audit.indices("unmatched"))
    return 2 * num_contradicted > len(audit.images) - num_unmatched


def _rank(attempt: _Attempt) -> tuple[bool, int, bool, float]:
    """Order attempts: any adjustment, confirmed images, the prediction, how well matches fit."""
    return (
        any(step.is_kept for step in attempt.steps),
        attempt.audit.num_confirmed,
        attempt.source == "prediction",
        -attempt.audit.epipolar_error_px,
    )


def _notes(best: _Attempt, before: Audit) -> tuple[str, ...]:
    """Say what was placed anew, replaced, or not confirmed."""
    notes = []
    if best.source != "prediction":
        notes.append(
            "Matches confirm too few of the predicted poses: these are those of pycolmap's "
            f"{best.source} mapper, from the same matches. Look at the scene: things that repeat "
            "can fold a model that fits all its matches, and no prediction confirms this one."
        )
    elif best.placed:
        names = [before.images[index].name for index in best.placed]
        notes.append(
            f"Photos that stood elsewhere were placed by their matches: {name_some(names)}."
        )
    wrong = best.audit.names("contradicted")
    if wrong:
        notes.append(f"Matches contradict the poses of these photos: {name_some(wrong)}.")
    unknown = best.audit.names("unmatched")
    if unknown:
        notes.append(
            f"These photos match no other, so that their predicted poses stand unchecked: "
            f"{name_some(unknown)}."
        )
    return (*notes, *best.audit.reasons)
