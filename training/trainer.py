# SPDX-License-Identifier: Apache-2.0
"""One piece of training: resume, take steps until the time is up, save.

Axes: ``B`` scenes, ``F`` frames.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ns_sparseattn.models import VGGT
from ns_sparseattn.models.block import Block
from ns_sparseattn.models.checkpoint import read_checkpoint
from training.checkpoint import load_checkpoint, save_checkpoint
from training.codec import Codec
from training.config import TrainingConfig
from training.crew import ALONE, Crew
from training.draws import Draws
from training.generator import Generator
from training.heldout import Score, make_held_out, score
from training.log import append_row
from training.losses import total_loss
from training.network import PatchHeads, geometry_layers, make_network, run_network
from training.optimizer import MixedOptimizer
from training.pool import ScenePool
from training.targets import make_targets
from training.world import Views

logger = logging.getLogger(__name__)

_SAVE_RESERVE_S = 8.0
"""Time kept for writing the checkpoint at the end of a piece, beside what the last one took."""
_STEP_RESERVE = 3.0
"""Steps that may be as slow as the slowest recent one before the deadline."""


class Trainer:
    """A run: its network, averages, moments and clock.

    Args:
        config: What to train.
        folder: Of the run; resumed if it holds a checkpoint.
        device: Where to train.
        workers: Threads that render.
        crew: The processes that train together; each takes its share of every step's scenes.
        start: Exported weights that a new run begins with, instead of random ones.
        is_compiled: Whether to compile the transformer blocks first.

    Raises:
        ValueError: If the folder's run has another configuration, its checkpoint is damaged, or
            the weights to start from are those of another network.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        *,
        device: torch.device,
        workers: int = 1,
        crew: Crew = ALONE,
        start: Path | None = None,
        is_compiled: bool = False,
    ) -> None:
        self.config, self.folder, self.device, self.crew = config, folder, device, crew
        self.step, self.elapsed_s, self.evaluated_s = 0, 0.0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if crew.is_first:
            _check_config(config, folder)
        self.model = make_network(config.model, config.seed, layer_scale=config.layer_scale)
        torch.manual_seed(config.seed)
        layers = geometry_layers(config.early_layer, config.model.depth)
        self.heads = PatchHeads(config.model.embed_dim, len(layers))
        if start is not None:
            _load_weights(self.model, start)
        self.model.to(device)
        self.heads.to(device)
        self._parameters = dict(
            nn.ModuleDict({"model": self.model, "heads": self.heads}).named_parameters()
        )
        self.average = {
            name: parameter.detach().clone() for name, parameter in self.model.named_parameters()
        }
        self.optimizer = MixedOptimizer(
            self._parameters,
            kind=config.optimizer,
            learning_rate=config.schedule.learning_rate,
            hidden_rate=config.hidden_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
        )
        self._resume()
        self.dtype = torch.bfloat16 if config.precision == "bf16" else None
        options = dataclasses.replace(config.generator.options, workers=workers)
        self._generator_config = dataclasses.replace(config.generator, options=options)
        generator = Generator(self._generator_config, seed=config.seed, device=device)
        self._pool = ScenePool(generator, config.pool, config.frames_per_step // crew.size, crew)
        self._held_out: list[Views] | None = None
        if is_compiled:
            _compile_blocks(self.model)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return self.config.budget.progress(self.step, self.elapsed_s)

    def run(self, *, minutes: float, started: float, max_steps: int | None = None) -> str:
        """Train until the budget is spent, the time is up, or enough steps are taken; then save.

        Args:
            minutes: Length of this piece, saving and the last measurement included.
            started: `time.monotonic` when the piece began.
            max_steps: Steps of this piece at most.

        Returns:
            Why it stopped.
        """
        deadline = started + 60.0 * minutes
        self._log("start", {"device": str(self.device), "torch": torch.__version__})
        last_step = math.inf if max_steps is None else self.step + max_steps
        clock = _Clock(deadline, reserve_s=_SAVE_RESERVE_S + self._evaluation_guess_s())
        slowest_s, left_s = 0.0, clock.left_s
        sums: dict[str, Tensor] = {}
        count, rows_began, views_seen = 0, time.monotonic(), 0
        while True:
            if self.progress >= 1.0:
                reason = "the budget is spent"
                break
            if self.step >= last_step:
                reason = "the steps asked for are taken"
                break
            if left_s < _STEP_RESERVE * slowest_s:
                reason = "the time of this piece is up"
                break
            parts, num_views, (spent_s, left_s) = self._take_step(clock)
            for name, part in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + part
            count, views_seen = count + 1, views_seen + num_views
            if self.step % self.config.log_steps == 0:
                # Reading the sums waits for the device; the clock is right after it.
                row = {name: float(value) / count for name, value in sums.items()}
                row["views_per_s"] = views_seen / (time.monotonic() - rows_began)
                row["learning_rate"] = self.config.schedule.rate(self.progress)
                self._log("train", row)
                sums, count, rows_began, views_seen = {}, 0, time.monotonic(), 0
            self.elapsed_s += spent_s
            slowest_s = max(spent_s, 0.9 * slowest_s)
            if self.elapsed_s - self.evaluated_s > 60.0 * self.config.evaluate_minutes:
                clock.reserve_s = _SAVE_RESERVE_S + self._evaluate_and_save()
                clock.restart()
                rows_began = time.monotonic()
        self._evaluate_and_save()
        return reason

    def evaluate(self) -> Score:
        """Measure the averaged weights on the held-out scenes."""
        if self._held_out is None:
            self._held_out = make_held_out(
                self.config.held_out, self._generator_config, self.device
            )
        with _swapped(self.model, self.average):
            return score(self.model.eval(), self._held_out)

    def _evaluate_and_save(self) -> float:
        began = time.monotonic()
        self.evaluated_s = self.elapsed_s
        if not self.crew.is_first:
            return 0.0
        # First what must not be lost.
        self.save()
        result = self.evaluate()
        self.model.train()
        self._log("held_out", dataclasses.asdict(result))
        return time.monotonic() - began

    def _evaluation_guess_s(self) -> float:
        """Return how long a measurement will take, before one was timed: making its scenes, too."""
        views = self.config.held_out.num_scenes * len(self.config.held_out.sizes) * 20
        return views / (400.0 if self.device.type == "cuda" else 40.0)

    def _take_step(self, clock: _Clock) -> tuple[dict[str, Tensor], int, tuple[float, float]]:
        config = self.config
        views, dense_frames, shift = self._next_views()
        targets = make_targets(views)
        output = run_network(
            self.model,
            views.images,
            dense_frames=dense_frames,
            early_layer=config.early_layer,
            dtype=self.dtype,
        )
        loss, parts = total_loss(output, targets, dense_frames, self.heads, shift, config.loss)
        self.optimizer.set_rate(config.schedule.rate(self.progress))
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        # All processes go by the clock of the first, or some would stop before others.
        spent_s, left_s = self.crew.agree(gradients, clock.read())
        norm = nn.utils.clip_grad_norm_(list(self._parameters.values()), config.clip_norm)
        is_finite = bool(norm.isfinite())
        if is_finite:
            self.optimizer.step()
            self._update_average(config.schedule.ema_decay(self.step))
        else:
            logger.warning("Step %d is left out: its gradient is not finite.", self.step)
        self.step += 1
        num_views = views.images.shape[0] * views.images.shape[1] * self.crew.size
        parts = {**parts, "loss": loss.detach(), "gradient_norm": norm}
        return parts, num_views, (spent_s, left_s)

    def _next_views(self) -> tuple[Views, Tensor, int]:
        """Return the views of the next step, the frames with dense outputs, and the partners."""
        config = self.config
        draws = Draws(config.seed, "step", torch.tensor([self.step]))
        least, most = config.schedule.frames(self.progress)
        num_frames = least + int(draws.integers(high=most - least + 1))
        num_scenes = config.frames_per_step // self.crew.size // num_frames
        num_scenes = max(1, min(num_scenes, config.pool.scenes))
        shift = 1 + int(draws.integers(high=num_frames - 1))
        views = self._pool.fetch(
            self.step,
            num_scenes,
            num_frames,
            overlap=config.schedule.overlap(self.progress),
            is_late=self.progress >= config.schedule.late_from,
        )
        order = Draws(
            config.seed, f"dense/{self.step}", torch.arange(num_scenes, device=self.device)
        ).uniform(num_frames)
        return views, order.argsort(-1)[:, : config.dense_frames], shift

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        for name, average in self.average.items():
            average.lerp_(self._parameters[f"model.{name}"], 1.0 - decay)

    def save(self) -> None:
        """Write a checkpoint."""
        is_exact = self.config.checkpoint == "full"
        weights, difference, second = _codecs(is_exact)
        tensors: dict[str, tuple[Tensor, Codec]] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weights/{name}"] = (parameter, weights)
            moments = self.optimizer.moments(parameter)
            if "second" in moments:
                tensors[f"second/{name}"] = (moments["second"], second)
            if "first" in moments and is_exact:
                tensors[f"first/{name}"] = (moments["first"], "exact")
        for name, average in self.average.items():
            # Averages are close to the weights: what separates them needs few digits.
            offset = average if is_exact else average - self._parameters[f"model.{name}"]
            tensors[f"average/{name}"] = (offset, difference)
        state = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "evaluated_s": self.evaluated_s,
            "is_exact": is_exact,
        }
        save_checkpoint(self.folder, tensors, state)

    @torch.no_grad()
    def _resume(self) -> None:
        found = load_checkpoint(self.folder)
        if found is None:
            return
        tensors, state = found
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.evaluated_s = state["evaluated_s"]
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[f"weights/{name}"])
            moments = {
                moment: tensors[f"{moment}/{name}"]
                for moment in ("first", "second")
                if f"{moment}/{name}" in tensors
            }
            self.optimizer.restore(parameter, moments, self.step)
        for name, average in self.average.items():
            offset = tensors[f"average/{name}"].to(self.device)
            average.copy_(
                offset if state["is_exact"] else offset + self._parameters[f"model.{name}"]
            )
        logger.info("Resumed at step %d after %.1f min.", self.step, self.elapsed_s / 60.0)

    def _log(self, kind: str, values: dict[str, Any]) -> None:
        if not self.crew.is_first:
            return
        row = {"kind": kind, "step": self.step, "minutes": self.elapsed_s / 60.0, **values}
        append_row(self.folder, row)
        text = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in row.items()
        )
        logger.info("%s", text)


def _codecs(is_exact: bool) -> tuple[Codec, Codec, Codec]:
    """Return how weights, averages and second moments are written."""
    return ("exact", "exact", "exact") if is_exact else ("three_bytes", "linear8", "log8")


def _load_weights(model: VGGT, path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError(
            f"{path} holds the weights of another network than the one to be trained; give a file "
            "that `training.export` made of a run with the same sizes."
        )
    model.load_state_dict(tensors)


class _Clock:
    """Time since the last reading, and until a piece must end.

    Args:
        deadline: `time.monotonic` at which everything must be over.
        reserve_s: What is kept for after the last step.
    """

    def __init__(self, deadline: float, *, reserve_s: float) -> None:
        self.reserve_s = reserve_s
        self._deadline, self._last = deadline, time.monotonic()

    @property
    def left_s(self) -> float:
        return self._deadline - self.reserve_s - time.monotonic()

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last reading or restart, and the seconds left."""
        now = time.monotonic()
        spent_s, self._last = now - self._last, now
        return spent_s, self.left_s

    def restart(self) -> None:
        """Leave out what happened since the last reading."""
        self._last = time.monotonic()


def _check_config(config: TrainingConfig, folder: Path) -> None:
    """Write the configuration into a new run's folder, or compare it with that of an old one."""
    path = folder / "config.json"
    text = json.dumps(dataclasses.asdict(config), indent=2)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(text):
        raise ValueError(
            f"{path} is of a run with another configuration; give another folder, or the "
            "configuration that it began with."
        )
    path.write_text(text + "\n", encoding="utf-8")


def _compile_blocks(model: VGGT) -> None:
    """Compile what is in the blocks around attention; shapes change from step to step."""
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = torch.compile(module.forward, dynamic=True)
            module.project = torch.compile(module.project, dynamic=True)
            module.finish = torch.compile(module.finish, dynamic=True)


class _swapped:
    """A context in which a model has other weights."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self._model, self._weights = model, weights

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self._weights[name])
            self._weights[name].copy_(kept)
