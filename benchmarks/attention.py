# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.attention``: the block-sparse operation against dense attention.

Everything runs on the same queries, keys and values: those of overlapping views
(`benchmarks.overlapping_views`, medium sharpness, in tiles), so that lists are clustered and uneven
as a model's are. Lists of the same lengths with uniformly random blocks are measured as well;
such lists are easier to balance and worse for caches.

Two throughputs are given: ``executed`` counts the (query, key) pairs that the lists hold, ``dense``
counts all pairs, as if nothing had been left out. The speed-up is over the fastest dense attention
of the same dtype in the same run, without selection and with it.

Before anything is timed, every backend must agree with the formula in float64 on sampled rows.
If one does not, the command ends with an error and its row is not written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import flashinfer_peer
from benchmarks.machine import describe
from benchmarks.overlapping_views import Views
from benchmarks.rows import append
from benchmarks.timing import Timing, measure
from ns_sparseattn.attention import BlockMap, select_blocks
from ns_sparseattn.attention.backends import BACKENDS
from ns_sparseattn.attention.backends.inputs import AttentionInputs
from ns_sparseattn.attention.layout import BLOCK_K, BLOCK_Q, TokenLayout
from ns_sparseattn.attention.pooling import CoarseBlocks
from ns_sparseattn.attention.tiles import tile_order

Dtype = Literal["float32", "float16", "bfloat16"]
ListKind = Literal["selected", "random"]

GATE: dict[torch.dtype, float] = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest relative error (L2, sampled rows, against float64) that a backend may make. A wrong
kernel is off by far more; the error itself is in the row."""
_SAMPLED_BLOCKS = 4
"""Query blocks whose rows are compared."""
_FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, ImportError)
"""What kernels raise that cannot run, for lack of memory or of a compiler, say."""
_MATH_BYTES = 2**31
"""Scores that the plain formula may hold for it to take part."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time every backend and every dense peer that the device has."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    tokens: tuple[int, ...] = (8192, 16384)
    """Sequence lengths, in whole frames of 32 by 32 patches: multiples of 1024."""
    densities: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05)
    """Shares of the key blocks kept."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """Types of queries, keys and values."""
    lists: tuple[ListKind, ...] = ("selected", "random")
    """What lists to measure."""
    heads: int = 16
    """Heads."""
    head_size: int = 64
    """Channels of a head."""
    coarse: bool = True
    """Whether the coarse term is measured beside the plain operation."""
    backends: tuple[str, ...] = (*(x for x in BACKENDS if x != "reference"), flashinfer_peer.NAME)
    """Backends to measure, those that can run here, and FlashInfer; gather, flex and FlashInfer
    need much memory or time on sequences of a million tokens."""
    repeats: int = 5
    """Calls of each that count."""
    minutes: float = 9.0
    """No density is begun later than this."""
    save: bool = True
    """Whether rows are appended to the results."""

    def main(self) -> None:
        """Check, measure, append the rows of each length and dtype, print a table last."""
        deadline = time.monotonic() + 60 * self.minutes
        rows: list[dict[str, Any]] = []
        for num_tokens in self.tokens:
            for name in self.dtypes:
                measured = list(self._rows(num_tokens, getattr(torch, name), deadline))
                if self.save:
                    append("attention", measured)
                rows += measured
        print(table(rows))

    def _rows(
        self, num_tokens: int, dtype: torch.dtype, deadline: float
    ) -> Iterator[dict[str, Any]]:
        if time.monotonic() > deadline:
            print(f"No time left for {num_tokens} tokens of {dtype}.", flush=True)
            return
        device = torch.device(self.device)
        qkv = self._qkv(num_tokens, device, dtype)
        common = {
            "tokens": num_tokens,
            "heads": self.heads,
            "head_size": self.head_size,
            "dtype": str(dtype).removeprefix("torch."),
        }
        dense: dict[str, Timing] = {}
        for peer, call in _dense_peers(qkv, device):
            dense[peer] = measure(call, device, repeats=self.repeats)
            yield self._row({**common, "what": peer, "lists": "dense"}, 1.0, dense[peer])
        best_ms = min(timing.p50_ms for timing in dense.values())
        for density in self.densities:
            if time.monotonic() > deadline:
                print(f"No time left for density {density:g} of {num_tokens} tokens.", flush=True)
                return
            selected = select_blocks(qkv[0], qkv[1], max_density=density)
            selection = measure(
                lambda density=density: select_blocks(qkv[0], qkv[1], max_density=density),
                device,
                repeats=self.repeats,
            )
            for kind in self.lists:
                block_map = selected if kind == "selected" else _shuffled(selected)
                for row in self._sparse_rows(qkv, block_map, device):
                    timing: Timing = row.pop("timing")
                    speed_up = best_ms / timing.p50_ms
                    with_selection = best_ms / (timing.p50_ms + selection.p50_ms)
                    yield {
                        **self._row({**common, "lists": kind, **row}, row["density"], timing),
                        "asked_density": density,
                        "selection_ms": selection.p50_ms,
                        "speed_up": round(speed_up, 2),
                        "speed_up_with_selection": round(with_selection, 2),
                    }

    def _sparse_rows(
        self, qkv: tuple[Tensor, Tensor, Tensor], block_map: BlockMap, device: torch.device
    ) -> Iterator[dict[str, Any]]:
        q, k, v = qkv
        plain = AttentionInputs(q=q, k=k, v=v, block_map=block_map)
        variants = [plain]
        if self.coarse:
            variants.append(replace(plain, coarse=CoarseBlocks.of(k, v, block_map, None)))
        for name in self.backends:
            for inputs in variants:
                call = _call_of(name, inputs)
                if call is None:
                    break
                error = relative_error(inputs, call())
                # Written so that an error that is not a number is an error as well.
                if not error <= GATE[q.dtype]:
                    sys.exit(
                        f"The {name} backend is wrong by {error:.2g} on {q.dtype} at {q.shape[2]} "
                        f"tokens; {GATE[q.dtype]:g} is allowed. Its rows were not written."
                    )
                yield {
                    "what": name,
                    "coarse": inputs.coarse is not None,
                    "density": round(block_map.density(q.shape[2], k.shape[2]), 4),
                    "list_lengths": _lengths(block_map),
                    "error": float(f"{error:.3g}"),
                    "timing": measure(call, device, repeats=self.repeats),
                }

    def _qkv(
        self, num_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        side = 32
        if num_tokens % side**2:
            sys.exit(f"--tokens must be multiples of {side**2}, got {num_tokens}.")
        num_frames = num_tokens // side**2
        views = Views(
            num_frames=num_frames,
            grid_height=side,
            grid_width=side,
            num_heads=self.heads,
            head_size=self.head_size,
        )
        tokens = TokenLayout(
            num_frames=num_frames, num_special=0, grid_height=side, grid_width=side
        )
        order = tile_order(tokens, torch.arange(num_frames))
        q, k, v = (x[:, :, order].to(device, dtype) for x in views.qkv("medium"))
        return q, k, v

    def _row(self, what: dict[str, Any], density: float, timing: Timing) -> dict[str, Any]:
        flop = 4 * what["tokens"] ** 2 * what["head_size"] * what["heads"]
        per_s = timing.p50_ms * 1e-3 * 1e12
        return {
            **what,
            **vars(timing),
            "executed_tflops": round(flop * density / per_s, 3),
            "dense_tflops": round(flop / per_s, 3),
            "machine": describe(self.device),
        }


def _call_of(name: str, inputs: AttentionInputs) -> Callable[[], Tensor] | None:
    """Return what computes the operation, tried once; none, and a sentence, if it cannot here."""
    if name == flashinfer_peer.NAME:
        reason, prepare = flashinfer_peer.why_not(inputs), flashinfer_peer.prepare
    else:
        backend = BACKENDS[name]
        reason = backend.why_not(inputs)

        def prepare(inputs: AttentionInputs) -> Callable[[], Tensor]:
            # As in a model; the dense peers do not return it either.
            inputs = replace(inputs, needs_lse=False)
            return lambda: backend.run(inputs)[0]

    if reason is None:
        try:
            call = prepare(inputs)
            call()
        except _FAILURES as error:
            # Another's kernel that does not run here must not cost the rows of all others.
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            return call
    _say_once(f"{name} is left out at {inputs.q.shape[2]} tokens: {reason}")
    return None


def relative_error(inputs: AttentionInputs, out: Tensor) -> float:
    """Return the L2 error of sampled rows against the formula in float64."""
    block_map = inputs.block_map
    num_blocks = min(_SAMPLED_BLOCKS, block_map.num_q_blocks)
    blocks = torch.linspace(0, block_map.num_q_blocks - 1, num_blocks).long().unique()
    mask = block_map.to_mask()[:, :, blocks.to(out.device)]
    difference, norm = 0.0, 0.0
    for b in range(out.shape[0]):
        for h in range(out.shape[1]):
            for row, block in enumerate(blocks.tolist()):
                rows = slice(block * block_map.block_q, (block + 1) * block_map.block_q)
                want = _exact_rows(inputs, b, h, rows, mask[b, h, row])
                difference += float((out[b, h, rows].double() - want).square().sum())
                norm += float(want.square().sum())
    return (difference / norm) ** 0.5


def _exact_rows(
    inputs: AttentionInputs,
    b: int,
    h: int,
    rows: slice,
    is_listed: Tensor,  # [NK]
) -> Tensor:
    queries = inputs.q[b, h, rows].double() * inputs.scale
    keep = is_listed.repeat_interleave(inputs.block_map.block_k)[: inputs.k.shape[2]]
    scores = queries @ inputs.k[b, h, keep].double().T
    values = inputs.v[b, h, keep].double()
    if inputs.coarse is not None:
        coarse = inputs.coarse
        bias = coarse.log_counts[b].double().masked_fill(is_listed, float("-inf"))
        scores = torch.cat([scores, queries @ coarse.keys[b, h].double().T + bias], dim=-1)
        values = torch.cat([values, coarse.values[b, h].double()])
    return scores.softmax(-1) @ values


def _dense_peers(
    qkv: tuple[Tensor, Tensor, Tensor], device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every dense attention that runs here."""
    backends = {
        "sdpa flash": SDPBackend.FLASH_ATTENTION,
        "sdpa cudnn": getattr(SDPBackend, "CUDNN_ATTENTION", None),
        "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa math": SDPBackend.MATH,
    }
    batch, heads, num_tokens, _ = qkv[0].shape
    if 4 * batch * heads * num_tokens**2 > _MATH_BYTES:
        _say_once("sdpa math is left out where it would hold too many scores at once.")
        del backends["sdpa math"]
    for name, backend in backends.items():
        if backend is None:
            continue

        def call(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*qkv)

        yield from _if_it_runs(name, call)
    if device.type == "cuda":
        in_rows = [x.transpose(1, 2).contiguous() for x in qkv]
        for name, module in (("fa3", "flash_attn_interface"), ("fa4", "flash_attn.cute")):
            attend = _flash_attention(module)
            if attend is None:
                _say_once(f"{name} is left out: {module} is not installed.")
                continue
            yield from _if_it_runs(name, lambda attend=attend: attend(*in_rows))


def _if_it_runs(
    name: str, call: Callable[[], object]
) -> Iterator[tuple[str, Callable[[], object]]]:
    try:
        call()
    except _FAILURES as error:
        _say_once(f"{name} is left out: {str(error).splitlines()[0]}")
    else:
        yield name, call


@cache
def _say_once(sentence: str) -> None:
    print(sentence, flush=True)


def _flash_attention(module: str) -> Callable[..., object] | None:
    try:
        return __import__(module, fromlist=["flash_attn_func"]).flash_attn_func
    except (ImportError, AttributeError):
        return None


def _shuffled(block_map: BlockMap) -> BlockMap:
    """Return a map of as many, but uniformly random, blocks in each row."""
    generator = torch.Generator().manual_seed(0)
    mask = block_map.to_mask()
    order = torch.rand(mask.shape, generator=generator).argsort(-1).argsort(-1)
    counts = mask.sum(-1, keepdim=True)
    return BlockMap.from_mask(order.to(mask.device) < counts, BLOCK_Q, BLOCK_K)


def _lengths(block_map: BlockMap) -> list[int]:
    counts = block_map.counts.flatten().sort().values
    return [int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1])]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a short table of rows for the terminal."""
    lines = [
        f"{'tokens':>7} {'dtype':8} {'lists':8} {'density':>7} {'what':19} {'ms':>9} "
        f"{'TFLOP/s':>8} {'speed-up':>8} {'with selection':>14} {'error':>8} {'GiB':>6}"
    ]
    for row in rows:
        what = row["what"] + (" + coarse" if row.get("coarse") else "")
        lines.append(
            f"{row['tokens']:7} {row['dtype']:8} {row['lists']:8} {row.get('density', 1.0):7.3f} "
            f"{what:19.19} {row['p50_ms']:9.3f} {row['executed_tflops']:8.3f} "
            f"{row.get('speed_up', 1.0):8.2f} {row.get('speed_up_with_selection', 1.0):14.2f} "
            f"{row.get('error', 0.0):8.1e} {row['peak_gib']:6.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(Bench).main()
