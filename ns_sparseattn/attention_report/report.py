# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report, made from what a forward pass under `record_kept_mass` left.

Axes: ``H`` heads, ``R`` query blocks with a list, ``S`` sampled queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..attention import KeptMass, LayerStats
from ..attention.stats import KeptMassStats

_LOW_QUANTILE = 0.05
"""What fields call p5."""


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """One head of one global layer."""

    head: int
    density_mean: float
    """Share of all keys that a query attends to, special tokens included: mean over the query
    blocks that selection chooses for; over sampled queries where a layer has no blocks."""
    density_min: float
    density_median: float
    density_max: float
    kept_mass_mean: float
    """Share of dense softmax probability on the keys attended to: mean over sampled queries."""
    kept_mass_p5: float
    """All but 5 per cent of the sampled queries keep more."""
    kept_mass_with_coarse_mean: float | None
    """With what left-out blocks contribute through their means; none without that."""
    relative_error: float
    """Norm of the output's difference from dense attention over the norm of the latter."""


@dataclass(frozen=True, kw_only=True)
class ListLengths:
    """How many key blocks the query blocks of a layer list, over all heads."""

    num_key_blocks: int
    """Blocks that a list may name."""
    counts: tuple[int, ...]
    """Number of query blocks with a list of 0, 1, ... `num_key_blocks` blocks."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One global attention layer."""

    layer: int
    """Index among the model's global layers, from 0."""
    policy: str
    backend: str
    density: float
    """Share of all (query, key) token pairs that were computed, special tokens included."""
    time_ms: float
    """Wall time (CPU) or device time (CUDA) of the layer's attention, selection included."""
    selection_ms: float
    """Part of `time_ms` that block selection took."""
    kept_mass: KeptMassStats
    """Over sampled queries of all heads."""
    heads: tuple[HeadReport, ...]
    lists: ListLengths | None
    """None for a layer without block lists."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All global layers of one forward pass."""

    layers: tuple[LayerReport, ...]

    @property
    def num_heads(self) -> int:
        """Heads of a layer."""
        return len(self.layers[0].heads)


def make_report(stats: Sequence[LayerStats], masses: Mapping[int, KeptMass]) -> Report:
    """Join what the layers of one scene's forward pass did with what was measured in them.

    Args:
        stats: One entry for each layer, of one forward pass.
        masses: What `record_kept_mass` measured in that pass, by layer.

    Returns:
        The report, layers in order.

    Raises:
        ValueError: If there are no layers, or a layer was not measured.

    Example:
        >>> import torch
        >>> from ns_sparseattn.attention import (
        ...     AttentionPlan, AttentionRun, TokenLayout, record_kept_mass
        ... )
        >>> tokens = TokenLayout(num_frames=4, num_special=5, grid_height=8, grid_width=8)
        >>> q = torch.randn(1, 2, tokens.num_tokens, 32)
        >>> run = AttentionRun(AttentionPlan.block_sparse(density=0.5), tokens, 1)
        >>> with record_kept_mass() as masses:
        ...     out = run.attend(0, q, q, q)
        >>> make_report(run.stats, masses).layers[0].lists.counts
        (0, 0, 4, 0, 0)
    """
    if not stats:
        raise ValueError("`stats` must hold at least one layer: did the model run?")
    layers = []
    for of_layer in sorted(stats, key=lambda entry: entry.layer):
        if of_layer.kept_mass is None or of_layer.layer not in masses:
            raise ValueError(
                f"Layer {of_layer.layer} was not measured: run the model within `record_kept_mass`."
            )
        kept = masses[of_layer.layer]
        layers.append(
            LayerReport(
                layer=of_layer.layer,
                policy=of_layer.policy,
                backend=of_layer.backend,
                density=of_layer.density,
                time_ms=of_layer.time_ms,
                selection_ms=of_layer.selection_ms,
                kept_mass=of_layer.kept_mass,
                heads=tuple(_head(kept, head) for head in range(kept.mass.shape[1])),
                lists=_list_lengths(kept),
            )
        )
    return Report(layers=tuple(layers))


def _head(kept: KeptMass, head: int) -> HeadReport:
    # Scenes of a batch are pooled.
    densities = kept.density if kept.row_density is None else kept.row_density
    of_queries = densities[:, head].flatten()
    mass = kept.mass[:, head].flatten()
    coarse = kept.mass_with_coarse
    return HeadReport(
        head=head,
        density_mean=float(of_queries.mean()),
        density_min=float(of_queries.min()),
        density_median=float(of_queries.quantile(0.5)),
        density_max=float(of_queries.max()),
        kept_mass_mean=float(mass.mean()),
        kept_mass_p5=float(mass.quantile(_LOW_QUANTILE)),
        kept_mass_with_coarse_mean=None if coarse is None else float(coarse[:, head].mean()),
        relative_error=float(_ratio(kept.error_norm[:, head], kept.dense_norm[:, head])),
    )


def _ratio(error: Tensor, dense: Tensor) -> Tensor:
    return error.norm() / dense.norm().clamp_min(1e-30)


def _list_lengths(kept: KeptMass) -> ListLengths | None:
    if kept.list_lengths is None or kept.num_listed_k_blocks is None:
        return None
    counts = kept.list_lengths.flatten().bincount(minlength=kept.num_listed_k_blocks + 1)
    return ListLengths(num_key_blocks=kept.num_listed_k_blocks, counts=tuple(counts.tolist()))
