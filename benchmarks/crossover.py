# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.crossover``: where sparse attention begins to pay, from committed rows.

Prints, for each backend and kind of device, the smallest number of tokens and the highest density
at which the operation with selection beat the fastest dense attention, in every dtype and at every
longer sequence that was measured. `ns_sparseattn.attention.crossover.CROSSOVERS` must say the same;
a test compares them.
"""

from __future__ import annotations

from typing import Any

from benchmarks.rows import read

MARGIN = 1.05
"""How much faster sparse attention must have been: re-ordering tokens, which the rows leave out,
costs something, and ``auto`` must never lose more than 5 per cent."""
_USEFUL_DENSITY = 0.25
"""A sequence is long enough once this density pays."""


def derive(
    rows: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> dict[str, tuple[int, float]]:
    """Return the least number of tokens and the highest density, by backend and kind of device.

    Args:
        rows: Rows of the operation.
        layers: Rows of whole layers: where one lost under ``auto``, re-ordering included, so few
            tokens are too few.

    Returns:
        The limits; backends that never pay are left out.
    """
    found: dict[str, tuple[int, float]] = {}
    sparse = [row for row in rows if row["lists"] == "selected" and row["coarse"]]
    for key in sorted({_key(row) for row in sparse}):
        of_key = [row for row in sparse if _key(row) == key]
        limits: dict[int, float] = {
            tokens: _highest_paying_density([row for row in of_key if row["tokens"] == tokens])
            for tokens in {row["tokens"] for row in of_key}
        }
        long_enough: list[int] = []
        for tokens in sorted(limits, reverse=True):
            if limits[tokens] < _USEFUL_DENSITY:
                break
            long_enough.append(tokens)
        if long_enough:
            # Where every density that was measured paid, a higher one may pay as well.
            highest = {
                tokens: max(row["asked_density"] for row in of_key if row["tokens"] == tokens)
                for tokens in long_enough
            }
            bounds = [limits[t] for t in long_enough if limits[t] < highest[t]]
            min_tokens = _where_no_layer_loses(key, min(long_enough), layers)
            found[key] = min_tokens, min([*bounds, max(highest.values())])
    return found


def _where_no_layer_loses(key: str, min_tokens: int, layers: list[dict[str, Any]]) -> int:
    """Raise a number of tokens to the first whole layer beyond all those that lost."""
    of_key = [row for row in layers if f"{row['used']} on {row['machine']['kind']}" == key]
    lost = [row["tokens"] for row in of_key if row["auto_ms"] * MARGIN > row["dense_ms"]]
    won = [row["tokens"] for row in of_key if row["tokens"] > max(lost, default=0)]
    return max(min_tokens, min(won, default=2 * max(lost))) if lost else min_tokens


def _key(row: dict[str, Any]) -> str:
    return f"{row['what']} on {row['machine']['kind']}"


def _highest_paying_density(rows: list[dict[str, Any]]) -> float:
    """Return the density up to which every dtype gained; 0 if none did."""
    highest = 0.0
    for density in sorted({row["asked_density"] for row in rows}):
        gains = [row["speed_up_with_selection"] for row in rows if row["asked_density"] == density]
        if min(gains) < MARGIN:
            break
        highest = density
    return highest


if __name__ == "__main__":
    for name, (min_tokens, max_density) in derive(read("attention"), read("layer")).items():
        print(f"{name}: min_tokens={min_tokens}, max_density={max_density:g}")
