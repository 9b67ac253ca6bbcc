# SPDX-License-Identifier: Apache-2.0
"""The kernels under Triton's interpreter, and the error that they may make.

The interpreter knows no bfloat16 (``tl.dot`` multiplies its raw bits): float32 and float16 it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def has_triton() -> None:
    """Skip where triton has no wheels; elsewhere it is a dependency."""
    if find_spec("triton") is None:
        assert sys.platform != "linux", "triton is not installed."
        pytest.skip("There are no triton wheels for this platform.")


@contextmanager
def _interpreted() -> Iterator[None]:
    """Import triton and the kernels anew, for the interpreter, and put back what was there.

    Triton reads the variable when its own functions and ours are defined; another test may have
    imported it before.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        before = _forget_kernels()
        from ns_sparseattn.kernels import forward

        assert forward.is_interpreted()
        yield
        _forget_kernels()
        sys.modules.update(before)


def _forget_kernels() -> dict[str, ModuleType]:
    """Remove the kernels and triton, except its compiled part, from the imported modules."""
    names = [
        name
        for name in sys.modules
        if _is_within(name, "ns_sparseattn.kernels")
        or (_is_within(name, "triton") and not _is_within(name, "triton._C"))
    ]
    return {name: sys.modules.pop(name) for name in names}


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.fixture(scope="module")
def interpreter(has_triton: None) -> Iterator[None]:
    """Run a module's tests with interpreted kernels."""
    with _interpreted():
        yield


@pytest.fixture
def interpreter_once(has_triton: None) -> Iterator[None]:
    """Run one test with interpreted kernels."""
    with _interpreted():
        yield


@pytest.fixture(autouse=True)
def poisoned_memory(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fill fresh memory with NaN, so that what a kernel does not write shows."""
    if request.node.get_closest_marker("gpu"):
        # The switch forbids operations on GPUs that these tests compare with.
        yield
        return
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(3).isnan().all())
    yield
    torch.use_deterministic_algorithms(was_on)
