# SPDX-License-Identifier: Apache-2.0
"""Work in threads: order, settings, errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ns_sparseattn.attention.threads import map_in_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_run_alone() -> None:
    barrier = threading.Barrier(2, timeout=30)

    def work(number: int) -> tuple[int, int, str]:
        # Passes only if two threads are here at once.
        barrier.wait()
        return number, torch.get_num_threads(), threading.current_thread().name

    with torch.no_grad():
        results = map_in_threads(work, list(range(6)), CPU)
    assert [number for number, _, _ in results] == list(range(6))
    assert {threads for _, threads, _ in results} == {1}
    assert threading.current_thread().name not in {name for _, _, name in results}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("is_inference", [False, True])
def test_the_settings_of_the_caller_hold(is_inference: bool) -> None:
    with torch.inference_mode(is_inference), torch.no_grad():
        settings = map_in_threads(
            lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), [0, 1], CPU
        )
    assert settings == [(False, is_inference)] * 2


def test_autograd_stays_in_one_thread() -> None:
    names = map_in_threads(lambda _: threading.current_thread().name, [0, 1, 2], CPU)
    assert set(names) == {threading.current_thread().name}


def test_errors_reach_the_caller_and_the_number_of_threads_is_restored() -> None:
    def fail(number: int) -> None:
        raise ValueError(f"number {number}")

    with torch.no_grad(), pytest.raises(ValueError, match="number 0"):
        map_in_threads(fail, [0, 1, 2], CPU)
    assert torch.get_num_threads() == 2
    assert map_in_threads(fail, [], CPU) == []
