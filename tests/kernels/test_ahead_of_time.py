# SPDX-License-Identifier: Apache-2.0
"""The machine code that the kernels become on each kind of GPU, compiled without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("has_triton")

ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0))
REGISTERS = 65_536
SHARED_OF_MULTIPROCESSOR = {
    (8, 0): 167_936,
    (8, 6): 102_400,
    (8, 9): 102_400,
    (9, 0): 233_472,
}
"""Registers and bytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, technical
specifications by compute capability)."""
RESERVED_SHARED = 1024
"""Bytes of shared memory that each program takes beside its own (same table)."""
SPILL_OF_FLOAT32 = 32
"""Bytes of stack that the slow float32 path may take: ptxas trades a few for occupancy."""


@pytest.fixture(scope="module")
def compiled(has_triton: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``ahead_of_time.py`` says, from a process with an empty cache and no interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("ahead_of_time.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _only(compiled: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    found = [x for x in compiled if all(x[name] == value for name, value in wanted.items())]
    assert found, f"Nothing was compiled with {wanted}."
    return found


def test_every_kernel_is_compiled_for_every_architecture_that_it_differs_on(
    compiled: list[dict[str, Any]],
) -> None:
    for capability in ARCHITECTURES:
        for variant in ("bf16 64 all", "bf16 64 none"):
            _only(compiled, kernel="attend", capability=list(capability), variant=variant)
    assert {x["kernel"] for x in compiled} == {"attend", "merge", "threshold", "emit"}


def test_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    for x in compiled:
        if x["kernel"] == "attend" and x["variant"].startswith("fp32"):
            assert x["stack_bytes"] <= SPILL_OF_FLOAT32, x
        else:
            assert (x["stack_bytes"], x["num_local"]) == (0, 0), x


def test_shared_memory_is_within_the_limit(compiled: list[dict[str, Any]]) -> None:
    from ns_sparseattn.kernels.configs import SHARED_MEMORY

    for x in compiled:
        assert x["shared_bytes"] <= SHARED_MEMORY[tuple(x["capability"])], x


def test_as_many_programs_fit_as_the_table_says(compiled: list[dict[str, Any]]) -> None:
    from ns_sparseattn.kernels.configs import forward_config

    for x in _only(compiled, kernel="attend"):
        dtype, size, _ = x["variant"].split()
        capability = tuple(x["capability"])
        types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        wanted = forward_config(capability, int(size), types[dtype]).programs_per_multiprocessor
        # Registers are given out by eights.
        registers = -(-x["num_registers"] // 8) * 8 * 32 * x["num_warps"]
        shared = x["shared_bytes"] + RESERVED_SHARED
        assert REGISTERS // registers >= wanted, x
        assert SHARED_OF_MULTIPROCESSOR[capability] // shared >= wanted, x


def test_tensor_cores_do_the_products(compiled: list[dict[str, Any]]) -> None:
    for x in compiled:
        if x["kernel"] == "merge" or (x["kernel"], x["variant"][:4]) == ("attend", "fp32"):
            assert x["num_wgmma"] + x["num_mma"] == 0, x
        elif x["capability"] == [9, 0]:
            assert x["num_wgmma"] > 0, x
            assert x["num_mma"] == 0, x
        else:
            assert x["num_mma"] > 0, x


def test_each_score_costs_one_exponential(compiled: list[dict[str, Any]]) -> None:
    from ns_sparseattn.kernels.configs import forward_config

    for x in _only(compiled, kernel="attend"):
        dtype, size, flags = x["variant"].split()
        if dtype == "fp32" or flags.startswith("blocks"):
            continue
        config = forward_config(tuple(x["capability"]), int(size), torch.bfloat16)
        # Whole blocks, ragged ones, and the coarse term; in each, one a query for the rescaling.
        keys = [64, config.small_k, config.small_k] if flags == "all" else [64, config.small_k]
        threads = 32 * x["num_warps"]
        # Four threads share a query.
        per_query = 4 * config.tile_q // threads
        assert x["num_exp2"] == sum(config.tile_q * n // threads + per_query for n in keys), x
    for x in _only(compiled, kernel="threshold"):
        # Once for the sum of the softmax, once in a pass of the search.
        rows = int(x["variant"].split()[2])
        columns = {16: 64, 64: 32}[rows]
        assert x["num_exp2"] == 2 * rows * columns // (32 * x["num_warps"]), x


def test_keys_and_values_of_the_next_block_are_under_way(compiled: list[dict[str, Any]]) -> None:
    # Of three stages one is computed on, and the copies of one more may still run: keys and values.
    for capability in ARCHITECTURES:
        for x in _only(compiled, capability=list(capability), variant="bf16 64 all"):
            assert x["num_prefetched"] == 2, x
