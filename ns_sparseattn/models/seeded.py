# SPDX-License-Identifier: Apache-2.0
"""Random but reproducible weights, for tests and demonstrations where no trained ones are at hand.

The geometry that comes out means nothing, but it is finite and well-behaved: poses near the
identity, depth near one, and from VGGT fields of view near one radian.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from .mapanything import MapAnything
from .mapanything_config import MapAnythingConfig
from .pi3 import Pi3
from .pi3_config import Pi3Config, Pi3XConfig
from .pi3_heads import PoseHead
from .pi3x import Pi3X
from .vggt import VGGT
from .vggt_config import VGGTConfig

ConfigT = TypeVar("ConfigT")
ModelT = TypeVar("ModelT", bound=nn.Module)

_TOKEN_STD = 0.02
_LAYER_SCALE = 0.1
_FIELD_OF_VIEW_RAD = 1.0
# Keeps what the random network adds to the identity pose small.
_POSE_GAIN = 0.02
# Keeps Pi3's points near the optical axis, at a depth near one.
_POINT_GAIN = 0.1


def make_seeded_vggt(config: VGGTConfig, seed: int = 0) -> VGGT:
    """Build a network whose every weight follows from its name and a seed.

    Args:
        config: Sizes.
        seed: Any integer; the same one gives the same weights on every machine and for any number
            of threads.

    Returns:
        The network in evaluation mode on the CPU.
    """
    model = _filled(VGGT, config, seed)
    # The encoding of the identity pose, in equal steps: no translation, quaternion (0, 0, 0, 1),
    # fields of view.
    identity = torch.tensor([0, 0, 0, 0, 0, 0, 1, _FIELD_OF_VIEW_RAD, _FIELD_OF_VIEW_RAD])
    last = model.camera_head.pose_branch.fc2
    with torch.no_grad():
        last.weight.mul_(_POSE_GAIN)
        last.bias.copy_(identity / config.camera_iterations)
    return model.eval()


def make_seeded_mapanything(config: MapAnythingConfig, seed: int = 0) -> MapAnything:
    """Build a MapAnything whose every weight follows from its name and a seed.

    Poses are near the identity, rays point forward, depth and scale are near one, and every pixel
    is a surface.

    Args:
        config: Sizes.
        seed: As for `make_seeded_vggt`.

    Returns:
        The network in evaluation mode on the CPU.
    """
    model = _filled(MapAnything, config, seed)
    dense = model.get_submodule("dense_head.1.conv2.2")
    assert isinstance(dense, nn.Conv2d)
    assert dense.bias is not None
    pose, scale = model.pose_head, model.scale_head
    with torch.no_grad():
        for layer in (pose.fc_t, pose.fc_rot, scale.output_proj, dense):
            layer.weight.mul_(_POSE_GAIN)
        pose.fc_rot.bias.copy_(torch.tensor([0, 0, 0, 1]))
        # Ray (0, 0, 1), depth, confidence, surface.
        dense.bias.copy_(torch.tensor([0, 0, 1, 0, 0, 1]))
    return model.eval()


def make_seeded_pi3(config: Pi3Config, seed: int = 0) -> Pi3:
    """Build a Pi3 as `make_seeded_vggt` builds a VGGT; its rays fit no camera."""
    model = _filled(Pi3, config, seed)
    _settle_pi3_poses(model.camera_head)
    with torch.no_grad():
        model.point_head.proj.weight.mul_(_POINT_GAIN)
    return model.eval()


def make_seeded_pi3x(config: Pi3XConfig, seed: int = 0) -> Pi3X:
    """Build a Pi3X as `make_seeded_vggt` builds a VGGT; its rays fit no camera."""
    model = _filled(Pi3X, config, seed)
    _settle_pi3_poses(model.camera_head)
    with torch.no_grad():
        model.metric_head.weight.mul_(_POINT_GAIN)
        for layer in model.point_head.last_layers():
            layer.weight.mul_(_POINT_GAIN)
    return model.eval()


def _filled(build: Callable[[ConfigT], ModelT], config: ConfigT, seed: int) -> ModelT:
    """Return a network whose every weight follows from its name and a seed."""
    with torch.device("meta"):
        model = build(config)
    fill_seeded(model, seed)
    return model


@torch.no_grad()
def _settle_pi3_poses(head: PoseHead) -> None:
    """Let a head say little more than the identity pose."""
    head.fc_t.weight.mul_(_POSE_GAIN)
    head.fc_rot.weight.mul_(_POSE_GAIN)
    head.fc_rot.bias.copy_(torch.eye(3).flatten())


def fill_seeded(model: nn.Module, seed: int) -> None:
    """Give every parameter of a model, which may be on the meta device, values from its name.

    Args:
        model: The model.
        seed: Any integer.
    """
    for owner_name, owner in model.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            key = f"{owner_name}.{name}"
            values = _make_weight(key, tuple(parameter.shape), _generator(key, seed))
            setattr(owner, name, nn.Parameter(values))


def _generator(key: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _make_weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    kind = key.rpartition(".")[2]
    if kind == "bias":
        return torch.zeros(shape)
    if kind == "gamma":
        return torch.full(shape, _LAYER_SCALE)
    if kind == "weight" and len(shape) == 1:
        return torch.ones(shape)
    # Norm-preserving layers: the gain of one over the square root of the inputs.
    std = 1 / math.sqrt(math.prod(shape[1:])) if kind == "weight" else _TOKEN_STD
    return torch.empty(shape).normal_(0.0, std, generator=generator)
