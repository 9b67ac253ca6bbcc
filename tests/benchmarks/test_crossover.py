# SPDX-License-Identifier: Apache-2.0
"""Where sparse attention begins to pay is what the committed rows say."""

from __future__ import annotations

from typing import Any

from benchmarks.crossover import derive
from benchmarks.rows import read
from ns_sparseattn.attention.crossover import CROSSOVERS


def _row(tokens: int, density: float, speed_up: float, dtype: str = "float32") -> dict[str, Any]:
    return {
        "what": "gather",
        "lists": "selected",
        "coarse": True,
        "tokens": tokens,
        "asked_density": density,
        "dtype": dtype,
        "speed_up_with_selection": speed_up,
        "machine": {"kind": "cpu"},
    }


def test_the_table_is_what_the_committed_rows_say() -> None:
    said = {key: (limit.min_tokens, limit.max_density) for key, limit in CROSSOVERS.items()}
    assert said == derive(read("attention"), read("layer"))


def test_every_dtype_and_every_longer_sequence_must_gain() -> None:
    rows = [
        *(_row(1024, density, gain) for density, gain in ((0.1, 1.2), (0.25, 0.9))),
        *(_row(2048, density, gain) for density, gain in ((0.1, 3.0), (0.25, 2.0), (0.5, 1.04))),
        *(_row(4096, density, gain) for density, gain in ((0.1, 4.0), (0.25, 3.0), (0.5, 1.5))),
    ]
    assert derive(rows, []) == {"gather on cpu": (2048, 0.25)}
    # A density that was not measured at every length is no evidence against it.
    assert derive([*rows, _row(4096, 0.75, 1.3)], [])["gather on cpu"] == (2048, 0.25)
    assert derive([*rows[2:4], *rows[5:]], []) == {"gather on cpu": (2048, 0.5)}
    half = [_row(4096, density, 1.0, "bfloat16") for density in (0.1, 0.25)]
    assert derive([*rows, *half], []) == {}


def test_lengths_at_which_a_whole_layer_lost_are_too_short() -> None:
    rows = [_row(1024, 0.25, 2.0), _row(4096, 0.25, 3.0)]

    def layer(tokens: int, auto_ms: float) -> dict[str, Any]:
        machine = {"kind": "cpu"}
        times = {"auto_ms": auto_ms, "dense_ms": 100.0}
        return {"used": "gather", "tokens": tokens, "machine": machine, **times}

    lost, won = layer(1041, 97.0), layer(2082, 90.0)
    assert derive(rows, [won]) == {"gather on cpu": (1024, 0.25)}
    assert derive(rows, [lost, won]) == {"gather on cpu": (2082, 0.25)}
    assert derive(rows, [lost]) == {"gather on cpu": (2082, 0.25)}
