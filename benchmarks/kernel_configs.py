# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.kernel_configs``: time the forward kernel's tiles, warps and stages.

The table of `ns_sparseattn.kernels.configs` should hold the fastest row that this prints for a kind
of GPU. Every configuration must agree with the formula in float64 before it is timed. Queries, keys
and lists are those of ``benchmarks.attention``. Under ``TRITON_INTERPRET=1`` the command runs on a
CPU as well; its times then say nothing, and no row is written.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
import tyro
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks.attention import GATE, Dtype, relative_error
from benchmarks.machine import describe
from benchmarks.overlapping_views import Views
from benchmarks.rows import append
from benchmarks.timing import measure
from ns_sparseattn.attention import TokenLayout, select_blocks
from ns_sparseattn.attention.backends.inputs import AttentionInputs
from ns_sparseattn.attention.pooling import CoarseBlocks
from ns_sparseattn.attention.tiles import tile_order
from ns_sparseattn.kernels import forward
from ns_sparseattn.kernels.configs import ForwardConfig, forward_config

_SIDE = 32
"""Patches along each side of a photo."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare configurations of the forward kernel."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    tokens: int = 102_400
    """Sequence length, a multiple of 1024."""
    density: float = 0.25
    """Share of the key blocks kept."""
    dtype: Dtype = "bfloat16"
    """Type of queries, keys and values."""
    heads: int = 16
    """Heads."""
    head_size: int = 64
    """Channels of a head."""
    coarse: bool = True
    """Whether the coarse term is computed."""
    tiles: tuple[int, ...] = (128, 64)
    """Queries of a program."""
    warps: tuple[int, ...] = (4, 8)
    """Warps of a program."""
    stages: tuple[int, ...] = (2, 3, 4)
    """Stages of the pipeline."""
    small_steps: tuple[int, ...] = (32,)
    """Keys of a step in the loops that mask."""
    repeats: int = 10
    """Calls of each that count."""
    save: bool = True
    """Whether rows are appended to the results."""

    def main(self) -> None:
        """Check, measure, append the rows, print a table last, fastest first."""
        inputs = self._inputs()
        flop = 4 * self.tokens**2 * self.head_size * self.heads
        density = inputs.block_map.density(self.tokens, self.tokens)
        in_table = forward_config(self._capability(), self.head_size, inputs.q.dtype)
        rows: list[dict[str, Any]] = []
        for config in self._configs():
            try:
                out = _run(inputs, config)
            except OutOfResources as error:
                print(f"{_name(config)} does not fit: {error}", flush=True)
                continue
            error = relative_error(inputs, out)
            # Written so that an error that is not a number is an error as well.
            if not error <= GATE[inputs.q.dtype]:
                sys.exit(f"{_name(config)} is wrong by {error:.2g}. Nothing was written.")
            timing = measure(
                lambda config=config: _run(inputs, config),
                inputs.q.device,
                repeats=self.repeats,
            )
            rows.append(
                {
                    **{name: getattr(self, name) for name in ("tokens", "heads", "head_size")},
                    **{name: getattr(self, name) for name in ("dtype", "coarse")},
                    "density": round(density, 4),
                    "config": {**asdict(config), "programs_per_multiprocessor": None},
                    "is_in_table": _name(config) == _name(in_table),
                    "error": float(f"{error:.3g}"),
                    **vars(timing),
                    "executed_tflops": round(flop * density / (timing.p50_ms * 1e9), 3),
                    "machine": {**describe(self.device), "triton": version("triton")},
                }
            )
        if self.save and not forward.is_interpreted():
            append("kernel_configs", rows)
        rows.sort(key=lambda row: row["p50_ms"])
        print("tile warps stages step       p50 ms  TFLOP/s")
        for row in rows:
            config = row["config"]
            print(
                f"{config['tile_q']:4} {config['num_warps']:5} {config['num_stages']:6} "
                f"{config['small_k']:4} {row['p50_ms']:12.3f} {row['executed_tflops']:8.1f}"
                f"{'  in the table' if row['is_in_table'] else ''}"
            )

    def _capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.device) if self.device != "cpu" else (8, 0)

    def _configs(self) -> list[ForwardConfig]:
        return [
            ForwardConfig(
                tile_q=tile,
                small_k=small,
                num_warps=warps,
                num_stages=stages,
                # Used for the parts of full rows, of which there are none here.
                programs_per_multiprocessor=1,
            )
            for tile, warps, stages, small in itertools.product(
                self.tiles, self.warps, self.stages, self.small_steps
            )
        ]

    def _inputs(self) -> AttentionInputs:
        if self.tokens % _SIDE**2:
            sys.exit(f"--tokens must be a multiple of {_SIDE**2}, got {self.tokens}.")
        if self.device == "cpu" and not forward.is_interpreted():
            sys.exit("The kernels run on CUDA devices; TRITON_INTERPRET=1 runs them on a CPU.")
        num_frames = self.tokens // _SIDE**2
        views = Views(
            num_frames=num_frames,
            grid_height=_SIDE,
            grid_width=_SIDE,
            num_heads=self.heads,
            head_size=self.head_size,
        )
        layout = TokenLayout(
            num_frames=num_frames, num_special=0, grid_height=_SIDE, grid_width=_SIDE
        )
        order = tile_order(layout, torch.arange(num_frames))
        dtype = getattr(torch, self.dtype)
        q, k, v = (x[:, :, order].to(self.device, dtype) for x in views.qkv("medium"))
        block_map = select_blocks(q, k, max_density=self.density)
        means = CoarseBlocks.of(k, v, block_map, None) if self.coarse else None
        return AttentionInputs(q=q, k=k, v=v, block_map=block_map, coarse=means)


def _run(inputs: AttentionInputs, config: ForwardConfig) -> Tensor:
    block_map, means = inputs.block_map, inputs.coarse
    lists = forward.KeyBlockLists(
        row_offsets=block_map.row_offsets,
        columns=block_map.columns,
        block_q=block_map.block_q,
        block_k=block_map.block_k,
    )
    term = None
    if means is not None:
        term = forward.CoarseTerm(keys=means.keys, values=means.values, log_counts=means.log_counts)
    return forward.block_sparse_forward(
        inputs.q, inputs.k, inputs.v, lists, coarse=term, config=config
    )[0]


def _name(config: ForwardConfig) -> str:
    return (
        f"tile {config.tile_q}, {config.num_warps} warps, {config.num_stages} stages, "
        f"steps of {config.small_k}"
    )


if __name__ == "__main__":
    tyro.cli(Bench).main()
