# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes that are used several times, so that training never waits for photos.

Slot ``j`` of ``M`` serves the steps ``j, j + M, j + 2 M, ...``; after some visits its scenes are
replaced by new ones. What a step sees follows from the step and the seed alone, so a run that was
interrupted goes on as if it had not been.

Axes: ``B`` scenes, ``F`` frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.crew import ALONE, Crew
from training.draws import Draws
from training.generator import Generator
from training.overlap import choose_views, measure_overlap
from training.targets import vary
from training.world import Views


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How scenes are kept and used."""

    slots: int = 4
    """Batches of scenes that are kept."""
    scenes: int = 24
    """Scenes of a batch."""
    reuse: float = 3.0
    """How often a rendered view is used on average; every use has other neighbours and colours."""
    sizes: tuple[tuple[int, int], ...] = ((112, 112), (84, 112), (112, 84))
    """Heights and widths of photos; each batch has one of them."""
    late_sizes: tuple[tuple[int, int], ...] = ()
    """The same later on, if not those: what is learnt on few patches carries over to more."""


@dataclass(frozen=True, kw_only=True)
class _Slot:
    generation: int
    views: Views
    overlap: Tensor


class ScenePool:
    """Hands out views for training steps.

    Args:
        generator: Makes scenes.
        config: How they are kept.
        frames_per_step: Views that a step takes of this pool; sets how many visits a batch lasts.
        crew: Each of several processes has a pool of its own, with other scenes.
    """

    def __init__(
        self,
        generator: Generator,
        config: PoolConfig,
        frames_per_step: int,
        crew: Crew = ALONE,
    ) -> None:
        self._generator, self._config, self._crew = generator, config, crew
        rendered = config.scenes * generator.config.num_views
        self._visits = max(1, round(config.reuse * rendered / frames_per_step))
        self._slots: dict[int, _Slot] = {}

    def fetch(
        self,
        step: int,
        num_scenes: int,
        num_frames: int,
        *,
        overlap: float,
        is_late: bool = False,
    ) -> Views:
        """Return the views of a step.

        Args:
            step: Which step.
            num_scenes: How many scenes.
            num_frames: How many views of each.
            overlap: Share of a view that an earlier one should see.
            is_late: Whether batches that are new have one of the late sizes.

        Returns:
            ``[num_scenes, num_frames]`` views; the first of each scene is the reference.
        """
        slot = self._slot(step, is_late=is_late)
        device = self._generator.device
        draws = Draws(self._generator.seed, "pool", torch.tensor([step], device=device))
        scenes = draws.uniform(self._config.scenes)[0].argsort()[:num_scenes]
        each = Draws(self._generator.seed, f"pool/{step}", torch.arange(len(scenes), device=device))
        views = choose_views(slot.overlap[scenes], num_frames, each, least=overlap)
        return vary(slot.views.take(scenes).choose(views), each)

    def _slot(self, step: int, *, is_late: bool) -> _Slot:
        number, visit = step % self._config.slots, step // self._config.slots
        # Slots are staggered, so that not all are replaced at once.
        stagger = number * self._visits // self._config.slots
        generation = (visit + stagger) // self._visits
        slot = self._slots.get(number)
        if slot is None or slot.generation != generation:
            self._slots.pop(number, None)
            slot = self._render(number, generation, is_late=is_late)
            self._slots[number] = slot
        return slot

    def _render(self, number: int, generation: int, *, is_late: bool) -> _Slot:
        config = self._config
        sizes = config.late_sizes if is_late and config.late_sizes else config.sizes
        batch = (generation * config.slots + number) * self._crew.size + self._crew.rank
        first = batch * config.scenes
        indices = torch.arange(first, first + config.scenes)
        draws = Draws(self._generator.seed, "size", torch.tensor([batch]))
        size = sizes[int(draws.integers(high=len(sizes)))]
        views = self._generator.views(indices, size)
        return _Slot(generation=generation, views=views, overlap=measure_overlap(views))
