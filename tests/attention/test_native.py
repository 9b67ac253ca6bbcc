# SPDX-License-Identifier: Apache-2.0
"""The C++ kernel for CPUs: each instruction set, memory that is not its own, how it is built."""

from __future__ import annotations

import ctypes
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    BlockMap,
    TokenLayout,
    block_sparse_attention,
    why_not,
)
from ns_sparseattn.attention.api import resolve_backend
from ns_sparseattn.attention.backends import native, native_build
from ns_sparseattn.attention.backends.inputs import AttentionInputs
from ns_sparseattn.attention.backends.native_build import INSTRUCTION_SETS, InstructionSet
from ns_sparseattn.attention.pooling import CoarseBlocks

needs_kernel = pytest.mark.skipif(
    native_build.describe().startswith("not available"),
    reason=f"The native backend is {native_build.describe()}",
)

HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++", "c++"))

# (batch, heads, queries, keys, head size, block_q, block_k)
RAGGED = (2, 3, 517, 391, 64, 128, 64)
SHAPES = [
    pytest.param(RAGGED, id="ragged"),
    pytest.param((1, 2, 1, 1, 32, 128, 64), id="one-token"),
    pytest.param((1, 1, 300, 300, 128, 16, 16), id="small-blocks"),
    pytest.param((1, 1, 500, 500, 32, 200, 100), id="large-blocks"),
    pytest.param((1, 2, 130, 130, 7, 128, 64), id="odd-head-size"),
]


@pytest.fixture(params=INSTRUCTION_SETS, ids=lambda x: x.name)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """The kernel for each instruction set of this CPU, not for the best alone."""
    instructions: InstructionSet = request.param
    if not instructions.features <= native_build.cpu_features():
        pytest.skip(f"This CPU lacks {instructions.name}.")
    if not HAS_COMPILER and not native_build.library_path(instructions).exists():
        pytest.skip("There is no C++ compiler.")
    return ctypes.CDLL(str(native_build.build(instructions)))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, *, is_masked: bool, is_coarse: bool
) -> AttentionInputs:
    batch, heads, num_q, num_k, head_size, block_q, block_k = shape
    q, k, v = (
        _random(batch, heads, n, head_size, seed=seed).to(dtype)
        for seed, n in enumerate((num_q, num_k, num_k))
    )
    num_q_blocks, num_k_blocks = -(-num_q // block_q), -(-num_k // block_k)
    block_map = BlockMap.from_mask(
        _random(batch, heads, num_q_blocks, num_k_blocks, seed=3) > 0.3,
        block_q,
        block_k,
        num_full_q_blocks=int(num_q_blocks > 1),
        num_sink_k_blocks=int(num_k_blocks > 1),
    )
    key_mask = _random(batch, num_k, seed=4) < 0.5 if is_masked else None
    coarse = CoarseBlocks.of(k, v, block_map, key_mask) if is_coarse else None
    return AttentionInputs(q=q, k=k, v=v, block_map=block_map, key_mask=key_mask, coarse=coarse)


def _truth(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    return block_sparse_attention(
        inputs.q.double(),
        inputs.k.double(),
        inputs.v.double(),
        inputs.block_map,
        backend="reference",
        key_mask=inputs.key_mask,
        coarse=inputs.coarse is not None,
        return_lse=True,
    )


def _relative_error(out: Tensor, truth: Tensor) -> float:
    return float((out.double() - truth).norm() / truth.norm().clamp_min(1e-30))


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_masked", [False, True], ids=["all-keys", "masked"])
@pytest.mark.parametrize("is_coarse", [False, True], ids=["blocks", "coarse"])
def test_every_instruction_set_computes_the_same(
    library: ctypes.CDLL, shape: tuple[int, ...], is_masked: bool, is_coarse: bool
) -> None:
    for dtype, budget in ((torch.float32, 1e-6), (torch.bfloat16, 2e-3), (torch.float16, 3e-4)):
        inputs = _inputs(shape, dtype, is_masked=is_masked, is_coarse=is_coarse)
        out, lse = native.run_with(library, inputs)
        want, want_lse = _truth(inputs)
        assert out.dtype == dtype
        assert _relative_error(out, want) <= budget
        torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=4e-6)


@needs_kernel
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_error_stays_within_the_bounds_that_are_stated(
    library: ctypes.CDLL, spread: float
) -> None:
    mask = _random(1, 1, 16, 32, seed=5) > 0.7
    for dtype, budget in ((torch.float32, 1e-6), (torch.bfloat16, 2e-3)):
        q, k, v = (_random(1, 1, 2048, 64, seed=seed) for seed in range(3))
        inputs = AttentionInputs(
            q=(q * spread).to(dtype),
            k=k.to(dtype),
            v=v.to(dtype),
            block_map=BlockMap.from_mask(mask),
        )
        out, _ = native.run_with(library, inputs)
        assert _relative_error(out, _truth(inputs)[0]) <= budget


@needs_kernel
def test_neither_threads_nor_scratch_change_the_result(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = _inputs(RAGGED, torch.float32, is_masked=True, is_coarse=True)
    want = native.run_with(library, inputs)
    # One head at a time, by more threads than a small machine has.
    monkeypatch.setattr(native, "_SCRATCH_BYTES", 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        out = native.run_with(library, inputs)
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(out[0], want[0])
    assert torch.equal(out[1], want[1])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_beside_a_view_is_read(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    inputs = _inputs((2, 2, 150, 201, 40, 128, 64), dtype, is_masked=False, is_coarse=True)
    want, want_lse = native.run_with(library, inputs)

    def surrounded(tokens: Tensor) -> Tensor:
        batch, heads, num_tokens, head_size = tokens.shape
        memory = torch.full((batch, num_tokens + 4, heads, head_size + 6), float("nan"))
        view = memory.to(dtype)[:, 2:-2, :, 3:-3].transpose(1, 2)
        return view.copy_(tokens)

    views = AttentionInputs(
        q=surrounded(inputs.q),
        k=surrounded(inputs.k),
        v=surrounded(inputs.v),
        block_map=inputs.block_map,
        coarse=inputs.coarse,
    )
    out, lse = native.run_with(library, views)
    assert torch.equal(out, want)
    assert torch.equal(lse, want_lse)


_AT_THE_END_OF_A_PAGE = """
import ctypes, mmap
import torch
from ns_sparseattn.attention import BlockMap, block_sparse_attention

libc = ctypes.CDLL(None, use_errno=True)
keep = []

def at_the_end(tokens):
    size = tokens.numel() * tokens.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    keep.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guard = ctypes.c_void_p(address + pages * mmap.PAGESIZE)
    assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0
    whole = torch.frombuffer(memory, dtype=tokens.dtype, count=tokens.numel(),
                             offset=pages * mmap.PAGESIZE - size)
    return whole.view(tokens.shape).copy_(tokens)

for dtype in (torch.float32, torch.bfloat16):
    q, k, v = (torch.randn(1, 2, n, 40).to(dtype) for n in (150, 201, 201))
    block_map = BlockMap.from_mask(torch.ones(1, 2, 2, 4, dtype=torch.bool))
    want = block_sparse_attention(q, k, v, block_map, backend="native", coarse=True)
    q, k, v = map(at_the_end, (q, k, v))
    out = block_sparse_attention(q, k, v, block_map, backend="native", coarse=True)
    assert torch.equal(out, want)
print("intact")
"""


@needs_kernel
def test_no_page_behind_the_tensors_is_touched() -> None:
    # In a process of its own, which a read too far would end.
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_END_OF_A_PAGE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "intact\n", done.stderr


@needs_kernel
def test_any_strides_will_do() -> None:
    inputs = _inputs((1, 3, 200, 200, 32, 128, 64), torch.float32, is_masked=False, is_coarse=False)
    q, k = (
        inputs.q.transpose(2, 3).contiguous().transpose(2, 3),
        inputs.k[:, :1].expand(1, 3, -1, -1),
    )
    out = block_sparse_attention(q, k, inputs.v, inputs.block_map, backend="native")
    want = block_sparse_attention(
        inputs.q, k.contiguous(), inputs.v, inputs.block_map, backend="native"
    )
    assert torch.equal(out, want)


@needs_kernel
def test_row_offsets_out_of_order_are_refused() -> None:
    block_map = BlockMap(
        num_batch=1,
        num_heads=1,
        num_q_blocks=2,
        num_k_blocks=1,
        block_q=128,
        block_k=64,
        row_offsets=torch.tensor([0, 1000, 1]),
        columns=torch.zeros(1, dtype=torch.int32),
    )
    q, k = _random(1, 1, 256, 32), _random(1, 1, 64, 32)
    with pytest.raises(ValueError, match="row_offsets` must ascend"):
        block_sparse_attention(q, k, k, block_map, backend="native")


def test_it_says_which_inputs_it_cannot_take() -> None:
    q = _random(1, 1, 128, 32)
    block_map = BlockMap.from_mask(torch.ones(1, 1, 1, 2, dtype=torch.bool))
    reason = why_not("native", q.double(), q.double(), q.double(), block_map)
    assert reason is not None
    assert "float64" in reason
    leaf = q.clone().requires_grad_()
    reason = why_not("native", leaf, q, q, block_map)
    assert reason is not None
    assert "no gradient" in reason
    # `auto` takes the next best, which has one.
    block_sparse_attention(leaf, q, q, block_map).sum().backward()
    assert leaf.grad is not None


def test_auto_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> ctypes.CDLL:
        raise native_build.UnavailableError("there is no compiler.")

    q = _random(1, 1, 128, 32)
    block_map = BlockMap.from_mask(torch.ones(1, 1, 1, 2, dtype=torch.bool))
    want = block_sparse_attention(q, q, q, block_map, backend="gather")
    monkeypatch.setattr(native_build, "load", load)
    assert torch.equal(block_sparse_attention(q, q, q, block_map), want)
    with pytest.raises(ValueError, match=r"native backend cannot run here: there is no compiler\."):
        block_sparse_attention(q, q, q, block_map, backend="native")


INSTRUCTIONS = INSTRUCTION_SETS[-1]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is built yet, on a machine whose compiler is what ``CXX`` says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NS_SPARSEATTN_NO_BUILD", raising=False)
    monkeypatch.setattr(native_build, "cpu_features", lambda: INSTRUCTIONS.features)
    return tmp_path / "cache"


def _compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_without_a_compiler_it_says_so(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(native_build.UnavailableError, match=r"no C\+\+ compiler \(no-such-comp"):
        native_build.build(INSTRUCTIONS)
    assert native_build.describe().startswith("not available: ")


def test_building_can_be_forbidden(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NS_SPARSEATTN_NO_BUILD", "1")
    with pytest.raises(native_build.UnavailableError, match="NS_SPARSEATTN_NO_BUILD forbids"):
        native_build.build(INSTRUCTIONS)
    # What is there already may be used.
    target = native_build.library_path(INSTRUCTIONS)
    target.parent.mkdir(parents=True)
    target.touch()
    assert native_build.build(INSTRUCTIONS) == target


def test_a_failed_build_leaves_its_log(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = _compiler(tmp_path / "compiler", "echo no such option; exit 1")
    monkeypatch.setenv("CXX", f"{compiler} --wrapped")
    with pytest.raises(native_build.UnavailableError, match="could not be built") as failure:
        native_build.build(INSTRUCTIONS)
    log = native_build.library_path(INSTRUCTIONS).with_suffix(".log")
    assert str(log) in str(failure.value)
    assert "--wrapped" in log.read_text(encoding="utf-8")
    assert "no such option" in log.read_text(encoding="utf-8")
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_a_cache_that_cannot_be_written_is_named(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(_compiler(tmp_path / "compiler", "exit 0")))
    empty_cache.write_text("A file where the folder should be.", encoding="utf-8")
    with pytest.raises(native_build.UnavailableError, match="set XDG_CACHE_HOME"):
        native_build.build(INSTRUCTIONS)


def test_it_is_announced_once_and_built_once(
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The output is the last argument.
    script = f'for last; do :; done; echo built > "$last"; echo run >> {tmp_path}/runs'
    monkeypatch.setenv("CXX", str(_compiler(tmp_path / "compiler", script)))
    assert "will be built on first use" in native_build.describe()
    with caplog.at_level("INFO"):
        first, second = (native_build.build(INSTRUCTIONS) for _ in range(2))
    assert first == second
    assert first.read_text(encoding="utf-8") == "built\n"
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "run\n"
    assert len([r for r in caplog.records if "Compiling" in r.message]) == 1
    assert native_build.describe() == f"built, for {INSTRUCTIONS.name}"


@needs_kernel
@pytest.mark.skipif(shutil.which("c++") is None, reason="There is no c++.")
def test_a_compiler_older_than_the_cpu_builds_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = 'case "$*" in *avx512*) echo unknown option; exit 1;; esac; exec c++ "$@"'
    monkeypatch.setenv("CXX", str(_compiler(tmp_path / "compiler", script)))
    features = INSTRUCTION_SETS[0].features | INSTRUCTIONS.features
    monkeypatch.setattr(native_build, "cpu_features", lambda: features)
    native_build._load_once.cache_clear()
    try:
        native_build.load()
    finally:
        native_build._load_once.cache_clear()
    assert native_build.describe() == f"built, for {INSTRUCTIONS.name}"
    assert f"uses {INSTRUCTIONS.name} only: its kernel could not be built" in caplog.text


def test_a_cpu_without_the_instructions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "cpu_features", lambda: frozenset({"sse2"}))
    assert "AVX2" in native_build.describe()


def test_statistics_name_the_backend_that_ran() -> None:
    tokens = TokenLayout(num_frames=2, num_special=1, grid_height=8, grid_width=8)
    for dtype, name in ((torch.float32, resolve_backend("auto", "cpu")), (torch.float64, "gather")):
        q = _random(1, 1, tokens.num_tokens, 32).to(dtype)
        run = AttentionRun(AttentionPlan.block_sparse(density=0.5), tokens, 1)
        run.attend(0, q, q, q)
        assert [layer.backend for layer in run.stats] == [name]


@pytest.mark.parametrize(
    ("variable", "value", "has_avx2", "has_avx512", "has_bfloat16"),
    [
        ("ATEN_CPU_CAPABILITY", "default", False, False, False),
        ("ATEN_CPU_CAPABILITY", "avx2", True, False, False),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", True, False, False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", True, True, False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", True, True, True),
    ],
)
def test_what_torch_is_forbidden_is_not_used_either(
    variable: str,
    value: str,
    has_avx2: bool,
    has_avx512: bool,
    has_bfloat16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "flags\t\t: fma avx2 avx512f avx512bw avx512_bf16 amx_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert len(native_build.cpu_features()) == 6
    monkeypatch.setenv(variable, value)
    features = native_build.cpu_features()
    assert "fma" in features
    assert ("avx2" in features) == has_avx2
    assert ("avx512bw" in features) == has_avx512
    assert ("avx512_bf16" in features) == ("amx_bf16" in features) == has_bfloat16
