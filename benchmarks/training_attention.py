# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.training_attention``: attention with gradients on a CPU, ours and torch's.

Times forward and backward of the sequences that a step of training has: those of single frames and
those of whole scenes. Rows go to ``benchmarks/results/training_attention.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import rows
from benchmarks.machine import describe
from benchmarks.timing import measure
from training.cpu_attention import attention


def _torch(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return call


_IMPLEMENTATIONS = {
    "ours": attention,
    "torch, products and softmax": _torch(SDPBackend.MATH),
    "torch, fused": _torch(SDPBackend.FLASH_ATTENTION),
}
_SHAPES = ((24, 50), (24, 110), (6, 200), (6, 440), (3, 880))
"""Sequences, and tokens of each."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time attention with gradients."""

    dtype: str = "bfloat16"
    """Type of queries, keys and values."""
    heads: int = 3
    """Heads of size 64."""
    threads: int = 1
    """Threads; training uses one a process."""
    repeats: int = 15
    """Calls that count."""
    save: bool = True
    """Whether to write rows."""

    def main(self) -> None:
        """Run, print, append the rows."""
        torch.set_num_threads(self.threads)
        cpu, measured = torch.device("cpu"), []
        for sequences, tokens in _SHAPES:
            generator = torch.Generator().manual_seed(0)
            shape = (sequences, self.heads, tokens, 64)
            q, k, v = (
                torch.randn(shape, generator=generator)
                .to(getattr(torch, self.dtype))
                .requires_grad_()
                for _ in range(3)
            )
            for name, implementation in _IMPLEMENTATIONS.items():

                def call(run: Callable[..., Tensor] = implementation) -> None:
                    torch.autograd.backward(run(q, k, v), torch.ones_like(v))  # noqa: B023

                timing = measure(call, cpu, repeats=self.repeats)
                print(f"{sequences:4d} x {tokens:4d}  {timing.p50_ms:8.2f} ms  {name}")
                measured.append(
                    {
                        "sequences": sequences,
                        "tokens": tokens,
                        "heads": self.heads,
                        "dtype": self.dtype,
                        "attention": name,
                        "p20_ms": timing.p20_ms,
                        "p50_ms": timing.p50_ms,
                        "p80_ms": timing.p80_ms,
                        "machine": describe("cpu"),
                    }
                )
        if self.save:
            rows.append("training_attention", measured)


if __name__ == "__main__":
    tyro.cli(Bench).main()
