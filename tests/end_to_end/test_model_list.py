# SPDX-License-Identifier: Apache-2.0
"""``ns-sparseattn models`` says what there is, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from ns_sparseattn.model_list import list_weights
from ns_sparseattn.models.hub import cached_weights, fetch_weights


def keep_in_cache(cache: Path, repo_id: str, filename: str) -> Path:
    """Lay a file out as the hub's client does after a download."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123abc")
    (snapshot / filename).write_bytes(b"weights")
    return snapshot / filename


def test_what_was_downloaded_is_found_offline(tmp_path: Path) -> None:
    kept = keep_in_cache(tmp_path, "yyfz233/Pi3X", "model.safetensors")
    assert cached_weights("yyfz233/Pi3X", "model.safetensors", tmp_path) == kept
    assert cached_weights("yyfz233/Pi3", "model.safetensors", tmp_path) is None


def test_every_set_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in_cache(tmp_path, "facebook/map-anything-apache", "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    listed = {row.weights.name: row for row in list_weights()}
    here = [name for name, row in listed.items() if row.is_downloaded]
    assert here == ["tiny", "map-anything-apache"]
    assert [name for name, row in listed.items() if row.is_default] == [
        "vggt-1b",
        "pi3",
        "pi3x",
        "map-anything",
    ]
    assert listed["pi3"].told == "photos alone"
    assert listed["pi3x"].told == "intrinsics, poses, depth"
    # What the list calls downloaded is what loading takes.
    found = fetch_weights("facebook/map-anything-apache", "model.safetensors")
    assert found.read_bytes() == b"weights"
