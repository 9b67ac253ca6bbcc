# SPDX-License-Identifier: Apache-2.0
"""The committed rows are as fast and as exact as is claimed of them."""

from __future__ import annotations

import pytest

from benchmarks.rows import read
from ns_sparseattn.attention.crossover import crossover

SPARSE = [row for row in read("attention") if row["lists"] == "selected"]
# (dtype, asked density): at least so many times as fast as dense attention, without selection and
# coarse term.
SPEED_UPS = {
    ("bfloat16", 0.25): 5.0,
    ("bfloat16", 0.1): 12.0,
    ("float32", 0.25): 3.0,
    ("float32", 0.1): 7.0,
}
LARGEST_ERROR = {"bfloat16": 2e-3, "float32": 1e-6}


@pytest.mark.parametrize("backend", ["native", "gather"])
@pytest.mark.parametrize("tokens", [8192, 16384])
@pytest.mark.parametrize("what", SPEED_UPS)
def test_speed_ups_on_a_cpu_that_multiplies_bfloat16(
    what: tuple[str, float], tokens: int, backend: str
) -> None:
    found = [
        row
        for row in SPARSE
        if row["what"] == backend
        and (row["dtype"], row["asked_density"], row["tokens"]) == (*what, tokens)
        # Older rows do not name the instructions; they are of such a CPU.
        and row["machine"].get("instructions", "avx512_bf16") == "avx512_bf16"
        and not row["coarse"]
    ]
    assert found
    for row in found:
        assert (row["heads"], row["head_size"], row["machine"]["threads"]) == (16, 64, 2)
        assert row["speed_up"] >= SPEED_UPS[what]


@pytest.mark.parametrize("backend", ["native", "gather"])
def test_without_bfloat16_time_is_at_most_in_proportion_to_density(backend: str) -> None:
    found = [
        row
        for row in SPARSE
        if (row["what"], row["coarse"]) == (backend, False)
        and row["machine"].get("instructions") == "avx2"
    ]
    assert {row["asked_density"] for row in found} >= {0.1, 0.25, 0.5}
    assert {row["dtype"] for row in found} == {"float32", "bfloat16"}
    for row in found:
        assert 1 / row["speed_up"] <= row["density"] + 0.1, row


def test_a_layer_under_auto_is_hardly_ever_slower_than_dense() -> None:
    for row in read("layer"):
        limits = crossover(row["used"], row["machine"]["kind"])
        # What was measured before the limits were drawn from it would be dense now.
        if row["used"] != "sdpa" and row["tokens"] >= limits.min_tokens:
            assert row["auto_ms"] <= 1.05 * row["dense_ms"], row


def test_errors() -> None:
    for row in SPARSE:
        assert row["error"] <= LARGEST_ERROR[row["dtype"]], row


def test_attention_of_the_whole_network_at_a_quarter_of_the_blocks() -> None:
    found = [
        row
        for row in read("model")
        if (row["plan"], row["frames"], row["machine"]["kind"]) == ("density 0.25", 8, "cpu")
    ]
    assert found
    for row in found:
        assert row["size"] == [392, 518]
        assert row["attention_speed_up"] >= 4.0
        assert row["total_speed_up"] > 1.0


@pytest.mark.parametrize("model", ["pi3", "pi3x", "mapanything"])
@pytest.mark.parametrize(
    "photos", ["lund_door", "cyprus_arch", "lund_street", "berlin_dom", "tum_desk"]
)
def test_every_model_runs_on_photos_in_20_gib(model: str, photos: str) -> None:
    found = [
        row
        for row in read("process")
        if (row.get("model"), row["photos"], row["weights"]) == (model, photos, "seeded")
    ]
    is_dense = {row["mean_density"] == 1.0 for row in found}
    assert is_dense == {True, False}
    assert all(row["peak_memory_gib"] <= 20.0 for row in found)
    assert all(row["num_points"] > 0 for row in found)
