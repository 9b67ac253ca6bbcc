# SPDX-License-Identifier: Apache-2.0
"""Our parameters have the names and shapes of the published weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ns_sparseattn.configs.vggt import WEIGHTS
from ns_sparseattn.models import VGGT, VGGTConfig
from ns_sparseattn.models.vggt_config import config_from_shapes, spread_taps
from ns_sparseattn.models.weights import DROPPED_PREFIXES

from .conftest import TINY
from .listing import read_listing


def _published() -> dict[str, tuple[int, ...]]:
    return read_listing("vggt_1b_tensors.txt")


def _shapes(config: VGGTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in VGGT(config).state_dict().items()}


def test_full_size_has_exactly_the_published_tensors() -> None:
    assert _shapes(VGGTConfig()) == _published()


def test_nothing_but_parameters_is_stored() -> None:
    with torch.device("meta"):
        model = VGGT()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert list(model.buffers()) == []


def test_listing_is_the_reference_without_the_track_head(shared: Path) -> None:
    reference = json.loads((shared / "models" / "vggt_state_dict.json").read_text())["keys"]
    kept = {
        key: tuple(entry["shape"])
        for key, entry in reference.items()
        if not key.startswith(DROPPED_PREFIXES)
    }
    assert kept == _published()
    published = [weights for weights in WEIGHTS.values() if weights.config == VGGTConfig()]
    assert len(published) >= 2
    assert {weights.num_keys for weights in published} == {len(reference)}


@pytest.mark.parametrize("config", [VGGTConfig(), VGGTConfig.small()], ids=["full", "small"])
def test_sizes_are_recognised_from_shapes(config: VGGTConfig) -> None:
    assert config_from_shapes(_shapes(config)) == config


def test_sizes_of_a_foreign_file_are_not_recognised() -> None:
    assert config_from_shapes({"blocks.0.attn.qkv.weight": (3, 1)}) is None
    shapes = _shapes(TINY)
    del shapes["aggregator.register_token"]
    assert config_from_shapes(shapes) is None


def test_taps_are_spread_as_published() -> None:
    assert spread_taps(24) == VGGTConfig().taps
    assert spread_taps(4) == (0, 1, 2, 3)
    assert spread_taps(1) == (0, 0, 0, 0)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`taps` must lie in \[0, 3\), got \(0, 1, 2, 3\)"):
        VGGTConfig(depth=3, taps=(0, 1, 2, 3))
    with pytest.raises(ValueError, match="`embed_dim` must be"):
        VGGTConfig(embed_dim=100)
