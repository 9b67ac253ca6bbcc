# SPDX-License-Identifier: Apache-2.0
"""MapAnything's weights: published names and shapes, aliases, named sets, golden outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ns_sparseattn.configs.mapanything import DEFAULT_WEIGHTS, WEIGHTS
from ns_sparseattn.models import load_vggt, loading
from ns_sparseattn.models.mapanything import MapAnything
from ns_sparseattn.models.mapanything_config import (
    MapAnythingConfig,
    mapanything_config_from_shapes,
)
from ns_sparseattn.models.mapanything_weights import (
    canonical_key,
    load_mapanything,
    save_mapanything,
)
from ns_sparseattn.models.seeded import make_seeded_mapanything
from ns_sparseattn.testing.golden_file import GoldenFile
from ns_sparseattn.testing.recipe import make_depth, make_intrinsics, make_pose

from .golden_files import assert_file_agrees
from .listing import read_listing
from .test_mapanything import TINY, TINY_V1

VERSIONS = {
    "v1.1": (MapAnythingConfig(), "mapanything"),
    "v1": (MapAnythingConfig.v1(), "mapanything_v1"),
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return make_seeded_mapanything(TINY).state_dict()


def _shapes(config: MapAnythingConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = MapAnything(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _aliases(shared: Path, name: str) -> dict[str, str]:
    keys = json.loads((shared / "models" / f"{name}_state_dict.json").read_text())["keys"]
    return {key: entry["alias_of"] for key, entry in keys.items() if "alias_of" in entry}


def _assert_equal(found: MapAnything, tensors: dict[str, Tensor]) -> None:
    state = found.state_dict()
    assert set(state) == set(tensors)
    for key, value in state.items():
        assert torch.equal(value, tensors[key]), key


@pytest.mark.parametrize("version", VERSIONS)
def test_full_sizes_have_exactly_the_published_tensors(version: str) -> None:
    config, name = VERSIONS[version]
    published = read_listing(f"{name}_tensors.txt")
    assert _shapes(config) == published
    assert mapanything_config_from_shapes(published) == config
    named = {weights.num_keys for weights in WEIGHTS.values() if weights.config == config}
    assert named == {len(published)}


@pytest.mark.parametrize("version", VERSIONS)
def test_listings_are_the_reference_without_aliases(version: str, shared: Path) -> None:
    _, name = VERSIONS[version]
    keys = json.loads((shared / "models" / f"{name}_state_dict.json").read_text())["keys"]
    aliases = _aliases(shared, name)
    assert len(aliases) == 76
    assert {key: canonical_key(key) for key in aliases} == aliases
    kept = {key: tuple(entry["shape"]) for key, entry in keys.items() if key not in aliases}
    assert kept == read_listing(f"{name}_tensors.txt")
    assert all(canonical_key(key) == key for key in kept)


@pytest.mark.parametrize("config", [TINY, TINY_V1, MapAnythingConfig.small()])
def test_sizes_are_recognised_from_shapes(config: MapAnythingConfig) -> None:
    assert mapanything_config_from_shapes(_shapes(config)) == config


def test_sizes_of_a_foreign_file_are_not_recognised() -> None:
    assert mapanything_config_from_shapes({"info_sharing.norm.weight": (64,)}) is None


def test_the_mark_of_the_first_frame_is_the_sinusoid_of_position_zero() -> None:
    with torch.device("meta"):
        table = MapAnything(TINY).info_sharing.view_pos_table
    assert torch.equal(table, torch.tensor([0.0, 1.0]).repeat(1, 32))


@pytest.mark.parametrize("kept", ["none", "all", "some", "instead"])
def test_aliases_may_be_there_or_not(tensors: dict[str, Tensor], tmp_path: Path, kept: str) -> None:
    file = dict(tensors)
    for key, value in tensors.items():
        if not key.startswith("dense_head."):
            continue
        other = key.replace("dense_head.0.", "dpt_feature_head.").replace(
            "dense_head.1.", "dpt_regressor_head."
        )
        if kept == "all" or (kept == "some" and "bias" in key):
            file[other] = value.clone()
        elif kept == "instead":
            file[other] = file.pop(key)
    for level in range(4):
        value = tensors[f"dense_head.0.input_process.{level}.1.weight"]
        if kept == "all":
            for prefix in ("dense_head.0", "dpt_feature_head"):
                file[f"{prefix}.scratch.layer{level + 1}_rn.weight"] = value.clone()
                file[f"{prefix}.scratch.layer_rn.{level}.weight"] = value.clone()
    assert (len(file) > len(tensors)) == (kept in ("all", "some"))
    save_file(file, tmp_path / "model.safetensors")
    model, info = load_mapanything(tmp_path)
    _assert_equal(model, tensors)
    assert model.config == TINY
    assert not info.verified


def test_aliases_that_differ_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    odd = {"dpt_regressor_head.conv1.bias": tensors["dense_head.1.conv1.bias"] + 1}
    save_file(tensors | odd, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"`dpt_regressor_head.conv1.bias` must equal `dense_head"):
        load_mapanything(tmp_path / "odd.safetensors")


def test_a_saved_model_comes_back_with_its_sizes(tmp_path: Path) -> None:
    model = make_seeded_mapanything(TINY_V1, seed=5)
    save_mapanything(model, tmp_path / "tiny.safetensors")
    loaded, _ = load_mapanything(tmp_path / "tiny.safetensors")
    assert loaded.config == TINY_V1
    _assert_equal(loaded, model.state_dict())


def test_files_of_other_networks_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "map.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of VGGT.*like MapAnything"):
        load_vggt(tmp_path / "map.safetensors")
    save_file({"point_decoder.a": torch.zeros(1)}, tmp_path / "pi3.safetensors")
    with pytest.raises(ValueError, match="hold the weights of MapAnything.*736 missing.*like Pi3"):
        load_mapanything(tmp_path / "pi3.safetensors")


def test_named_sets_say_what_they_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("refused weights must not be downloaded")

    monkeypatch.setattr(loading, "fetch_weights", fail)
    assert DEFAULT_WEIGHTS in WEIGHTS
    for name, weights in WEIGHTS.items():
        assert weights.name == name
        assert weights.repo_id == f"facebook/{name}"
        assert weights.commercial_use == (weights.licence == "Apache-2.0") == ("apache" in name)
        assert (weights.config == MapAnythingConfig.v1()) == name.endswith("-v1")
        message = "must not be downloaded" if weights.commercial_use else "forbids commercial use"
        error = AssertionError if weights.commercial_use else ValueError
        with pytest.raises(error, match=message):
            load_mapanything(name, commercial=True)
    with pytest.raises(ValueError, match=r"no weights nothing: give a named set \(map-anything, "):
        load_mapanything("nothing")


def test_seeded_weights_follow_from_the_seed() -> None:
    model, info = load_mapanything("seeded-small", seed=3)
    again, _ = load_mapanything("seeded-small", seed=3)
    other, _ = load_mapanything("seeded-small", seed=4)
    _assert_equal(again, model.state_dict())
    assert not torch.equal(other.scale_token, model.scale_token)
    assert (info.seed, info.verified) == (3, False)


@pytest.mark.parametrize(
    "name",
    ["map_small_all_nonmetric", "map_small_partial", "map_small_v1_all", "map_small_masked"],
)
def test_golden_outputs_are_within_tolerance(golden_folder: Path, name: str) -> None:
    # Copies of the recorded files with fewer arrays; the images follow from their names.
    assert_file_agrees(golden_folder / f"{name}.npz")


def test_inputs_of_the_recipe_are_those_that_were_stored(golden_folder: Path) -> None:
    # Files with layers of the published size store none and rely on the recipe.
    golden = GoldenFile.load(golden_folder / "map_small_v1_all.npz")
    tag, size = golden.config["image_tag"], (golden.config["height"], golden.config["width"])
    for frame in range(golden.config["frames"]):
        for name, made in (
            ("camera_poses", make_pose(tag, frame)),
            ("intrinsics", make_intrinsics(tag, frame, *size)),
            ("depth_z", make_depth(tag, frame, *size)),
        ):
            stored = golden.tensor(f"in_view{frame}_{name}")[0, : len(made)]
            torch.testing.assert_close(made.float(), stored, rtol=1e-6, atol=1e-6)


def test_golden_units_are_within_tolerance(golden_folder: Path) -> None:
    # A formula for large images, a remark, and intrinsics of which ours are nearer to the pixels.
    left_out = {"K_recovered_geometric", "nan_self_angle_fraction", "pre_0_out_K", "pre_1_out_K"}
    assert_file_agrees(golden_folder / "units_map.npz", left_out=left_out)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "full"])
def test_all_golden_files_are_within_tolerance(shared: Path, size: str) -> None:
    files = sorted((shared / "models" / "golden_a").glob(f"map_{size}_*.npz"))
    assert len(files) == {"small": 7, "full": 4}[size]
    for path in files:
        assert_file_agrees(path)
