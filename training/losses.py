# SPDX-License-Identifier: Apache-2.0
"""Losses of VGGT (arXiv 2503.11651, section 3.3) in substance, and one for matching patches.

Camera: a robust distance of the nine numbers, over the iterations of the head, the last counting
most. Depth and points: distances weighted by a learned confidence, the same for their gradients,
and a price for low confidence.

The paper also trains tracks, with a head that does not ship. A short run from nothing needs more of
that kind, for poses alone teach correspondence much later: patch tokens of an early layer are asked
which patch of another frame sees the same place; one head of the next global layer must look there
in the first frame, among all tokens of the scene, and that layer's tokens must say how far away it
is. From there on every patch is asked for its ray and its point in the first camera's frame: a pose
that is spread over patches is learnt sooner than one in a single token (rays: Zhang et al.,
arXiv 2402.14817; points: DUSt3R, arXiv 2312.14132), and the camera token can gather it.

Axes: ``I`` iterations, ``B`` scenes, ``F`` frames, ``D`` frames with dense outputs, ``P`` patches,
``C`` channels, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ns_sparseattn.geometry import (
    invert_rigid,
    pixel_centers,
    project,
    transform_points,
    unproject,
)
from training.network import PatchHeads, TrainingOutput
from training.targets import Targets


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and constants."""

    camera: float = 10.0
    """Weight of the camera loss. VGGT's published training configuration has 5; beside losses for
    correspondence more is needed."""
    depth: float = 1.0
    """Weight of the depth loss."""
    points: float = 0.5
    """Weight of the point loss; the tool itself uses depth and cameras."""
    matching: float = 1.0
    """Weight of the matching loss. Correspondence comes first; poses follow from it."""
    attention: float = 0.5
    """Weight of the attention loss."""
    tracks: float = 2.0
    """Weight of the track loss."""
    geometry: float = 2.0
    """Weight of the loss of rays and points."""
    camera_decay: float = 0.6
    """Factor by which an iteration counts less than the next one (VGGT's training)."""
    rotation: float = 3.0
    """Weight of the quaternion among the nine numbers: its errors are small numbers beside those of
    translations. VGGT's training has 1."""
    fov: float = 0.5
    """Weight of the fields of view among the nine numbers (VGGT's training)."""
    queries: int = 64
    """Patches of a frame that the attention loss asks; chosen for memory."""
    huber: float = 0.02
    """Errors of an encoding below this count as squares; chosen, in units of the encoding."""
    confidence_price: float = 0.2
    """Weight of the logarithm of the confidence (alpha of DUSt3R, kept by VGGT)."""
    largest: float = 5.0
    """Errors of depth and points count as at most this, in units of the scene; chosen."""
    hidden: float = 0.05
    """A place farther behind the depth seen in another frame than this share is hidden; chosen."""


def total_loss(
    output: TrainingOutput,
    targets: Targets,
    dense_frames: Tensor,  # [B, D]
    heads: PatchHeads,
    partner_shift: int,
    config: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum, and every part without its weight, detached."""
    rows = torch.arange(len(dense_frames), device=dense_frames.device)[:, None]
    valid = targets.valid[rows, dense_frames]
    parts = {
        "camera": camera_loss(output.encodings, targets, config),
        "depth": dense_loss(
            (output.depth - targets.depth[rows, dense_frames])[..., None],
            output.depth_confidence,
            valid,
            config,
        ),
        "points": dense_loss(
            output.points - targets.points_in_world[rows, dense_frames],
            output.points_confidence,
            valid,
            config,
        ),
        "matching": matching_loss(output.early_tokens, targets, heads, partner_shift, config),
        "attention": attention_loss(output.query, output.key, targets, partner_shift, config),
        "tracks": track_loss(output.track_tokens, targets, heads, config),
        "geometry": geometry_loss(output.geometry_tokens, targets, heads, config),
    }
    total = sum((getattr(config, name) * part for name, part in parts.items()), torch.zeros(()))
    return total, {name: part.detach() for name, part in parts.items()}


def camera_loss(
    encodings: Tensor,  # [I, B, F, 9]
    targets: Targets,
    config: LossConfig,
) -> Tensor:
    """Return the robust distance of translation, quaternion and fields of view.

    Scenes without a scale do not count.
    """
    error = F.smooth_l1_loss(
        encodings, targets.encodings.expand_as(encodings), beta=config.huber, reduction="none"
    )
    parts = (part.mean((2, 3)) for part in error.split([3, 4, 2], dim=-1))
    translation, rotation, fov = (_mean(part, targets.has_scale, dim=-1) for part in parts)
    each = translation + config.rotation * rotation + config.fov * fov
    age = torch.arange(len(each) - 1, -1, -1, device=each.device)
    weights = config.camera_decay**age
    return (weights * each).sum() / weights.sum()


def dense_loss(
    error: Tensor,  # [B, D, H, W, E]
    confidence: Tensor,  # [B, D, H, W]
    valid: Tensor,  # [B, D, H, W] bool
    config: LossConfig,
) -> Tensor:
    """Return the confidence-weighted error and error gradient, less the price of confidence."""
    error = torch.where(valid[..., None], error, 0.0)
    distance = error.norm(dim=-1).clamp(max=config.largest)
    weighted = confidence * distance - config.confidence_price * confidence.log()
    total = _mean(weighted, valid)
    for axis in (2, 3):
        size = error.shape[axis] - 1
        step = error.narrow(axis, 1, size) - error.narrow(axis, 0, size)
        is_inside = valid.narrow(axis, 1, size) & valid.narrow(axis, 0, size)
        size_of_step = step.norm(dim=-1).clamp(max=config.largest)
        total = total + _mean(confidence.narrow(axis, 1, size) * size_of_step, is_inside)
    return total


def _mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean over a mask, of all or along an axis; zero without any element."""
    return torch.where(mask, values, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def matching_loss(
    tokens: Tensor,  # [B, F, P, C]
    targets: Targets,
    heads: PatchHeads,
    partner_shift: int,
    config: LossConfig,
) -> Tensor:
    """Ask each patch which patch of a partner frame sees what its middle pixel sees.

    Args:
        tokens: Patch tokens.
        targets: The truth.
        heads: Turn tokens into logits.
        partner_shift: The partner of frame ``i`` is ``i + partner_shift``, modulo the frames.
        config: Constants.

    Returns:
        Cross entropy over the places that both frames see; zero if there is none.
    """
    num_frames, num_patches = tokens.shape[1:3]
    partner = (torch.arange(num_frames, device=tokens.device) + partner_shift) % num_frames
    patch = _patch_size(targets, num_patches)
    pixel, is_seen = _see_patches(targets, partner, patch, config)
    height, width = targets.depth.shape[-2:]
    answer = _soft_patches(pixel, (height // patch, width // patch), patch)
    logits = heads.compare(tokens, tokens[:, partner]).float()
    return _mean(-(answer * logits.log_softmax(-1)).sum(-1), is_seen)


def attention_loss(
    query: Tensor,  # [B, F, P, E]
    key: Tensor,  # [B, F, T, E]
    targets: Targets,
    offset: int,
    config: LossConfig,
) -> Tensor:
    """Ask one head to look at the patch of the first frame that sees what a patch sees.

    Args:
        query: Queries of the patches, after norm and rotation.
        key: Keys of all tokens, special ones first.
        targets: The truth.
        offset: Shifts which patches are asked, where there are more than `LossConfig.queries`.
        config: Constants.

    Returns:
        Cross entropy over all tokens of the scene, of patches of all frames but the first.
    """
    num_patches, num_tokens = query.shape[2], key.shape[2]
    count = min(config.queries, num_patches)
    asked = torch.arange(count, device=query.device) * num_patches // count
    asked = (asked + offset) % num_patches
    patch = _patch_size(targets, num_patches)
    first = torch.zeros(query.shape[1], dtype=torch.int64, device=query.device)
    pixel, is_seen = _see_patches(targets, first, patch, config)
    height, width = targets.depth.shape[-2:]
    answer = _soft_patches(pixel[:, 1:, asked], (height // patch, width // patch), patch)
    scale = query.shape[-1] ** -0.5
    logits = (query[:, 1:, asked] * scale).flatten(1, 2) @ key.flatten(1, 2).transpose(1, 2)
    # The first frame's tokens come first: its special tokens, then its patches.
    chosen = logits.float().log_softmax(-1)[..., num_tokens - num_patches : num_tokens]
    return _mean(-(answer.flatten(1, 2) * chosen).sum(-1), is_seen[:, 1:, asked].flatten(1, 2))


def track_loss(
    tokens: Tensor,  # [B, F, P, C]
    targets: Targets,
    heads: PatchHeads,
    config: LossConfig,
) -> Tensor:
    """Ask each patch how far from it in the image the first frame sees what its middle sees.

    Distances are in units of the image's longer side. Returns the robust distance over the places
    that the first frame sees, too.
    """
    patch = _patch_size(targets, tokens.shape[2])
    first = torch.zeros(tokens.shape[1], dtype=torch.int64, device=tokens.device)
    pixel, is_seen = _see_patches(targets, first, patch, config)
    height, width = targets.depth.shape[-2:]
    own = pixel_centers(height, width, dtype=torch.float32, device=tokens.device)
    own = own[patch // 2 :: patch, patch // 2 :: patch].flatten(0, 1)
    motion = (pixel - own) / max(height, width)
    error = F.smooth_l1_loss(
        heads.displacement(tokens).float(), motion, beta=config.huber, reduction="none"
    )
    # The first frame sees itself where it is.
    return _mean(error[:, 1:].sum(-1), is_seen[:, 1:])


def geometry_loss(
    tokens: Sequence[Tensor],  # [B, F, P, C] each
    targets: Targets,
    heads: PatchHeads,
    config: LossConfig,
) -> Tensor:
    """Ask the patches of some layers for their rays and points in the first camera's frame.

    Returns the robust distance of the direction of the ray, of the camera's centre, and of the
    point where it is known, mean over the layers. Scenes without a scale do not count.
    """
    patch = _patch_size(targets, tokens[0].shape[2])
    middle = slice(patch // 2, None, patch)
    height, width = targets.depth.shape[-2:]
    pixel = pixel_centers(height, width, dtype=torch.float32, device=targets.depth.device)
    pixel = pixel[middle, middle].flatten(0, 1)
    known = targets.has_scale[:, None, None].expand(tokens[0].shape[:3])
    valid = targets.valid[:, :, middle, middle].flatten(2) & known
    world_from_cam = invert_rigid(targets.cam_from_world)[:, :, None]
    in_cam = unproject(
        pixel, torch.ones_like(valid, dtype=torch.float32), targets.intrinsics[:, :, None]
    )
    center = world_from_cam[..., 3].expand_as(in_cam)
    direction = F.normalize(transform_points(world_from_cam, in_cam) - center, dim=-1)
    point = targets.points_in_world[:, :, middle, middle].flatten(2, 3)
    answer = torch.cat([direction, center, torch.where(valid[..., None], point, 0.0)], dim=-1)
    total = torch.zeros((), device=pixel.device)
    for layer, layer_tokens in enumerate(tokens):
        error = F.smooth_l1_loss(
            heads.rays_and_points(layer_tokens, layer).float(),
            answer,
            beta=config.huber,
            reduction="none",
        ).clamp(max=config.largest)
        rays, centers, points = (part.mean(-1) for part in error.split([3, 3, 3], dim=-1))
        total = total + _mean(rays, known) + _mean(centers, known) + _mean(points, valid)
    return total / len(tokens)


def _patch_size(targets: Targets, num_patches: int) -> int:
    height, width = targets.depth.shape[-2:]
    return round((height * width / num_patches) ** 0.5)


def _see_patches(
    targets: Targets, partner: Tensor, patch: int, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Return where partner frames ``[F]`` see the middle of each patch, and whether they do.

    Pixels ``[B, F, P, 2]``, and truth values ``[B, F, P]``.
    """
    height, width = targets.depth.shape[-2:]
    place = targets.points_in_world[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2, 3)
    valid = targets.valid[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2)
    in_partner = transform_points(targets.cam_from_world[:, partner, None], place)
    pixel, depth = project(in_partner, targets.intrinsics[:, partner, None])
    column, row = pixel.floor().long().unbind(-1)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth > 0)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    surface = targets.depth[:, partner].flatten(2).gather(2, index)
    is_same = (depth - surface).abs() < config.hidden * surface
    return pixel, is_inside & is_same & valid


def _soft_patches(pixel: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Spread each pixel ``[..., 2]`` over the up to four patches around it, ``[..., P]``."""
    x = (pixel[..., 0] / patch - 0.5).clamp(0.0, grid[1] - 1.0)
    y = (pixel[..., 1] / patch - 0.5).clamp(0.0, grid[0] - 1.0)
    columns = torch.arange(grid[1], device=pixel.device)
    rows = torch.arange(grid[0], device=pixel.device)
    by_column = (1.0 - (x[..., None] - columns).abs()).clamp(min=0.0)
    by_row = (1.0 - (y[..., None] - rows).abs()).clamp(min=0.0)
    return (by_row[..., :, None] * by_column[..., None, :]).flatten(-2)
