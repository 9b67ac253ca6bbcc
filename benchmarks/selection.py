# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.selection``: what block order and coarse term do to the output's error.

For every order, density and sharpness of attention: the mass that the kept blocks hold, and the
error of the output against dense attention in float64, without and with the coarse term. Tokens are
those of overlapping views (`benchmarks.overlapping_views`); a trained model's are not at hand here.
Selection and attention are exactly those of a plan, padding and special tokens aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
import tyro
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.overlapping_views import Sharpness, Views
from benchmarks.rows import append
from ns_sparseattn.attention import AttentionPlan, AttentionRun, TokenLayout
from ns_sparseattn.attention.kept_mass import record_kept_mass
from ns_sparseattn.attention.plan import PatchOrder


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare orders of patches and the coarse term at equal density."""

    frames: tuple[int, ...] = (8, 16)
    """Numbers of photos along the same arc: few are far apart, many close together."""
    grid: tuple[int, int] = (28, 37)
    """Patches down and across; 28 by 37 is a photo of 392 by 518 pixels."""
    heads: int = 4
    """Heads, each with features at another length scale."""
    densities: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05)
    """Shares of the key blocks to keep."""
    queries: int = 1024
    """Queries that the error is measured on, chosen at random."""
    shuffle: bool = True
    """Whether the photos come in a random order."""
    save: bool = True
    """Whether rows are appended to the results."""

    def main(self) -> None:
        """Measure, print a table, append the rows."""
        rows: list[dict[str, Any]] = []
        print("frames sharpness order    density  kept mass  error  with coarse term")
        for num_frames in self.frames:
            for sharpness in get_args(Sharpness):
                for row in self._rows(num_frames, sharpness):
                    rows.append({**row, "machine": describe("cpu")})
                    print(
                        f"{num_frames:6} {sharpness:9} {row['order']:8} {row['density']:7.2f} "
                        f"{row['kept_mass']:10.3f} {row['error']:6.3f} {row['error_coarse']:6.3f}",
                        flush=True,
                    )
        if self.save:
            append("selection", rows)

    def _rows(self, num_frames: int, sharpness: Sharpness) -> list[dict[str, Any]]:
        height, width = self.grid
        views = Views(
            num_frames=num_frames, grid_height=height, grid_width=width, num_heads=self.heads
        )
        tokens = TokenLayout(
            num_frames=num_frames, num_special=0, grid_height=height, grid_width=width
        )
        q, k, v = views.qkv(sharpness)
        generator = torch.Generator().manual_seed(1)
        if self.shuffle:
            frames = torch.randperm(num_frames, generator=generator)
            q, k, v = (x[:, :, tokens.patch_ids()[frames].flatten()] for x in (q, k, v))
        sampled = torch.randperm(tokens.num_tokens, generator=generator)[: self.queries]
        scores = q[:, :, sampled].double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
        dense = scores.softmax(-1) @ v.double()
        return [
            {
                "frames": num_frames,
                "grid": [height, width],
                "heads": self.heads,
                "sharpness": sharpness,
                "is_shuffled": self.shuffle,
                "order": order,
                "density": density,
                **_measure(order, density, tokens, (q, k, v), sampled, dense),
            }
            for order in get_args(PatchOrder)
            for density in self.densities
        ]


def _measure(
    order: PatchOrder,
    density: float,
    tokens: TokenLayout,
    qkv: tuple[Tensor, Tensor, Tensor],
    sampled: Tensor,  # [queries]
    dense: Tensor,  # [1, H, queries, D] float64
) -> dict[str, float]:
    errors = []
    kept_mass = 0.0
    for coarse in (False, True):
        plan = AttentionPlan.block_sparse(density=density, coarse=coarse, layout=order)
        with record_kept_mass() as masses:
            out = AttentionRun(plan, tokens, 1).attend(0, *qkv)
        kept_mass = float(masses[0].mass.mean())
        errors.append(float((out[:, :, sampled] - dense).norm() / dense.norm()))
    return {
        "kept_mass": round(kept_mass, 4),
        "error": round(errors[0], 4),
        "error_coarse": round(errors[1], 4),
    }


if __name__ == "__main__":
    tyro.cli(Bench).main()
