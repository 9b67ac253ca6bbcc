# SPDX-License-Identifier: Apache-2.0
"""Every network goes through the whole pipeline, dense and sparse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ns_sparseattn.models import MODELS, find_model
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.pipeline import AttentionOptions, ProcessOptions, WeightsOptions, process
from ns_sparseattn.testing.photos import write_hard_case


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("attention", ["exact", "balanced"])
def test_a_scene_comes_out(tmp_path: Path, model: str, attention: str) -> None:
    result = process(
        ProcessOptions(
            model=model,
            data=write_hard_case(tmp_path / "photos", "two_images"),
            output_dir=tmp_path / "scene",
            weights=WeightsOptions(weights="seeded-small", device="cpu"),
            attention=AttentionOptions(attention=attention),  # pyright: ignore[reportArgumentType]
            frames=FrameOptions(long_side=112),
        )
    )
    manifest = json.loads((result.folder.root / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == manifest["options"]["model"] == model
    assert len(result.scene.images) == 2
    assert len(result.attention) >= 2
    assert {stats.policy == "dense" for stats in result.attention} == {attention == "exact"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("vggt", "vggt-1b"),
        ("pi3", "pi3"),
        ("pi3x", "pi3x"),
        ("mapanything", "map-anything"),
    ],
)
def test_each_model_has_weights_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    sets, default = find_model(model).family.named_sets()
    assert default == name
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    options = ProcessOptions(
        model=model,
        data=write_hard_case(tmp_path / "photos", "two_images"),
        output_dir=tmp_path / "scene",
        weights=WeightsOptions(device="cpu"),
    )
    with pytest.raises(ValueError, match=f"The weights {sets[name].repo_id} are not in the local"):
        process(options)


def test_weights_of_another_model_are_not_known_by_name(tmp_path: Path) -> None:
    options = ProcessOptions(
        model="pi3",
        data=write_hard_case(tmp_path / "photos", "two_images"),
        output_dir=tmp_path / "scene",
        weights=WeightsOptions(weights="vggt-1b", device="cpu"),
    )
    with pytest.raises(ValueError, match=r"There are no weights vggt-1b: give a named set \(pi3,"):
        process(options)


def test_a_model_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="`model` must be one of vggt, pi3, pi3x, mapanything"):
        find_model("dust3r")
