# SPDX-License-Identifier: Apache-2.0
"""Weights and images made from names alone, with which reference outputs were recorded.

Every tensor has its own random stream, seeded by the SHA-256 of its name, so neither the order in
which tensors are made nor any model code matters.

Axes: ``F`` frames, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import quaternion_to_rotation

_LAYER_SCALE_MEAN, _LAYER_SCALE_STD = 0.3, 0.05
_NORM_STD = 0.1
_BIAS_STD = 0.05
_TOKEN_STD = 0.3
_LINEAR_GAIN = 0.8
_NUM_CLUSTERS = 16
_CLUSTER_RUN = 40
_CLUSTER_NOISE = 0.7


def named_rng(name: str) -> np.random.Generator:
    """Return the random stream of a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(seed))


def weight_distribution(key: str, shape: tuple[int, ...], conv_gain: float) -> tuple[float, float]:
    """Return mean and deviation of a parameter, by the end of its name and its axes."""
    kind = key.rpartition(".")[2]
    if kind == "gamma":
        return _LAYER_SCALE_MEAN, _LAYER_SCALE_STD
    if kind == "bias":
        return 0.0, _BIAS_STD
    if kind != "weight":
        return 0.0, _TOKEN_STD
    if len(shape) == 1:
        return 1.0, _NORM_STD
    gain = conv_gain if len(shape) == 4 else _LINEAR_GAIN
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def make_weight(tag: str, key: str, shape: tuple[int, ...], conv_gain: float = 1.0) -> Tensor:
    """Return one parameter of the recipe, float32."""
    mean, std = weight_distribution(key, shape, conv_gain)
    values = named_rng(f"{tag}/param/{key}").standard_normal(shape)
    values *= std
    values += mean
    return torch.from_numpy(values.astype(np.float32))


def fill_weights(module: nn.Module, tag: str, conv_gain: float = 1.0) -> None:
    """Give every parameter of a module, which may be on the meta device, its values of the recipe.

    Args:
        module: The model; its parameter names must be those of the published weights.
        tag: Name of the set of weights.
        conv_gain: Gain of convolutions.
    """
    for owner_name, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            key = f"{owner_name}.{name}" if owner_name else name
            values = make_weight(tag, key, tuple(parameter.shape), conv_gain)
            setattr(owner, name, nn.Parameter(values, requires_grad=parameter.requires_grad))


def make_images(image_tag: str, num_frames: int, height: int, width: int) -> Tensor:
    """Return smooth noisy images, float32 in [0, 1], ``[F, 3, H, W]``."""
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None, :]
    images = np.empty((num_frames, 3, height, width), dtype=np.float32)
    for frame in range(num_frames):
        for channel in range(3):
            rng = named_rng(f"{image_tag}/image/{frame}/{channel}")
            frequency_x, frequency_y = rng.uniform(-3, 3, 2)
            phase = rng.uniform(0, 2 * np.pi)
            noise = rng.random((height, width))
            wave = np.sin(2 * np.pi * (frequency_x * x + frequency_y * y) + phase)
            images[frame, channel] = np.clip(0.5 + 0.3 * wave + 0.2 * (2 * noise - 1), 0, 1)
    return torch.from_numpy(images)


def make_pose(tag: str, frame: int) -> Tensor:
    """Return one frame's ``world_from_cam``, float64 ``[3, 4]``, about 30 degrees off identity."""
    rng = named_rng(f"{tag}/pose/{frame}")
    quaternion_xyzw = np.array([0.0, 0.0, 0.0, 1.0]) + 0.3 * rng.standard_normal(4)
    translation = torch.from_numpy(rng.standard_normal(3))
    rotation = quaternion_to_rotation(torch.from_numpy(quaternion_xyzw).roll(1))
    return torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)


def make_intrinsics(tag: str, frame: int, height: int, width: int) -> Tensor:
    """Return one frame's intrinsics, float64 ``[3, 3]``, first pixel centre at (0, 0)."""
    rng = named_rng(f"{tag}/intrinsics/{frame}")
    intrinsics = torch.eye(3, dtype=torch.float64)
    # Both focal lengths are drawn in units of the width.
    intrinsics[0, 0] = width * rng.uniform(0.8, 1.2)
    intrinsics[1, 1] = width * rng.uniform(0.8, 1.2)
    intrinsics[0, 2] = width * rng.uniform(0.45, 0.55)
    intrinsics[1, 2] = height * rng.uniform(0.45, 0.55)
    return intrinsics


def make_depth(tag: str, frame: int, height: int, width: int) -> Tensor:
    """Return one frame's z-depth, float32 ``[H, W]`` between 1 and 5, a tenth of it 0."""
    rng = named_rng(f"{tag}/depth/{frame}")
    depth = 1 + 4 * rng.random((height, width))
    depth[rng.random((height, width)) < 0.1] = 0
    return torch.from_numpy(depth.astype(np.float32))


def make_qkv(
    tag: str, shape: tuple[int, int, int, int], *, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values whose tokens come in runs around 16 shared centres.

    Args:
        tag: Name of the inputs.
        shape: ``[B, H, N, D]``: batch, heads, tokens, head size.
        strength: Spread of the centres of queries and keys; those of values have one.

    Returns:
        ``q``, ``k`` and ``v``, float32.
    """
    batch, heads, num_tokens, head_size = shape
    cluster = np.arange(num_tokens) // _CLUSTER_RUN % _NUM_CLUSTERS
    tensors = []
    for name, spread in (("q", strength), ("k", strength), ("v", 1.0)):
        rng = named_rng(f"{tag}/{name}")
        centres = rng.standard_normal((batch, heads, _NUM_CLUSTERS, head_size)) * spread
        values = centres[:, :, cluster] + _CLUSTER_NOISE * rng.standard_normal(shape)
        tensors.append(torch.from_numpy(values.astype(np.float32)))
    q, k, v = tensors
    return q, k, v
