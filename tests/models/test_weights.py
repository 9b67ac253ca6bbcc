# SPDX-License-Identifier: Apache-2.0
"""Loading weights: where they may come from, and a clear sentence for all that may be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ns_sparseattn.configs.vggt import TINY as TINY_SIZES
from ns_sparseattn.configs.vggt import WEIGHTS
from ns_sparseattn.models import VGGT, VGGTConfig, load_vggt, loading, save_vggt
from ns_sparseattn.models.seeded import make_seeded_vggt

from .conftest import TINY


@pytest.fixture
def tensors(tiny: VGGT) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in tiny.state_dict().items()}


def _assert_equal(found: VGGT, wanted: VGGT) -> None:
    for (key, a), (other, b) in zip(
        found.state_dict().items(), wanted.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(a, b), key


def test_a_saved_model_comes_back_with_its_sizes(tiny: VGGT, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_vggt(tiny, path)
    model, info = load_vggt(path)
    assert model.config == TINY
    assert not model.training
    _assert_equal(model, tiny)
    assert info.name == "tiny.safetensors"
    assert info.source == str(path)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.licence, info.commercial, info.verified) == ("unknown", None, False)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_plain_and_wrapped_state_dicts_are_read(
    tensors: dict[str, Tensor], tiny: VGGT, tmp_path: Path, suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3}, path)
    _assert_equal(load_vggt(path)[0], tiny)


def test_files_of_old_torch_are_read(
    tensors: dict[str, Tensor], tiny: VGGT, tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _assert_equal(load_vggt(tmp_path / "old.pt")[0], tiny)


def test_the_track_head_is_dropped_and_16_bit_weights_are_widened(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    half = {key: value.half() for key, value in tensors.items()}
    save_file(half | {"track_head.any": torch.zeros(2)}, tmp_path / "model.safetensors")
    model, _ = load_vggt(tmp_path / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.depth == TINY.depth


def test_a_folder_is_searched(tiny: VGGT, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights file"):
        load_vggt(tmp_path)
    torch.save(tensors, tmp_path / "model.pt")
    save_vggt(tiny, tmp_path / "other.safetensors")
    assert load_vggt(tmp_path)[1].name == "other.safetensors"
    save_vggt(tiny, tmp_path / "another.safetensors")
    with pytest.raises(ValueError, match=r"several weights files \(another.*, other.*\)"):
        load_vggt(tmp_path)
    save_vggt(tiny, tmp_path / "model.safetensors")
    assert load_vggt(tmp_path)[1].name == "model.safetensors"


def test_missing_extra_and_reshaped_keys_are_named(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for key in list(tensors):
        if key.startswith("point_head.norm"):
            del tensors[key]
    tensors["depth_head.surprise"] = torch.zeros(1)
    tensors["camera_head.token_norm.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of VGGT") as caught:
        load_vggt(tmp_path / "wrong.safetensors")
    message = str(caught.value)
    assert "2 missing (point_head.norm.weight, point_head.norm.bias)" in message
    assert "1 extra (depth_head.surprise)" in message
    assert "1 of wrong shape (camera_head.token_norm.bias [3] instead of [128])" in message
    assert "VGGT, of another or an incomplete kind" in message


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["decoder.0.attn.qkv.weight", "point_decoder.blocks.0.norm1.weight"], "Pi3"),
        (["point_decoder.blocks.0.norm1.weight", "metric_decoder.linear_out.bias"], "Pi3X"),
        (["encoder.model.cls_token", "info_sharing.norm.weight"], "MapAnything"),
        (["aggregator.inter_frame_blocks.0.norm1.weight"], "VGGT-Omega"),
        (["enc_blocks.0.norm1.weight", "dec_blocks2.0.norm1.weight"], "DUSt3R or MASt3R"),
        (["cls_token", "blocks.0.attn.qkv.weight"], "an image encoder alone"),
    ],
)
def test_weights_of_other_networks_are_recognised(
    tmp_path: Path, keys: list[str], name: str
) -> None:
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"1403 missing .* It looks like {name}"):
        load_vggt(tmp_path / "other.safetensors")


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was_executed",)


def test_pickles_that_would_run_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Malicious()}, "unsafe.pt")
    Path("plain.pt").write_bytes(pickle.dumps(_Malicious()))
    for name in ("unsafe.pt", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name} holds more than tensors"):
            load_vggt(name)
    assert not Path("was_executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a state dict, got list"),
        ({}, "must hold a state dict, got dict"),
        ({"a": torch.zeros(1), "epoch": 3}, "epoch are no tensors"),
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        load_vggt(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt", "empty.safetensors", "empty.pt"])
def test_damaged_files_are_refused(tiny: VGGT, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(tiny.state_dict(), path)
    else:
        save_vggt(tiny, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if name.startswith("cut") else b"")
    with pytest.raises(ValueError, match="damaged"):
        load_vggt(path)


def test_sources_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for source in ("vggt-2b", str(tmp_path / "absent.pt"), "absent/weights.pt"):
        with pytest.raises(ValueError, match=r"There are no weights .*vggt-1b, .*seeded-small"):
            load_vggt(source)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"must end in one of \.safetensors"):
        load_vggt(tmp_path / "notes.txt")


@pytest.mark.parametrize("source", ["vggt-1b", "vggt-1b-commercial", "someone/else"])
def test_offline_without_a_cached_file_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"not in the local cache.* `hf download ") as caught:
        load_vggt(source, cache_dir=tmp_path)
    assert str(caught.value).endswith("and give its path as the weights.")
    assert str(caught.value).count(". ") == 0


def test_offline_is_also_understood_through_the_environment(tmp_path: Path) -> None:
    program = "from ns_sparseattn.models import load_vggt; load_vggt('vggt-1b')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hf download facebook/VGGT-1B model.safetensors" in done.stderr


def _put_into_cache(cache: Path, repo_id: str, file: Path, name: str) -> str:
    """Lay a file into a cache as the hub's client does, and return its checksum."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    commit = "0" * 40
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    for folder in (repo / "blobs", repo / "refs", repo / "snapshots" / commit):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs" / digest).write_bytes(file.read_bytes())
    (repo / "snapshots" / commit / name).symlink_to(f"../../blobs/{digest}")
    return digest


@pytest.mark.parametrize("source", ["vggt-1b", "facebook/VGGT-1B"])
def test_a_cached_named_set_is_used_offline(
    tiny: VGGT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small = dataclasses.replace(WEIGHTS["vggt-1b"], config=TINY)
    monkeypatch.setitem(WEIGHTS, "vggt-1b", small)
    save_vggt(tiny, tmp_path / "file.safetensors")
    digest = _put_into_cache(
        tmp_path / "hub", "facebook/VGGT-1B", tmp_path / "file.safetensors", "model.safetensors"
    )
    model, info = load_vggt(source, cache_dir=tmp_path / "hub")
    _assert_equal(model, tiny)
    assert (info.name, info.sha256, info.verified) == ("vggt-1b", digest, True)
    assert (info.licence, info.commercial) == ("CC BY-NC 4.0", False)
    assert info.source == "facebook/VGGT-1B/model.safetensors"


def test_any_repository_is_used_as_unverified(
    tiny: VGGT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.save(tiny.state_dict(), tmp_path / "file.pt")
    _put_into_cache(tmp_path / "hub", "some.one/vggt-x", tmp_path / "file.pt", "model.pt")
    model, info = load_vggt("some.one/vggt-x", cache_dir=tmp_path / "hub")
    _assert_equal(model, tiny)
    assert info.source == "some.one/vggt-x/model.pt"
    assert not info.verified


def test_commercial_use_needs_a_licence_that_allows_it(
    tiny: VGGT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("refused weights must not be downloaded")

    monkeypatch.setattr(loading, "fetch_weights", fail)
    with pytest.raises(ValueError, match=r"vggt-1b \(CC BY-NC 4.0\) forbids commercial use"):
        load_vggt(commercial=True)
    save_vggt(tiny, tmp_path / "own.safetensors")
    for source in (tmp_path / "own.safetensors", "some/repository"):
        with pytest.raises(ValueError, match="is not known, so they are refused for commercial"):
            load_vggt(source, commercial=True)
    with pytest.raises(AssertionError, match="must not be downloaded"):
        load_vggt("vggt-1b-commercial", commercial=True)
    assert load_vggt("seeded-small", commercial=True)[1].commercial


def test_seeded_weights_follow_from_the_seed(images: Tensor) -> None:
    model, info = load_vggt("seeded-small", seed=3)
    again, _ = load_vggt("seeded-small", seed=3)
    other, _ = load_vggt("seeded-small", seed=4)
    _assert_equal(model, again)
    assert not torch.equal(model.aggregator.camera_token, other.aggregator.camera_token)
    assert model.config == VGGTConfig.small()
    assert (info.seed, info.sha256, info.verified) == (3, None, False)
    assert "unverified" in info.describe()
    prediction = model.predict(images)
    fov = 2 * torch.atan(42 / prediction.intrinsics[:, 0, 0])
    assert bool(((fov > 0.5) & (fov < 1.5)).all())


def test_seeded_weights_do_not_depend_on_threads(tiny: VGGT) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _assert_equal(make_seeded_vggt(TINY), tiny)
    finally:
        torch.set_num_threads(num_threads)


def test_named_sets_say_what_they_allow() -> None:
    for name, entry in WEIGHTS.items():
        assert entry.name == name
        assert entry.licence
        assert entry.licence_summary
        assert entry.config == (TINY_SIZES if name == "tiny" else VGGTConfig())
