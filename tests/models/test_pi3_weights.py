# SPDX-License-Identifier: Apache-2.0
"""Loading Pi3 and Pi3X: what comes back, and a clear sentence for files of another network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ns_sparseattn.models import VGGT, save_vggt
from ns_sparseattn.models.pi3_config import Pi3Config, Pi3XConfig
from ns_sparseattn.models.pi3_weights import load_pi3, load_pi3x, save_pi3, save_pi3x
from ns_sparseattn.models.seeded import make_seeded_pi3, make_seeded_pi3x
from ns_sparseattn.models.weight_set import WeightsInfo

from .pi3_models import TINY_PI3, TINY_PI3X


def _assert_equal(found: nn.Module, wanted: nn.Module) -> None:
    tensors = wanted.state_dict()
    assert set(found.state_dict()) == set(tensors)
    for key, value in found.state_dict().items():
        assert torch.equal(value, tensors[key]), key


def test_saved_models_come_back_with_their_sizes(tmp_path: Path) -> None:
    pi3, pi3x = make_seeded_pi3(TINY_PI3), make_seeded_pi3x(TINY_PI3X)
    save_pi3(pi3, tmp_path / "pi3.safetensors")
    save_pi3x(pi3x, tmp_path / "pi3x.safetensors")
    for found, wanted in (
        (load_pi3(tmp_path / "pi3.safetensors")[0], pi3),
        (load_pi3x(tmp_path / "pi3x.safetensors")[0], pi3x),
    ):
        assert found.config == wanted.config
        assert not found.training
        _assert_equal(found, wanted)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_plain_state_dicts_are_read(tmp_path: Path, wrapper: str | None) -> None:
    model = make_seeded_pi3(Pi3Config.small())
    tensors = model.state_dict()
    torch.save(tensors if wrapper is None else {wrapper: tensors}, tmp_path / "pi3.pt")
    found, info = load_pi3(tmp_path / "pi3.pt")
    _assert_equal(found, model)
    assert found.config == Pi3Config.small()
    assert (info.licence, info.commercial, info.verified) == ("unknown", None, False)


def test_files_without_the_parts_for_conditions_are_read(tmp_path: Path) -> None:
    config = dataclasses.replace(Pi3XConfig.small(), has_conditions=False)
    model = make_seeded_pi3x(config)
    torch.save(model.state_dict(), tmp_path / "pi3x.pt")
    found, _ = load_pi3x(tmp_path / "pi3x.pt")
    _assert_equal(found, model)
    assert not found.has_conditions


def test_the_stored_mean_and_deviation_are_used(tmp_path: Path, images: Tensor) -> None:
    model = make_seeded_pi3(TINY_PI3)
    before = model.predict(images).depth
    model.image_mean += 0.3
    save_pi3(model, tmp_path / "shifted.safetensors")
    assert not torch.equal(
        load_pi3(tmp_path / "shifted.safetensors")[0].predict(images).depth, before
    )


def test_weights_of_other_networks_are_recognised(tmp_path: Path, tiny: VGGT) -> None:
    save_vggt(tiny, tmp_path / "vggt.safetensors")
    save_pi3(make_seeded_pi3(TINY_PI3), tmp_path / "pi3.safetensors")
    save_pi3x(make_seeded_pi3x(TINY_PI3X), tmp_path / "pi3x.safetensors")
    with pytest.raises(ValueError, match=r"not hold the weights of Pi3: .* It looks like VGGT\.$"):
        load_pi3(tmp_path / "vggt.safetensors")
    with pytest.raises(ValueError, match=r"not hold the weights of Pi3: .* looks like Pi3X\.$"):
        load_pi3(tmp_path / "pi3x.safetensors")
    with pytest.raises(ValueError, match=r"not hold the weights of Pi3X: .* looks like Pi3\.$"):
        load_pi3x(tmp_path / "pi3.safetensors")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = make_seeded_pi3(TINY_PI3).state_dict()
    del tensors["camera_head.fc_t.bias"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="1 missing .camera_head.fc_t.bias.") as caught:
        load_pi3(tmp_path / "cut.safetensors")
    assert "It looks like Pi3, of another or an incomplete kind." in str(caught.value)


@pytest.mark.parametrize("load", [load_pi3, load_pi3x])
def test_commercial_use_is_refused(
    tmp_path: Path, load: Callable[..., tuple[Any, WeightsInfo]]
) -> None:
    with pytest.raises(ValueError, match=r"\(CC BY-NC 4.0\) forbids commercial use") as caught:
        load(commercial=True, cache_dir=tmp_path)
    assert "no published weights of this network allow it" in str(caught.value)


@pytest.mark.parametrize("load", [load_pi3, load_pi3x])
def test_seeded_weights_follow_from_the_seed(
    load: Callable[..., tuple[Any, WeightsInfo]], images: Tensor
) -> None:
    model, info = load("seeded-small", seed=3)
    _assert_equal(model, load("seeded-small", seed=3)[0])
    assert not torch.equal(model.register_token, load("seeded-small", seed=4)[0].register_token)
    assert (info.seed, info.verified) == (3, False)
    prediction = model.predict(images)
    assert bool(((prediction.depth > 0.3) & (prediction.depth < 3)).all())
    turns = prediction.cam_from_world[:, :, :3].diagonal(dim1=1, dim2=2).sum(1)
    assert bool((turns > 2.9).all())
