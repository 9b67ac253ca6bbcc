# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say, and refuse to report what is wrong."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import attention, flashinfer_peer, layer, model, rows, selection, timing
from benchmarks.overlapping_views import Views
from benchmarks.timing import measure
from ns_sparseattn.attention import BlockMap
from ns_sparseattn.attention.backends import BACKENDS, Backend, gather
from ns_sparseattn.attention.backends.inputs import AttentionInputs
from ns_sparseattn.attention.pooling import CoarseBlocks
from ns_sparseattn.models.mapanything_config import MapAnythingConfig
from ns_sparseattn.models.pi3_config import Pi3Config
from ns_sparseattn.models.seeded import (
    make_seeded_mapanything,
    make_seeded_pi3,
    make_seeded_vggt,
)
from ns_sparseattn.models.vggt_config import VGGTConfig


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def append(name: str, new: list[dict[str, Any]]) -> Path:
        return rows.append(name, new, tmp_path)

    for module in (attention, layer, model, selection):
        monkeypatch.setattr(module, "append", append)
    return tmp_path


def _bench(**options: Any) -> attention.Bench:
    return attention.Bench(
        **{
            "device": "cpu",
            "tokens": (1024,),
            "densities": (0.25,),
            "dtypes": ("float32",),
            "heads": 2,
            "repeats": 1,
            **options,
        }
    )


def test_a_row_holds_what_a_reader_needs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _bench().main()
    measured = rows.read("attention", results)
    dense = [row for row in measured if row["lists"] == "dense"]
    sparse = [row for row in measured if row["lists"] == "selected"]
    assert dense
    assert {"gather"} <= {row["what"] for row in sparse}
    assert {row["coarse"] for row in sparse} == {False, True}
    for row in sparse:
        assert row["density"] == pytest.approx(0.25)
        assert row["error"] < 1e-6
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        # 2 heads, 1024 tokens, 64 channels, two products of a multiplication and an addition each.
        flop = 4 * 2 * 1024**2 * 64
        assert row["dense_tflops"] == pytest.approx(flop / row["p50_ms"] / 1e9, abs=1e-3)
        assert row["executed_tflops"] == pytest.approx(row["dense_tflops"] / 4, abs=1e-3)
        assert row["speed_up"] == pytest.approx(
            min(peer["p50_ms"] for peer in dense) / row["p50_ms"], abs=6e-3
        )
        assert row["machine"]["device"]
    assert "speed-up" in capsys.readouterr().out


def test_nothing_is_reported_when_a_backend_is_wrong(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, lse = gather.run(inputs)
        return out * 1.001, lse

    monkeypatch.setitem(BACKENDS, "gather", Backend(run=wrong, why_not=gather.why_not))
    with pytest.raises(SystemExit, match="The gather backend is wrong by 0.001 on torch.float32"):
        _bench().main()
    assert rows.read("attention", results) == []


def test_a_backend_that_fails_does_not_cost_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.OutOfMemoryError("Tried to allocate 8.5 GiB.\nMore.")

    monkeypatch.setitem(BACKENDS, "flex", Backend(run=fail, why_not=lambda inputs: None))
    _bench().main()
    assert {"gather"} <= {row["what"] for row in rows.read("attention", results)}
    said = capsys.readouterr().out
    assert "flex is left out at 1024 tokens: OutOfMemoryError: Tried to allocate 8.5 GiB.\n" in said


def test_no_density_is_begun_too_late(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _bench(minutes=0.0).main()
    assert rows.read("attention", results) == []
    assert "No time left for 1024 tokens" in capsys.readouterr().out


class _BlockSparseAttentionByItsDocumentation:
    """FlashInfer's wrapper: a mask over blocks and their sizes, for each head."""

    def __init__(self, workspace: torch.Tensor) -> None:
        assert workspace.dtype == torch.uint8

    def plan(
        self,
        block_mask_map: torch.Tensor,  # [H, NQ, NK] bool
        block_row_sz: torch.Tensor,  # [H, NQ]
        block_col_sz: torch.Tensor,  # [H, NK]
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_data_type: torch.dtype,
    ) -> None:
        assert num_qo_heads == num_kv_heads == len(block_mask_map)
        assert q_data_type == torch.float16
        assert head_dim == 32
        self.keep = torch.stack(
            [
                mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
                for mask, rows, columns in zip(
                    block_mask_map, block_row_sz, block_col_sz, strict=True
                )
            ]
        )

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.keep)


def test_flashinfer_gets_what_the_map_means(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("flashinfer")
    library.VariableBlockSparseAttentionWrapper = _BlockSparseAttentionByItsDocumentation
    library.__spec__ = ModuleSpec("flashinfer", None)
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 32, generator=generator).half() for n in (300, 400, 400))
    mask = torch.rand(1, 2, 3, 7, generator=generator) < 0.5
    mask[..., 0] = True
    block_map = BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=2)
    inputs = AttentionInputs(q=q, k=k, v=v, block_map=block_map)
    assert flashinfer_peer.why_not(inputs) is None
    assert attention.relative_error(inputs, flashinfer_peer.prepare(inputs)()) < 1e-3
    assert "coarse" in str(
        flashinfer_peer.why_not(replace(inputs, coarse=CoarseBlocks.of(k, v, block_map, None)))
    )
    assert "float16" in str(flashinfer_peer.why_not(replace(inputs, q=q.float())))


def test_a_layer_that_is_too_short_is_dense_under_auto(results: Path) -> None:
    options = {"device": "cpu", "photos": (1,), "grid": (8, 9), "heads": 2, "repeats": 1}
    layer.Bench(**options, dtypes=("float32",), backends=("gather",)).main()
    measured = rows.read("layer", results)
    assert [row["asked_density"] for row in measured] == [0.25, 0.9]
    for row in measured:
        assert row["tokens"] == 8 * 9 + 5
        assert (row["used"], row["density"]) == ("sdpa", 1.0)
        assert min(row["dense_ms"], row["auto_ms"], row["first_ms"]) > 0


def test_random_lists_are_as_long_as_the_selected_ones() -> None:
    generator = torch.Generator().manual_seed(7)
    selected = BlockMap.from_mask(torch.rand(1, 2, 4, 20, generator=generator) < 0.3)
    shuffled = attention._shuffled(selected)
    assert torch.equal(shuffled.counts, selected.counts)
    assert not torch.equal(shuffled.columns, selected.columns)


def test_views_that_overlap_attend_to_each_other() -> None:
    views = Views(num_frames=4, grid_height=10, grid_width=12, num_heads=2)
    points = views.surface_points()
    q, k, _ = views.qkv("medium")
    scores = (q @ k.transpose(-1, -2))[0] / 8
    distance = torch.cdist(points, points)
    near, far = distance < 0.05, distance > 3
    assert float(scores[0][near].mean()) > float(scores[0][far].mean()) + 4


def _hold_256_mib() -> None:
    held = torch.ones(64, 2**20)
    time.sleep(0.05)
    del held


def test_times_and_memory_are_those_of_the_call() -> None:
    taken = measure(_hold_256_mib, torch.device("cpu"), repeats=3)
    assert 50 <= taken.p20_ms <= taken.p50_ms <= taken.p80_ms
    assert taken.repeats == 3
    assert 0.24 < taken.peak_gib < 0.3


def test_memory_that_the_allocator_kept_is_not_the_call_s() -> None:
    # glibc serves blocks below 32 MiB from one heap and keeps what is freed in the middle of it:
    # here 288 MiB, from which it would serve the call.
    largest = np.ones(31 * 2**17)
    del largest
    blocks = [np.ones(24 * 2**17) for _ in range(13)]
    del blocks[:-1]
    taken = measure(_hold_256_mib, torch.device("cpu"), repeats=1, warm_up=0)
    assert 0.24 < taken.peak_gib < 0.3


def test_memory_is_sampled_where_no_peak_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_reset_peak", lambda: False)
    with timing.watch_memory(torch.device("cpu")) as memory:
        held = torch.ones(64, 2**20)
        until = time.monotonic() + 60
        while memory.peak_gib < 0.2 and time.monotonic() < until:
            time.sleep(0.01)
        del held
    assert 0.2 < memory.peak_gib < 0.3


def test_passes_of_a_model_are_compared_and_none_is_begun_too_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"density 0.1": (20e3, 10e3, 0.1), "dense": (90e3, 80e3, 1.0)}
    kernels = {"fast": nullcontext(), "slow": nullcontext()}
    monkeypatch.setattr(model, "_dense_kernels", lambda device: kernels)

    def measure_plan(self: Any, network: Any, photos: Any, plan: str, device: Any) -> Any:
        total_ms, attention_ms, density = measured[plan]
        common = {"frames": 3, "plan": plan, "backends": [], "selection_ms": 0.0, "peak_gib": 0.0}
        times = {"total_ms": total_ms, "attention_ms": attention_ms, "mean_density": density}
        return common | times

    monkeypatch.setattr(model.Bench, "_measure", measure_plan)
    bench = model.Bench(plans=("density 0.1", "dense"))
    photos, device = torch.zeros(3, 1), torch.device("cpu")
    network: Any = None
    # The first dense pass may last 20 s and nine times the 10 s of attention.
    for minutes, expected in ((1.8, ["density 0.1"]), (1.9, ["density 0.1", "dense", "dense"])):
        deadline = time.monotonic() + 60 * minutes
        found = list(bench._rows(network, photos, device, deadline))
        assert [row["plan"] for row in found] == expected
    assert "No time left for dense slow at 3 photos." in capsys.readouterr().out
    model._add_speed_ups(found)
    assert [row["total_speed_up"] for row in found] == [4.5, 1.0, 1.0]
    assert [row["attention_speed_up"] for row in found] == [8.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "num_frame_layers", "default"),
    [
        ("dense", 0, "dense"),
        ("density 0.25", 0, "block-sparse (density 0.25, coarse)"),
        ("frames 9 + density 0.1", 9, "block-sparse (density 0.1, coarse)"),
        ("fast", 9, "block-sparse (density 0.1, coarse)"),
    ],
)
def test_plans_go_by_name(name: str, num_frame_layers: int, default: str) -> None:
    plan = model.parse_plan(name).fitted_to(24)
    policies = [plan.policy(layer).name for layer in range(24)]
    assert policies == ["frame-only"] * num_frame_layers + [default] * (24 - num_frame_layers)


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("vggt", 2082), ("pi3", 2082), ("mapanything", 2075)]
)
def test_every_network_runs_as_the_bench_calls_it(
    name: model.ModelName, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (392, 518)
    assert model.NETWORKS[name].num_tokens(2, size) == num_tokens
    small = {
        "vggt": lambda: make_seeded_vggt(VGGTConfig.small()),
        "pi3": lambda: make_seeded_pi3(Pi3Config.small()),
        "mapanything": lambda: make_seeded_mapanything(MapAnythingConfig.small()),
    }
    bench = model.Bench(model=name, device="cpu", size=(28, 42))
    photos = torch.rand(2, 3, 28, 42)
    row = bench._measure(small[name](), photos, "density 0.5", torch.device("cpu"))
    assert row["model"] == name
    assert 0 < row["attention_ms"] < row["total_ms"]


def test_selection_rows_compare_orders_and_the_coarse_term(results: Path) -> None:
    selection.Bench(frames=(4,), grid=(12, 16), heads=2, densities=(0.25,), queries=64).main()
    measured = rows.read("selection", results)
    assert {row["order"] for row in measured} == {"tiles", "hilbert", "raster"}
    for row in measured:
        assert 0.2 < row["kept_mass"] < 1.0
        assert 0.0 < row["error_coarse"] < row["error"]
