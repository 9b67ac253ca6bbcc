# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.layer``: one global layer under ``auto`` beside the same layer dense.

What a model calls, re-ordering of tokens and selection included, on tokens of overlapping views
with VGGT's special tokens. ``auto`` must never be more than 5 per cent slower than dense attention:
where sparse attention does not pay it has to be dense, having lost no more than a look.

A pass through a model decides the order of the tokens once; the first layer, which does that, has a
column of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.attention import Dtype
from benchmarks.machine import describe
from benchmarks.overlapping_views import Views
from benchmarks.rows import append
from benchmarks.timing import measure
from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    AutoPolicy,
    BackendName,
    BlockSparsePolicy,
    TokenLayout,
)

_SPECIAL = 5
"""Camera and register tokens of a photo."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time a layer under auto and dense."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    photos: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of photos."""
    grid: tuple[int, int] = (28, 37)
    """Patches down and across; 28 by 37 is a photo of 392 by 518 pixels."""
    heads: int = 16
    """Heads of 64 channels."""
    densities: tuple[float, ...] = (0.25, 0.9)
    """Shares of the key blocks kept, with the coarse term; 0.9 never pays."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """Types of queries, keys and values."""
    backends: tuple[BackendName, ...] = ("auto", "gather")
    """What computes it; auto is the best one that the device has."""
    repeats: int = 5
    """Calls of each that count."""
    save: bool = True
    """Whether rows are appended to the results."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure, append the rows, print a table."""
        rows: list[dict[str, Any]] = []
        print("photos tokens dtype    backend  density  dense ms  auto ms  first ms  ratio  used")
        for num_photos in self.photos:
            for dtype in self.dtypes:
                for row in self._rows(num_photos, dtype):
                    rows.append(row)
                    print(
                        f"{row['photos']:6} {row['tokens']:6} {row['dtype']:8} "
                        f"{row['backend']:8} {row['density']:7.2f} {row['dense_ms']:9.1f} "
                        f"{row['auto_ms']:8.1f} {row['first_ms']:9.1f} "
                        f"{row['auto_ms'] / row['dense_ms']:6.2f}  {row['used']}",
                        flush=True,
                    )
        if self.save:
            append("layer", rows)

    def _rows(self, num_photos: int, dtype: Dtype) -> Iterator[dict[str, Any]]:
        height, width = self.grid
        tokens = TokenLayout(
            num_frames=num_photos, num_special=_SPECIAL, grid_height=height, grid_width=width
        )
        q, k, v = self._qkv(tokens, getattr(torch, dtype))
        device = torch.device(self.device)
        dense = AttentionRun(AttentionPlan.dense(), tokens, 1)
        dense_ms = measure(lambda: dense.attend(0, q, k, v), device, repeats=self.repeats).p50_ms
        for backend in self.backends:
            for density in self.densities:
                policy = BlockSparsePolicy(max_density=density, backend=backend)
                plan = AttentionPlan(default=AutoPolicy(policy=policy))
                run = AttentionRun(plan, tokens, 1)
                start = time.perf_counter()
                run.attend(0, q, k, v)
                # Waits for the device.
                used = run.stats[0]
                first_ms = (time.perf_counter() - start) * 1e3
                timing = measure(
                    lambda run=run: run.attend(0, q, k, v), device, repeats=self.repeats
                )
                yield {
                    "photos": num_photos,
                    "tokens": tokens.num_tokens,
                    "heads": self.heads,
                    "dtype": dtype,
                    "backend": backend,
                    "asked_density": density,
                    "density": round(used.density, 4),
                    "used": used.backend,
                    "dense_ms": dense_ms,
                    "auto_ms": timing.p50_ms,
                    "first_ms": round(first_ms, 4),
                    "repeats": self.repeats,
                    "machine": describe(self.device),
                }

    def _qkv(self, tokens: TokenLayout, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``[1, H, N, 64]``: patches of views, special tokens like their first patches."""
        views = Views(
            num_frames=tokens.num_frames,
            grid_height=tokens.grid_height,
            grid_width=tokens.grid_width,
            num_heads=self.heads,
        )
        q, k, v = (
            torch.cat([x[:, :, :, :_SPECIAL], x], dim=3).flatten(2, 3).to(self.device, dtype)
            for x in (y.unflatten(2, (tokens.num_frames, -1)) for y in views.qkv("medium"))
        )
        return q, k, v


if __name__ == "__main__":
    tyro.cli(Bench).main()
