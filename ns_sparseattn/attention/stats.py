# SPDX-License-Identifier: Apache-2.0
"""What a global attention layer did, for logs and manifests."""

from __future__ import annotations

from dataclasses import dataclass


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
