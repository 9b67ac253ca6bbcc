# SPDX-License-Identifier: Apache-2.0
"""From where on block-sparse attention is faster than dense attention, per kind of device.

The numbers come from the rows of ``python -m benchmarks.attention`` and ``benchmarks.layer``, by
``python -m benchmarks.crossover``; where a kind of device
was not measured, a cautious estimate stands in and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """When to use which."""

    min_tokens: int
    """With fewer tokens than this dense attention is used, and nothing is selected."""
    max_density: float
    """At a higher density of (query, key) pairs dense attention is used after all."""
    source: str
    """Where the numbers come from."""


_ESTIMATE = Crossover(
    min_tokens=4096,
    max_density=0.5,
    source="Not measured on this kind of device. Selection and irregular access cost something, "
    "so half of the pairs must be saved.",
)
_CPU_ROWS = "python -m benchmarks.crossover, from rows of an AMD EPYC with AVX512-BF16, two cores."

CROSSOVERS: dict[str, Crossover] = {
    "gather on cpu": Crossover(min_tokens=4164, max_density=0.25, source=_CPU_ROWS),
    "native on cpu": Crossover(min_tokens=2082, max_density=0.75, source=_CPU_ROWS),
}
"""By backend and device type, as `ns_sparseattn.attention.backends` names them."""


@cache
def crossover(backend: str, device_type: str) -> Crossover:
    """Return when a backend beats dense attention on a kind of device (``cpu``, ``cuda``)."""
    return CROSSOVERS.get(f"{backend} on {device_type}", _ESTIMATE)
