# SPDX-License-Identifier: Apache-2.0
"""Held-out scenes: other seeds, textures, photographs and shapes than those of training.

They are made when they are needed and are the same on every machine but for rounding.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan
from ns_sparseattn.geometry import camera_centers
from ns_sparseattn.models import VGGT, InferenceOptions
from training.draws import Draws
from training.generator import Generator, GeneratorConfig
from training.overlap import choose_views, measure_overlap
from training.targets import make_targets
from training.world import Views

SEED = 77_000_001
"""Of the held-out scenes, whatever the seed of the training."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Which scenes measure a network."""

    num_scenes: int = 32
    """Scenes of each photo size."""
    num_frames: int = 8
    """Views of a scene."""
    overlap: float = 0.25
    """Share of a view that an earlier one should see."""
    sizes: tuple[tuple[int, int], ...] = ((84, 112),)
    """Heights and widths of the photos."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over all pairs of views of all scenes."""

    num_pairs: int
    rotation_auc_5: float
    """Area under the share of pairs whose relative rotation is off by less than up to 5 degrees."""
    rotation_auc_30: float
    """The same up to 30 degrees."""
    direction_auc_30: float
    """The same of the direction of the relative translation."""
    rotation_median_deg: float
    direction_median_deg: float
    depth_error: float
    """Median over scenes of the mean ``|d - d*| / d*`` at one scale for each scene."""
    constant_rotation_auc_30: float
    """What the same pose for all views would get: chance."""


def make_held_out(
    config: HeldOutConfig,
    generator: GeneratorConfig,
    device: torch.device | str,
) -> list[Views]:
    """Make the scenes, a batch ``[B, F]`` for each photo size."""
    maker = Generator(generator, seed=SEED, domain="held_out", device=device)
    batches = []
    for number, size in enumerate(config.sizes):
        first = number * config.num_scenes
        indices = torch.arange(first, first + config.num_scenes, device=maker.device)
        views = maker.views(indices, size, max(12, config.num_frames + 4))
        draws = Draws(SEED, "held_out/choice", indices)
        chosen = choose_views(
            measure_overlap(views), config.num_frames, draws, least=config.overlap
        )
        batches.append(views.choose(chosen))
    return batches


@torch.no_grad()
def score(
    model: VGGT,
    batches: list[Views],
    *,
    plan: AttentionPlan | None = None,
    scenes_at_once: int = 8,
) -> Score:
    """Run a network on held-out scenes as the tool would, and compare.

    Args:
        model: The network; its mode is left alone.
        batches: What `make_held_out` gave.
        plan: Attention of the global layers; dense if not given.
        scenes_at_once: Scenes of one forward pass.

    Returns:
        The figures.
    """
    rotation, direction, constant, depth = [], [], [], []
    for batch in batches:
        for members in torch.arange(len(batch.depth), device=model.device).split(scenes_at_once):
            views = batch.take(members)
            output = model(views.images, plan=plan, options=InferenceOptions())
            assert output.cam_from_world is not None
            assert output.depth is not None
            poses, truth = output.cam_from_world.cpu(), make_targets(views)
            identity = torch.eye(3, 4).expand(poses.shape[1], 3, 4)
            for scene, reference in enumerate(truth.cam_from_world.cpu()):
                angles, directions = pair_angles(_rigid(poses[scene]), reference)
                rotation.append(angles)
                direction.append(directions)
                constant.append(pair_angles(identity, reference)[0])
            depth += depth_errors(output.depth, truth.depth, truth.valid)
    angles, directions = torch.cat(rotation), torch.cat(direction)
    return Score(
        num_pairs=len(angles),
        rotation_auc_5=area(angles, 5),
        rotation_auc_30=area(angles, 30),
        direction_auc_30=area(directions, 30),
        rotation_median_deg=float(angles.median()),
        direction_median_deg=float(directions.median()),
        depth_error=float(torch.tensor(depth).median()),
        constant_rotation_auc_30=area(torch.cat(constant), 30),
    )


def pair_angles(estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the relative poses of all pairs of views.

    As `ns_sparseattn.evaluate.pairs` defines it, which needs packages that a machine for training
    may lack; a test holds the two together.

    Args:
        estimate: ``cam_from_world``, ``[F, 3, 4]``.
        truth: The same.

    Returns:
        Errors of rotations and of directions of translations in degrees, ``[F (F - 1) / 2]`` each.
    """
    first, second = torch.triu_indices(len(truth), len(truth), offset=1)
    rotations, directions = [], []
    for poses in (estimate.double(), truth.double()):
        turn = poses[:, :, :3]
        centers = camera_centers(poses)
        rotations.append(turn[second] @ turn[first].mT)
        offset = (centers[first] - centers[second]).unsqueeze(-1)
        directions.append((turn[second] @ offset).squeeze(-1))
    half_sine = torch.linalg.matrix_norm(rotations[0] - rotations[1]) / math.sqrt(8.0)
    angle = torch.rad2deg(2.0 * half_sine.clamp(max=1.0).asin())
    sine = torch.linalg.cross(*directions).norm(dim=-1)
    direction = torch.rad2deg(torch.atan2(sine, (directions[0] * directions[1]).sum(-1)))
    # A camera on top of another one has no direction where the truth has one.
    return angle, torch.where(directions[0].norm(dim=-1) > 0, direction, 180.0)


def area(errors_deg: Tensor, limit_deg: float) -> float:
    """Return the area under the share of errors below ``t``, ``t`` from 0 to a limit; 0 to 1."""
    below = errors_deg[errors_deg < limit_deg].sort().values
    share = torch.arange(len(below) + 1, dtype=torch.float64) / len(errors_deg)
    ends = torch.cat([below.new_zeros(1), below, below.new_tensor([limit_deg])])
    return float(torch.trapezoid(torch.cat([share, share[-1:]]), ends)) / limit_deg


def _rigid(poses: Tensor) -> Tensor:
    """Return poses without NaN: a network that just began may have no direction at all."""
    return torch.where(poses.isfinite(), poses, 0.0)


def depth_errors(
    depth: Tensor,  # [B, F, H, W]
    truth: Tensor,  # [B, F, H, W]
    valid: Tensor,  # [B, F, H, W] bool
) -> list[float]:
    """Return the mean relative error of depth of each scene, at its best scale.

    Args:
        depth: Estimates, ``[B, F, H, W]``.
        truth: True depth.
        valid: Where it is known.

    Returns:
        One number for each scene with depth.
    """
    errors = []
    for estimate, reference, mask in zip(depth, truth, valid, strict=True):
        if not bool(mask.any()):
            errors.append(math.nan)
            continue
        ratio = reference[mask] / estimate[mask].clamp(min=1e-6)
        scaled = estimate[mask] * ratio.median()
        errors.append(float(((scaled - reference[mask]).abs() / reference[mask]).mean()))
    return [error for error in errors if not math.isnan(error)]
