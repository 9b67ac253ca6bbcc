# SPDX-License-Identifier: Apache-2.0
"""The weights that ship with the package: found by name, checked, licensed, at their own size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ns_sparseattn.attention import BlockSparsePolicy
from ns_sparseattn.configs.plans import PLANS
from ns_sparseattn.configs.vggt import TINY, WEIGHTS
from ns_sparseattn.models import load_vggt, save_vggt
from ns_sparseattn.models.checkpoint import parse_metadata, read_checkpoint
from ns_sparseattn.models.loading import trained_side
from ns_sparseattn.models.registry import MODELS
from ns_sparseattn.models.shipped import FOLDER, SUMS, shipped_weights, write_checksum
from ns_sparseattn.models.weights import VGGT_FAMILY
from ns_sparseattn.options import FrameOptions


def test_tiny_is_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("shipped weights are not downloaded")

    monkeypatch.setattr("ns_sparseattn.models.loading.fetch_weights", fail)
    model, info = load_vggt("tiny", commercial=True)
    assert model.config == TINY
    assert not model.training
    assert (info.name, info.source) == ("tiny", "tiny.safetensors of this package")
    assert (info.licence, info.commercial, info.verified) == ("Apache-2.0", True, True)
    assert info.sha256 is not None
    assert info.sha256 in (FOLDER / SUMS).read_text(encoding="utf-8")
    assert info.sha256 in (FOLDER / "tiny.md").read_text(encoding="utf-8")


def test_the_file_is_what_its_entry_says() -> None:
    entry = WEIGHTS["tiny"]
    path = shipped_weights(entry.filename)
    checkpoint = read_checkpoint(path)
    assert len(checkpoint.tensors) == entry.num_keys
    assert path.stat().st_size / 1e9 == pytest.approx(entry.size_gb, abs=5e-4)
    stated = parse_metadata(checkpoint, "vggt_config")
    assert stated is not None
    assert tuple(stated.pop("taps")) == TINY.taps  # type: ignore[arg-type]
    assert stated["depth"] == TINY.depth
    # The same file, given by its path, sees photos of the same size.
    assert trained_side(VGGT_FAMILY, "tiny") == trained_side(VGGT_FAMILY, str(path))


def test_a_file_that_was_not_shipped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny ship with this package, but .* is missing"):
        shipped_weights("tiny.safetensors", tmp_path)
    file = tmp_path / "tiny.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is not the file that was shipped: its checksum differs"):
        shipped_weights(file.name, tmp_path)
    write_checksum(file)
    assert shipped_weights(file.name, tmp_path) == file
    shutil.copy(file, tmp_path / "other.safetensors")
    write_checksum(tmp_path / "other.safetensors")
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match="checksum differs"):
        shipped_weights(file.name, tmp_path)
    write_checksum(file)
    assert len((tmp_path / SUMS).read_text(encoding="utf-8").splitlines()) == 2


def test_photos_take_the_size_that_weights_were_trained_at(tmp_path: Path) -> None:
    entry = MODELS["vggt"]
    side = trained_side(VGGT_FAMILY, "tiny")
    assert entry.sized(FrameOptions(), "tiny").long_side == side
    for source in (None, "vggt-1b", "facebook/VGGT-1B", "seeded-small", "some/repository"):
        assert entry.sized(FrameOptions(), source).long_side == 518
    assert entry.sized(FrameOptions(long_side=280), "tiny").long_side == 280
    save_vggt(load_vggt("tiny")[0], tmp_path / "own.safetensors")
    assert entry.sized(FrameOptions(), str(tmp_path / "own.safetensors")).long_side == 112
    (tmp_path / "own.pt").touch()
    assert entry.sized(FrameOptions(), str(tmp_path / "own.pt")).long_side == 518
    assert MODELS["pi3"].sized(FrameOptions(), "pi3").long_side == 518


def test_tiny_has_plans_of_its_own() -> None:
    entry = MODELS["vggt"]
    assert set(PLANS["tiny"]) == set(PLANS["vggt"])
    for name in ("balanced", "fast"):
        plan = entry.plan(name, "tiny")
        assert plan is PLANS["tiny"][name].plan
        assert plan is not entry.plan(name)
        # Correspondence begins early in it: the plans of large networks would cut half of it off.
        policies = [plan.fitted_to(TINY.depth).policy(layer) for layer in range(TINY.depth)]
        assert sum(isinstance(policy, BlockSparsePolicy) for policy in policies) >= 5
    assert entry.plan("exact", "vggt-1b") is entry.plan("exact")
