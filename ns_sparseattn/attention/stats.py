# SPDX-License-Identifier: Apache-2.0
"""What a global attention layer did, for logs and manifests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KeptMassStats:
    """How much of a layer's dense attention was computed, over sampled queries of all heads.

    The mass of a query is the share of its dense softmax probability that lies on the keys that it
    attends to: ``exp(LSE_sparse - LSE_dense)``.
    """

    num_queries: int
    """Queries sampled in each head of each scene."""
    mean: float
    p5: float
    """All but 5 per cent of the queries keep more."""
    min: float
    mean_with_coarse: float | None
    """As `mean`, with what left-out blocks contribute through their means; none without that."""
    p5_with_coarse: float | None
    min_with_coarse: float | None
    relative_error: float
    """Norm of the output's difference from dense attention over the norm of the latter."""


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """One global attention layer of one forward pass."""

    layer: int
    """Index among the model's global layers, from 0."""
    policy: str
    """Short name of the policy that the plan gave it."""
    backend: str
    """What computed it."""
    density: float
    """Share of all (query, key) token pairs that were computed, special tokens included."""
    time_ms: float
    """Wall time (CPU) or device time (CUDA) of the layer's attention, block selection included."""
    selection_ms: float = 0.0
    """Part of `time_ms` that block selection took."""
    kept_mass: KeptMassStats | None = None
    """Measured within `record_kept_mass` only, outside of `time_ms`."""
