# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact or rounded as promised, in parts, and never half there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.checkpoint import PART_BYTES, load_checkpoint, save_checkpoint
from training.codec import Codec, decode, encode
from training.config import CONFIGS
from training.network import PatchHeads, geometry_layers, make_network

# Largest error as a share of the value, and of the largest value in the tensor.
BOUNDS: dict[Codec, tuple[float, float]] = {
    "exact": (0.0, 0.0),
    "three_bytes": (2.0**-16, 0.0),
    "linear8": (0.0, 0.5 / 127),
}


@pytest.mark.parametrize("codec", list(BOUNDS))
@pytest.mark.parametrize("shape", [(), (1,), (7, 13), (64,), (65, 3)], ids=str)
def test_codecs_keep_what_they_promise(codec: Codec, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3.0
    back = decode(encode(values, codec), codec, shape)
    relative, absolute = BOUNDS[codec]
    assert back.shape == values.shape
    error = (back - values).abs()
    assert bool((error <= relative * values.abs() + 1.001 * absolute * values.abs().max()).all())


def test_squares_keep_their_size_over_many_orders() -> None:
    values = torch.logspace(-20, 0, 500)
    back = decode(encode(values, "log8"), "log8", (500,))
    # 256 levels over 66 octaves.
    assert float((back / values).log2().abs().max()) <= 66.5 / 255 / 2 + 1e-3
    assert bool((decode(encode(torch.zeros(5), "log8"), "log8", (5,)) < 1e-29).all())


def test_zeros_and_extremes_survive() -> None:
    values = torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-38])
    for codec in ("exact", "three_bytes", "linear8"):
        back = decode(encode(values, codec), codec, (5,))
        assert bool(back.isfinite().all())
        assert back[0] == 0.0


def test_a_checkpoint_comes_back_from_parts(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(1000 + i) for i in range(7)}
    state = {"step": 5, "elapsed_s": 1.5}
    size = save_checkpoint(
        tmp_path, {name: (t, "exact") for name, t in tensors.items()}, state, part_bytes=9000
    )
    parts = sorted((tmp_path / "checkpoint").glob("part-*.bin"))
    assert len(parts) == -(-size // 9000)
    assert max(part.stat().st_size for part in parts) <= 9000
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == state
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())


def test_no_checkpoint_is_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"a": (torch.randn(10), "exact")}, {})
    part = tmp_path / "checkpoint" / "part-000.bin"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"part-000\.bin is missing or damaged"):
        load_checkpoint(tmp_path)
    part.unlink()
    with pytest.raises(ValueError, match=r"part-000\.bin is missing or damaged"):
        load_checkpoint(tmp_path)


def test_a_run_that_dies_while_saving_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"a": (torch.ones(3), "exact")}, {"step": 1})
    # Died while writing: the new folder is incomplete.
    (tmp_path / "checkpoint.new").mkdir()
    (tmp_path / "checkpoint.new" / "part-000.bin").write_bytes(b"12")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1}
    # Died between the two renames.
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1}
    save_checkpoint(tmp_path, {"a": (torch.ones(3), "exact")}, {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_the_large_run_comes_back_in_few_files() -> None:
    # Small enough to be carried between machines: four parts of 16 MB, beside log and index.
    config = CONFIGS["gpu"]
    model = make_network(config.model, 0, layer_scale=1.0)
    trained = sum(p.numel() for p in model.parameters())
    layers = geometry_layers(config.early_layer, config.model.depth)
    heads = PatchHeads(config.model.embed_dim, len(layers))
    trained += sum(p.numel() for p in heads.parameters())
    # Three bytes for the weight, one for its square and for the average, a scale for 64.
    compact = trained * (3 + 2 + 4 / 64)
    assert compact < 52e6
    assert -(-compact // PART_BYTES) <= 4
