# SPDX-License-Identifier: Apache-2.0
"""Backends that tests run over; look-alikes of models by others, for the tests of `sparsify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ns_sparseattn.attention import (
    AttentionPlan,
    BackendName,
)
from ns_sparseattn.attention.backends import native_build
from ns_sparseattn.testing.lookalikes import (
    MapAnythingLookalike,
    Pi3Lookalike,
    VggtLookalike,
)

BACKENDS: tuple[BackendName, ...] = ("reference", "gather", "native", "auto")

HALF = AttentionPlan.block_sparse(density=0.5)
GRID = (9, 11)
NUM_PATCHES = GRID[0] * GRID[1]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    """Every backend that this machine can have."""
    # A kernel that could be built but does not build is a failure, not a reason to skip.
    if request.param == "native" and native_build.describe().startswith("not available"):
        pytest.skip(f"The native backend is {native_build.describe()}")
    return request.param


def images(batch: int = 1, num_frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    sides = (14 * side for side in GRID)
    return torch.rand(batch, num_frames, 3, *sides, generator=generator)


@dataclass(frozen=True)
class Case:
    """A model with a structure, and how to call it."""

    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor], Any]
    names: tuple[str, ...]
    num_special: int
    num_trailing: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().eval()


def views(x: Tensor) -> list[dict[str, Tensor]]:
    return [{"img": view} for view in x.unbind(1)]


CASES = {
    "vggt": Case(
        VggtLookalike,
        lambda x: x,
        tuple(f"aggregator.global_blocks.{i}.attn" for i in range(3)),
        num_special=5,
    ),
    "pi3": Case(
        Pi3Lookalike, lambda x: x, tuple(f"decoder.{i}.attn" for i in (1, 3, 5)), num_special=5
    ),
    "mapanything": Case(
        MapAnythingLookalike,
        views,
        tuple(f"info_sharing.self_attention_blocks.{i}.attn" for i in (0, 2, 4)),
        num_special=1,
        num_trailing=1,
    ),
    "mapanything-v1": Case(
        lambda: MapAnythingLookalike(has_view_token=False),
        views,
        tuple(f"info_sharing.self_attention_blocks.{i}.attn" for i in (0, 2, 4)),
        num_special=0,
        num_trailing=1,
    ),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything on the instances: a replaced forward, a hook or a flag would show."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            # Dictionaries of hooks and modules are compared by what they hold.
            state[f"{name}:{key}"] = dict(value) if isinstance(value, dict) else value
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
