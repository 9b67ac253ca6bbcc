# SPDX-License-Identifier: Apache-2.0
"""The network in training: the shipped class, run without what only inference needs.

`VGGT.forward` checks its input, plans memory and times its stages, all of which wait for the
device, and its heads run in float32. Here its parts are called directly; the values are the same.

Axes: ``I`` iterations, ``B`` scenes, ``F`` frames, ``D`` frames with dense outputs, ``P`` patches,
``C`` channels, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ns_sparseattn.attention import AttentionPlan, AttentionRun, TokenLayout
from ns_sparseattn.models import VGGT, VGGTConfig
from ns_sparseattn.models.block import Block, LayerNorm, LayerScale
from ns_sparseattn.models.compute import autocast, full_precision
from ns_sparseattn.models.images import normalize_images
from ns_sparseattn.models.pose_encoding import activate_pose_encoding
from ns_sparseattn.models.rope import grid_positions, rope_table
from ns_sparseattn.models.seeded import make_seeded_vggt
from ns_sparseattn.models.vggt import activate_depth, activate_points
from training.cpu_attention import CpuAttention

_POSE_GAIN = 10.0


@dataclass(frozen=True, kw_only=True)
class TrainingOutput:
    """What the losses look at."""

    encodings: Tensor  # [I, B, F, 9]
    depth: Tensor  # [B, D, H, W]
    depth_confidence: Tensor  # [B, D, H, W]
    points: Tensor  # [B, D, H, W, 3]
    points_confidence: Tensor  # [B, D, H, W]
    early_tokens: Tensor  # [B, F, P, C]
    """Patch tokens after the global block of the layer asked for."""
    track_tokens: Tensor  # [B, F, P, C]
    """The same of the layer after it, whose first head looks for correspondences."""
    geometry_tokens: tuple[Tensor, ...]  # [B, F, P, C] each
    """The same of all layers after those two, the last one included."""
    query: Tensor  # [B, F, P, E]
    """Queries of the patches in the first head of the global block after the early one."""
    key: Tensor  # [B, F, T, E]
    """Keys of all tokens in the same head."""


def make_network(config: VGGTConfig, seed: int, *, layer_scale: float) -> VGGT:
    """Build a network to be trained: norm-preserving layers, poses near the identity, known places.

    Args:
        config: Sizes.
        seed: Of the weights.
        layer_scale: First value of the factors of all branches.
    """
    model = make_seeded_vggt(config, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerScale):
                module.gamma.fill_(layer_scale)
        # Seeded weights keep poses near the identity; gradients are to pass that layer, too.
        model.camera_head.pose_branch.fc2.weight.mul_(_POSE_GAIN)
        # Rotary embedding tells attention where patches are, but not what it reads from them: poses
        # need positions in the tokens themselves, and a short run cannot wait until they grow.
        positions = model.aggregator.patch_embed.pos_embed
        positions[:, 1:] = _sinusoidal_grid(config.vit.grid_size, config.embed_dim)
    return model.train()


def _sinusoidal_grid(side: int, dim: int) -> Tensor:
    """Return sines and cosines of rows and columns, ``[side * side, dim]`` of variance 1/2."""
    place = (torch.arange(side) + 0.5) / side
    # From half a wave over the image to one over about four patches.
    octaves = torch.linspace(0.0, 1.0, dim // 4) * math.log2(max(side / 2.0, 2.0))
    angle = math.pi * torch.exp2(octaves) * place[:, None]
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1)  # [side, dim / 2]
    rows = waves[:, None].expand(-1, side, -1)
    columns = waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def run_network(
    model: VGGT,
    images: Tensor,  # [B, F, 3, H, W] uint8
    *,
    dense_frames: Tensor,  # [B, D]
    early_layer: int,
    dtype: torch.dtype | None,
) -> TrainingOutput:
    """Run all heads with autograd.

    Args:
        model: The network.
        images: Photos; both sides are multiples of the patch size.
        dense_frames: Frames for which depth and points are computed: they cost as much as all else.
        early_layer: First layer whose patch tokens to return, together with all later ones'.
        dtype: Autocast type of everything but the camera head; ``None`` for float32.

    Returns:
        The outputs, in float32.
    """
    config, device = model.config, images.device
    grid = (images.shape[-2] // config.patch_size, images.shape[-1] // config.patch_size)
    num_frames = images.shape[1]
    layout = TokenLayout(
        num_frames=num_frames,
        num_special=config.num_special,
        grid_height=grid[0],
        grid_width=grid[1],
    )
    positions = grid_positions(*grid, config.num_special, device=device)
    rope = rope_table(positions, config.embed_dim // config.num_heads)
    with autocast(device, dtype), _attention_kernel(device):
        patches = model.aggregator.patch_embed(normalize_images(images).flatten(0, 1))
        special = model.aggregator.special_tokens(num_frames).expand(len(images), -1, -1, -1)
        tokens = torch.cat([special, patches.float().unflatten(0, images.shape[:2])], dim=2)
        aggregated = model.aggregator(
            tokens,
            AttentionRun(AttentionPlan.dense(), layout, config.depth),
            rope,
            taps={*config.taps, *range(early_layer, config.depth)},
            frames_per_chunk=num_frames,
            autocast=functools.partial(autocast, device, dtype),
        )
        rows = torch.arange(len(images), device=device)[:, None]
        taps = [
            aggregated.taps[layer][rows, dense_frames][:, :, config.num_special :].flatten(0, 1)
            for layer in config.taps
        ]
        block = model.aggregator.global_blocks[early_layer + 1]
        assert isinstance(block, Block)
        # What the block made its queries and keys of, which its attention does not hand out.
        query, key, _ = block.project(
            aggregated.taps[early_layer + 1][..., : config.embed_dim], rope
        )
        raw_depth, raw_points = model.depth_head(taps, grid), model.point_head(taps, grid)
    with full_precision(device):
        raw = model.camera_head(aggregated.last_special[:, :, 0].float())
        depth, depth_confidence = _activate(activate_depth, raw_depth, dense_frames)
        points, points_confidence = _activate(activate_points, raw_points, dense_frames)
    return TrainingOutput(
        encodings=activate_pose_encoding(raw),
        depth=depth,
        depth_confidence=depth_confidence,
        points=points,
        points_confidence=points_confidence,
        early_tokens=_patch_tokens(aggregated.taps[early_layer], config),
        track_tokens=_patch_tokens(aggregated.taps[early_layer + 1], config),
        geometry_tokens=tuple(
            _patch_tokens(aggregated.taps[layer], config)
            for layer in geometry_layers(early_layer, config.depth)
        ),
        query=query[:, :, 0, config.num_special :],
        key=key[:, :, 0],
    )


def geometry_layers(early_layer: int, depth: int) -> range:
    """Return the layers whose patches are asked for rays and points; the last one if no other."""
    return range(min(early_layer + 2, depth - 1), depth)


def _patch_tokens(tap: Tensor, config: VGGTConfig) -> Tensor:
    """Return what the global block made of the patches."""
    return tap[:, :, config.num_special :, config.embed_dim :]


def _attention_kernel(device: torch.device) -> AbstractContextManager[object]:
    return CpuAttention() if device.type == "cpu" else nullcontext()


def _activate(
    activate: Callable[[Tensor], tuple[Tensor, Tensor]], raw: Tensor, dense_frames: Tensor
) -> tuple[Tensor, Tensor]:
    # Exponentials of what an early network says can be anything; bounds far from all that is true.
    value, confidence = activate(raw.float().clamp(-8.0, 8.0))
    shape = tuple(dense_frames.shape)
    return value.unflatten(0, shape), confidence.unflatten(0, shape)


class PatchHeads(nn.Module):
    """Linear heads that read from patch tokens what the losses ask of them.

    They are used by the losses alone and are not part of what is shipped.

    Args:
        dim: Channels of a token.
        num_layers: Layers that are asked for rays and points.
        size: Channels in which patches are compared.
    """

    def __init__(self, dim: int, num_layers: int, *, size: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(dim, size)
        self.key = nn.Linear(dim, size)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(15.0)))
        self.norm = LayerNorm(dim)
        self.place = nn.Linear(dim, 2)
        self.geometry = nn.ModuleList(
            nn.Sequential(LayerNorm(dim), nn.Linear(dim, 9)) for _ in range(num_layers)
        )

    def compare(
        self,
        source: Tensor,  # [..., P, C]
        target: Tensor,  # [..., P, C]
    ) -> Tensor:
        """Return logits ``[..., P, P]`` of source patches over target patches."""
        query = nn.functional.normalize(self.query(source), dim=-1)
        key = nn.functional.normalize(self.key(target), dim=-1)
        return self.log_sharpness.exp() * (query @ key.transpose(-1, -2))

    def displacement(
        self,
        tokens: Tensor,  # [..., P, C]
    ) -> Tensor:
        """Return how far away the first frame sees the same, ``[..., P, 2]``."""
        return self.place(self.norm(tokens))

    def rays_and_points(
        self,
        tokens: Tensor,  # [B, F, P, C]
        layer: int,
    ) -> Tensor:
        """Return ``[B, F, P, 9]``: the direction of a patch's ray, its camera's centre, its point.

        All in the frame of the first camera.

        Args:
            tokens: Of a layer.
            layer: Which of the layers that are asked.
        """
        return self.geometry[layer](tokens)
