# SPDX-License-Identifier: Apache-2.0
"""Parameters of our Pi3 and Pi3X have the names and shapes of the published weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ns_sparseattn.configs.pi3 import PI3X_WEIGHTS, WEIGHTS
from ns_sparseattn.models.pi3 import Pi3
from ns_sparseattn.models.pi3_config import (
    Pi3Config,
    Pi3XConfig,
    pi3_config_from_shapes,
    pi3x_config_from_shapes,
)
from ns_sparseattn.models.pi3x import Pi3X

from .listing import read_listing

CONDITION_PARTS = ("depth_encoder.", "depth_emb", "ray_embed.", "pose_inject_blk.")


def _shapes(build: type[nn.Module], config: Pi3Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build(config).state_dict().items()}


@pytest.mark.parametrize(
    ("build", "config", "listing", "num_parameters"),
    [
        (Pi3, Pi3Config(), "pi3_tensors.txt", 958_696_732),
        (Pi3X, Pi3XConfig(), "pi3x_tensors.txt", 1_360_032_433),
    ],
)
def test_full_size_has_exactly_the_published_tensors(
    build: type[nn.Module], config: Pi3Config, listing: str, num_parameters: int
) -> None:
    assert _shapes(build, config) == read_listing(listing)
    with torch.device("meta"):
        model = build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    # Constants have values wherever weights are made.
    assert {name: buffer.is_meta for name, buffer in model.named_buffers()} == {
        "image_mean": False,
        "image_std": False,
    }


def test_a_network_without_conditions_lacks_their_parts_alone() -> None:
    published = read_listing("pi3x_tensors.txt")
    kept = {key: x for key, x in published.items() if not key.startswith(CONDITION_PARTS)}
    config = Pi3XConfig(has_conditions=False)
    assert _shapes(Pi3X, config) == kept
    assert pi3x_config_from_shapes(kept) == config


@pytest.mark.parametrize("name", ["pi3", "pi3x"])
def test_listings_are_the_reference(shared: Path, name: str) -> None:
    reference = json.loads((shared / "models" / f"{name}_state_dict.json").read_text())
    found = {key: tuple(entry["shape"]) for key, entry in reference["keys"].items()}
    assert read_listing(f"{name}_tensors.txt") == found
    assert (WEIGHTS | PI3X_WEIGHTS)[name].num_keys == len(found)


@pytest.mark.parametrize("config", [Pi3Config(), Pi3Config.small()], ids=["full", "small"])
def test_sizes_of_pi3_are_recognised_from_shapes(config: Pi3Config) -> None:
    assert pi3_config_from_shapes(_shapes(Pi3, config)) == config


@pytest.mark.parametrize("config", [Pi3XConfig(), Pi3XConfig.small()], ids=["full", "small"])
def test_sizes_of_pi3x_are_recognised_from_shapes(config: Pi3XConfig) -> None:
    assert pi3x_config_from_shapes(_shapes(Pi3X, config)) == config


def test_sizes_of_foreign_files_are_not_recognised() -> None:
    assert pi3_config_from_shapes({"blocks.0.attn.qkv.weight": (3, 1)}) is None
    assert pi3x_config_from_shapes(_shapes(Pi3, Pi3Config.small())) is None


def test_named_sets_say_what_they_allow() -> None:
    for name, entry in (WEIGHTS | PI3X_WEIGHTS).items():
        assert entry.name == name
        assert entry.licence == "CC BY-NC 4.0"
        assert entry.licence_summary
        assert not entry.commercial_use
        build = Pi3X if isinstance(entry.config, Pi3XConfig) else Pi3
        shapes = _shapes(build, entry.config)
        assert entry.num_keys == len(shapes)
        num_bytes = 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
        assert entry.size_gb == pytest.approx(num_bytes / 1e9, abs=0.01)
    assert dataclasses.asdict(WEIGHTS["pi3"].config) == dataclasses.asdict(Pi3Config())
