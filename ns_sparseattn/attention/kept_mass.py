# SPDX-License-Identifier: Apache-2.0
"""How much of the dense attention a plan keeps, measured on sampled queries of a running model.

A sampled query is compared with dense attention over all keys in float32 at least, which costs as
much as dense attention of so many queries; nothing is measured unless it is asked for.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens in the model's order, ``D`` head size, ``S`` sampled
queries, ``C`` listed key blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .patterns import BlockPattern, Pattern
from .pooling import CoarseBlocks
from .stats import KeptMassStats

_SCORES_PER_CHUNK = 1 << 24
"""Scores held at once (64 MiB in float32)."""
_LOW_QUANTILE = 0.05
"""What `KeptMassStats` calls p5."""


@dataclass(frozen=True, kw_only=True)
class KeptMass:
    """What sampled queries of one layer keep. All tensors are on the CPU."""

    queries: Tensor  # [B, H, S] int64
    """The tokens that were sampled, in the model's order."""
    mass: Tensor  # [B, H, S]
    """Share of the dense softmax probability on the keys that the query attends to."""
    mass_with_coarse: Tensor | None  # [B, H, S]
    """As `mass`, with what left-out blocks contribute through their means; none without that."""
    density: Tensor  # [B, H, S]
    """Share of all keys that the query attends to."""
    error_norm: Tensor  # [B, H]
    """Norm of the output's difference from dense attention, over all sampled queries."""
    dense_norm: Tensor  # [B, H]
    """Norm of the output of dense attention, over all sampled queries."""
    row_density: Tensor | None = None  # [B, H, R]
    """Share of all keys that each query block with a list attends to, the sinks included; none if
    there are no lists."""
    list_lengths: Tensor | None = None  # [B, H, R] int64
    """Key blocks in each list."""
    num_listed_k_blocks: int | None = None
    """Key blocks that lists may name."""
    pattern: Pattern | None = None
    """Which keys every query attends to; only for layers that were asked for, none for dense
    attention."""

    @property
    def relative_error(self) -> Tensor:
        """Error over norm of the output, for each head, ``[B, H]``."""
        return self.error_norm / self.dense_norm.clamp_min(torch.finfo(self.dense_norm.dtype).tiny)

    def summary(self) -> KeptMassStats:
        """Return the numbers of the whole layer."""
        of_listed = _spread(self.mass)
        with_coarse = None if self.mass_with_coarse is None else _spread(self.mass_with_coarse)
        return KeptMassStats(
            num_queries=self.queries.shape[2],
            mean=of_listed[0],
            p5=of_listed[1],
            min=of_listed[2],
            mean_with_coarse=with_coarse and with_coarse[0],
            p5_with_coarse=with_coarse and with_coarse[1],
            min_with_coarse=with_coarse and with_coarse[2],
            relative_error=float(
                self.error_norm.norm()
                / self.dense_norm.norm().clamp_min(torch.finfo(self.dense_norm.dtype).tiny)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What the caller of `record_kept_mass` asked for."""

    num_queries: int
    seed: int
    patterns_of: frozenset[int]
    masses: dict[int, KeptMass]


_REQUEST: ContextVar[_Request | None] = ContextVar("kept_mass", default=None)


@contextmanager
def record_kept_mass(
    *, num_queries: int = 256, seed: int = 0, patterns_of: Collection[int] = ()
) -> Iterator[dict[int, KeptMass]]:
    """Measure, in every global layer that runs inside, how much of dense attention is kept.

    Works in the models of this package and under `sparsify`. The numbers also stand in the
    `LayerStats` of the run. Times of layers do not include the measurement.

    Args:
        num_queries: Queries to sample at random in each head of each scene; all if there are fewer.
        seed: Which queries are sampled; the same seed, layer and number of tokens give the same.
        patterns_of: Layers whose `KeptMass.pattern` to keep, with its block map: about four bytes
            for each block kept.

    Yields:
        What was measured by index of the global layer, filled while models run; of several runs,
        the last.

    Raises:
        ValueError: If `num_queries` is not positive.

    Example:
        >>> import torch
        >>> from ns_sparseattn.attention import AttentionPlan, AttentionRun, TokenLayout
        >>> tokens = TokenLayout(num_frames=4, num_special=5, grid_height=8, grid_width=8)
        >>> q = torch.randn(1, 2, tokens.num_tokens, 32)
        >>> plan = AttentionPlan.block_sparse(density=0.5)
        >>> with record_kept_mass(num_queries=64) as masses:
        ...     out = AttentionRun(plan, tokens, 1).attend(0, q, q, q)
        >>> masses[0].mass.shape, bool(masses[0].mass.mean() > 0.5)
        (torch.Size([1, 2, 64]), True)
    """
    if num_queries < 1:
        raise ValueError(f"`num_queries` must be at least 1, got {num_queries}.")
    request = _Request(
        num_queries=num_queries, seed=seed, patterns_of=frozenset(patterns_of), masses={}
    )
    token = _REQUEST.set(request)
    try:
        yield request.masses
    finally:
        _REQUEST.reset(token)


def note_kept_mass(
    layer: int,
    q: Tensor,  # [B, H, N, D]
    k: Tensor,  # [B, H, N, D]
    v: Tensor,  # [B, H, N, D]
    out: Tensor,  # [B, H, N, D]
    pattern: Pattern | None,
    key_mask: Tensor | None = None,  # [B, N] bool
) -> KeptMassStats | None:
    """Measure a layer if somebody around the caller asked for it.

    Args:
        layer: Index among the model's global layers.
        q: Queries in the model's order, ``[B, H, N, D]``.
        k: Keys, likewise.
        v: Values, likewise.
        out: What the layer's attention gave, likewise.
        pattern: Which keys were computed; none for all.
        key_mask: False where a key is attended to by nobody, not by dense attention either.

    Returns:
        The layer's numbers, or none if nobody asked.
    """
    request = _REQUEST.get()
    if request is None:
        return None
    # A caller's autocast would round the scores to 8 bits.
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        measured = _measure(q, k, v, out, pattern, _sample(q, request, layer), key_mask)
    if layer in request.patterns_of:
        measured = replace(measured, pattern=pattern)
    request.masses[layer] = measured
    return measured.summary()


def _sample(q: Tensor, request: _Request, layer: int) -> Tensor:
    """Draw queries without repetition for each head, ``[B, H, S]``, in ascending order."""
    generator = torch.Generator().manual_seed(request.seed * 1_000_003 + layer)
    batch, heads, num_tokens = q.shape[:3]
    draws = [
        torch.randperm(num_tokens, generator=generator)[: request.num_queries].sort().values
        for _ in range(batch * heads)
    ]
    return torch.stack(draws).reshape(batch, heads, -1).to(q.device)


def _measure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    pattern: Pattern | None,
    queries: Tensor,
    key_mask: Tensor | None,
) -> KeptMass:
    """Compare sampled queries ``[B, H, S]`` of a layer with dense attention."""
    accumulate = torch.float64 if q.dtype == torch.float64 else torch.float32
    coarse = None
    if isinstance(pattern, BlockPattern) and pattern.has_coarse:
        coarse = _coarse_blocks(k, v, pattern)
    of_heads = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            head = _Head(
                slot=(b, h),
                keys=k[b, h].to(accumulate),
                values=v[b, h].to(accumulate),
                pattern=pattern,
                coarse=coarse,
                key_mask=None if key_mask is None else key_mask[b],
            )
            chunks = queries[b, h].split(max(_SCORES_PER_CHUNK // k.shape[2], 1))
            rows = [head.measure(q[b, h, ids], out[b, h, ids], ids) for ids in chunks]
            of_heads.append(torch.cat(rows, dim=1))
    mass, with_coarse, density, error, dense = (
        part.reshape(queries.shape) for part in torch.stack(of_heads, dim=1).cpu()
    )
    measured = KeptMass(
        queries=queries.cpu(),
        mass=mass,
        mass_with_coarse=None if coarse is None else with_coarse,
        density=density,
        error_norm=error.norm(dim=-1),
        dense_norm=dense.norm(dim=-1),
    )
    if not isinstance(pattern, BlockPattern):
        return measured
    return replace(
        measured,
        row_density=pattern.row_densities().cpu(),
        list_lengths=pattern.block_map.counts.cpu(),
        num_listed_k_blocks=pattern.block_map.num_listed_k_blocks,
    )


@dataclass(frozen=True, kw_only=True)
class _Head:
    """One head of a layer, to compare queries with dense attention."""

    slot: tuple[int, int]
    """Batch slot and head."""
    keys: Tensor  # [N, D]
    values: Tensor  # [N, D]
    pattern: Pattern | None
    coarse: CoarseBlocks | None
    key_mask: Tensor | None  # [N] bool

    def measure(self, queries: Tensor, out: Tensor, ids: Tensor) -> Tensor:
        """Measure the queries ``[S, D]`` of some tokens ``[S]``.

        Returns:
            Mass, mass with coarse term, density, norm of the error, norm of the dense output:
            ``[5, S]``.
        """
        queries = queries.to(self.keys.dtype) * queries.shape[-1] ** -0.5
        logits = queries @ self.keys.T  # [S, N]
        num_keys = logits.shape[1]
        if self.key_mask is not None:
            logits = logits.masked_fill(~self.key_mask, float("-inf"))
            num_keys = int(self.key_mask.sum())
        log_sum = logits.logsumexp(-1)
        dense = logits.softmax(-1) @ self.values
        mass = density = torch.ones_like(log_sum)
        if self.pattern is not None:
            keep = self.pattern.keys_of(*self.slot, ids)
            if self.key_mask is not None:
                keep = keep & self.key_mask
            density = keep.sum(-1).to(mass.dtype) / num_keys
            mass = (logits.masked_fill(~keep, float("-inf")).logsumexp(-1) - log_sum).exp()
        with_coarse = mass + self._left_out(queries, log_sum, ids)
        error = (out.to(dense.dtype) - dense).norm(dim=-1)
        return torch.stack([mass, with_coarse, density, error, dense.norm(dim=-1)])

    def _left_out(self, queries: Tensor, log_sum: Tensor, ids: Tensor) -> Tensor:
        """Return what the coarse term adds to the mass, ``[S]``."""
        if self.coarse is None:
            return torch.zeros_like(log_sum)
        assert isinstance(self.pattern, BlockPattern)
        keys, log_counts = self.coarse.keys[self.slot], self.coarse.log_counts[self.slot[0]]
        is_listed = self.pattern.blocks_of(*self.slot, ids)[:, : len(keys)]
        logits = (queries @ keys.T + log_counts).masked_fill(is_listed, float("-inf"))
        return (logits.logsumexp(-1) - log_sum).exp()


def _coarse_blocks(k: Tensor, v: Tensor, pattern: BlockPattern) -> CoarseBlocks:
    """Pool keys and values in the model's order as the operation pools them in block order."""
    index = pattern.gather_index.expand(len(k), -1)
    k, v = (
        torch.stack([x[:, ids] for x, ids in zip(tokens, index, strict=True)]) for tokens in (k, v)
    )
    mask = None if pattern.key_mask is None else pattern.key_mask.expand(len(k), -1)
    return CoarseBlocks.of(k, v, pattern.block_map, mask)


def _spread(masses: Tensor) -> tuple[float, float, float]:
    """Return mean, low quantile and minimum."""
    flat = masses.flatten()
    return float(flat.mean()), float(flat.quantile(_LOW_QUANTILE)), float(flat.min())
