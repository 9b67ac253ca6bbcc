# SPDX-License-Identifier: Apache-2.0
"""When the kernels run, and what is said when they cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ns_sparseattn.attention import BlockMap, block_sparse_attention, select_blocks, why_not
from ns_sparseattn.attention.backends import triton


def _map(block_q: int = 128, block_k: int = 64) -> BlockMap:
    return BlockMap.from_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool), block_q, block_k)


def _why_not(
    dtype: torch.dtype = torch.float32,
    size: int = 64,
    block_map: BlockMap | None = None,
    requires_grad: bool = False,
) -> str | None:
    q = torch.zeros(1, 1, 16, size, dtype=dtype, requires_grad=requires_grad)
    return why_not("triton", q, q, q, block_map or _map())


@pytest.mark.usefixtures("interpreter_once")
def test_each_limit_has_its_sentence() -> None:
    assert _why_not() is None
    assert _why_not(torch.float16, 128) is None
    assert "float16, bfloat16 and float32" in str(_why_not(torch.float64))
    assert "32, 64 or 128, this is 80" in str(_why_not(size=80))
    assert "Query blocks" in str(_why_not(block_map=_map(block_q=48)))
    assert "Key blocks" in str(_why_not(block_map=_map(block_k=256)))
    assert "backward" in str(_why_not(requires_grad=True))
    with torch.no_grad():
        assert _why_not(requires_grad=True) is None


@pytest.mark.usefixtures("has_triton")
def test_a_cpu_is_named() -> None:
    assert "CUDA devices only, not on cpu" in str(_why_not())
    q = torch.zeros(1, 1, 16, 64)
    with pytest.raises(ValueError, match="The triton backend cannot run here: .*CUDA"):
        block_sparse_attention(q, q, q, _map(), backend="triton")


@pytest.mark.usefixtures("has_triton")
@pytest.mark.parametrize(
    ("capability", "hip", "words"),
    [
        ((7, 5), None, "compute capability 8.0 or later, this GPU has 7.5"),
        ((9, 4), "6.4", "made for NVIDIA GPUs"),
        ((12, 0), None, None),
    ],
)
def test_gpus_that_cannot_run_the_kernels_are_named(
    capability: tuple[int, int],
    hip: str | None,
    words: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ns_sparseattn.kernels.devices import why_not_on

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    reason = why_not_on(torch.device("cuda", 1), is_interpreted=False)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.usefixtures("interpreter_once")
def test_kernels_are_launched_on_the_device_of_their_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With two GPUs the current one need not be that of the tensors.
    entered: list[torch.Tensor] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    q = torch.ones(1, 1, 200, 32)
    block_map = select_blocks(q, q, max_density=0.5)
    assert entered.pop().shape == (1, 1, 2, 32)
    block_sparse_attention(q, q, q, block_map, backend="triton")
    assert entered == [q]


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("ns_sparseattn.kernels"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    triton.what_is_missing.cache_clear()
    try:
        assert "pip install triton" in str(triton.what_is_missing())
        assert "pip install triton" in str(_why_not())
    finally:
        triton.what_is_missing.cache_clear()


@pytest.mark.usefixtures("has_triton")
def test_an_old_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.kernels import forward

    monkeypatch.setattr(forward, "TRITON_VERSION", (3, 1))
    triton.what_is_missing.cache_clear()
    try:
        assert "triton 3.6 or later, this is 3.1" in str(_why_not())
    finally:
        triton.what_is_missing.cache_clear()
