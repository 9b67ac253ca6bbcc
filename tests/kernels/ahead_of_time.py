# SPDX-License-Identifier: Apache-2.0
"""Compile the kernels for GPUs that need not be there, and read what the machine code holds.

As a script, ``python tests/kernels/ahead_of_time.py``, it prints one JSON object per line. A
process of its own, because Triton's interpreter and its compiler exclude each other in one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ns_sparseattn.kernels import configs, forward, selection

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_AMPERE, _AMPERE_CONSUMER, _ADA, _HOPPER = ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0))
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_FLAGS = {
    "HAS_ORDER": ("order_ptr",),
    "HAS_KEY_MASK": ("key_mask_ptr", "whole_ptr"),
    "HAS_COARSE": ("coarse_k_ptr", "coarse_v_ptr", "bias_ptr"),
    "IS_SPLIT": ("parts_out_ptr", "parts_lse_ptr"),
}
"""Flags of the forward kernel, and the pointers that it has only with them."""
_FORWARD_TYPES = {
    "scale": "fp32",
    "row_offsets_ptr": "*i64",
    "key_mask_ptr": "*i1",
    **dict.fromkeys(("columns_ptr", "order_ptr", "whole_ptr"), "*i32"),
    **dict.fromkeys(("lse_ptr", "parts_out_ptr", "parts_lse_ptr", "bias_ptr"), "*fp32"),
}
_SELECTION_TYPES = {
    "row_ends_ptr": "*i64",
    **dict.fromkeys(
        ("num_present_ptr", "least_ptr", "most_ptr", "ties_ptr", "columns_ptr"), "*i32"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a kernel became on a kind of GPU."""

    kernel: str
    variant: str
    """Type, head size, then what else distinguishes it."""
    capability: tuple[int, int]
    num_warps: int
    num_registers: int
    stack_bytes: int
    shared_bytes: int
    num_local: int
    """Loads from and stores to local memory: registers that did not suffice."""
    num_prefetched: int
    """Copies to shared memory that may still be under way when a step of a loop begins."""
    num_exp2: int
    num_wgmma: int
    num_mma: int


def compile_all() -> Iterator[Compiled]:
    """Compile what the tests look at."""
    for capability in ARCHITECTURES:
        for has_all in (True, False):
            yield compile_forward(capability, 64, "bf16", has_all=has_all)
    for capability in (_AMPERE, _AMPERE_CONSUMER, _HOPPER):
        yield compile_forward(capability, 128, "bf16", has_all=True)
        yield from compile_selection(capability, 64, num_rows=configs.MANY_ROWS)
    for capability in (_AMPERE, _HOPPER):
        yield compile_forward(capability, 32, "bf16", has_all=True)
    yield compile_forward(_HOPPER, 64, "fp16", has_all=True)
    # What a network of few tokens uses, see `BlockSparsePolicy.block_k`.
    yield compile_forward(_AMPERE_CONSUMER, 32, "bf16", has_all=True, blocks=(32, 16))
    yield compile_forward(_AMPERE_CONSUMER, 64, "fp32", has_all=True)
    yield compile_forward(_HOPPER, 128, "fp32", has_all=True)
    yield from compile_selection(_AMPERE_CONSUMER, 128, num_rows=1)
    yield compile_merge(_HOPPER, 128)


def compile_forward(
    capability: tuple[int, int],
    head_size: int,
    dtype: str,
    *,
    has_all: bool,
    blocks: tuple[int, int] = (128, 64),
) -> Compiled:
    """Compile the forward kernel as the table says, with every feature or with none."""
    config = configs.forward_config(capability, head_size, _DTYPES[dtype])
    block_q, block_k = blocks
    constants: dict[str, Any] = {
        "HEAD_SIZE": head_size,
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "TILE_Q": min(config.tile_q, block_q),
        "SMALL_K": min(config.small_k, block_k),
        **dict.fromkeys(_FLAGS, has_all),
    }
    if not has_all:
        constants |= dict.fromkeys(name for pointers in _FLAGS.values() for name in pointers)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return _compile(
        forward._attend_kernel,
        {**_FORWARD_TYPES, "": f"*{dtype}"},
        constants,
        options,
        capability,
        f"{dtype} {head_size} {'all' if has_all else 'none'}"
        if blocks == (128, 64)
        else f"{dtype} {head_size} blocks-{block_q}-{block_k}",
    )


def compile_merge(capability: tuple[int, int], head_size: int) -> Compiled:
    """Compile the kernel that merges parts of full rows."""
    types = {"": "*fp32", "out_ptr": "*bf16"}
    constants = {"HEAD_SIZE": head_size, "TILE": 16}
    options = {"num_warps": 4}
    name = f"bf16 {head_size}"
    return _compile(forward._merge_kernel, types, constants, options, capability, name)


def compile_selection(
    capability: tuple[int, int], head_size: int, *, num_rows: int
) -> Iterator[Compiled]:
    """Compile both selection kernels for so many rows."""
    constants = selection._constants(head_size, num_rows)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    name = f"fp32 {head_size} {constants['TILE_ROWS']}"
    types = {"": "*fp32", **_SELECTION_TYPES}
    search = {**constants, "HAS_MASS": True, "MAX_PASSES": 24}
    yield _compile(
        selection._threshold_kernel,
        {**types, "counts_ptr": "*i32"},
        search,
        options,
        capability,
        name,
    )
    types = {**types, "counts_ptr": "*i64"}
    yield _compile(selection._emit_kernel, types, constants, options, capability, name)


def _compile(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
    capability: tuple[int, int],
    variant: str,
) -> Compiled:
    """Compile a kernel; the type of an unnamed pointer is that of the empty name."""
    signature = {}
    for name in kernel.arg_names:
        default = types[""] if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
    # What a launch would find out about its pointers: torch aligns them.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability[0] * 10 + capability[1], 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    waits = re.findall(r"cp\.async\.wait_group\s+(\d+)", compiled.asm["ptx"])
    return Compiled(
        kernel=kernel.__name__.strip("_").removesuffix("_kernel"),
        variant=variant,
        capability=capability,
        num_warps=compiled.metadata.num_warps,
        num_registers=registers,
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        num_local=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        num_prefetched=max(map(int, waits), default=0),
        num_exp2=len(re.findall(r"\bMUFU\.EX2\b", code)),
        num_wgmma=len(re.findall(r"\bHGMMA\b", code)),
        num_mma=len(re.findall(r"\bHMMA\b", code)),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [_TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    for compiled in compile_all():
        sys.stdout.write(json.dumps(asdict(compiled)) + "\n")
