# SPDX-License-Identifier: Apache-2.0
"""Work for several CPU threads that each run torch on their own.

Many small operations on slices of a tensor spend much of their time in the barriers of torch's own
threads, the more so when other programs need the cores. Threads that each take slices need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Call `work` for every item, on a CPU in as many threads as torch may use.

    With autograd, and on other devices, everything runs in the caller's thread.

    Args:
        work: What to do. Threads share its tensors; what it writes must not overlap.
        items: What to call it with.
        device: Where its tensors are.

    Returns:
        What the calls returned, in the order of the items.

    Example:
        >>> import torch
        >>> map_in_threads(lambda n: n * n, [1, 2, 3], torch.device("cpu"))
        [1, 4, 9]
    """
    num_threads = min(torch.get_num_threads(), len(items))
    if device.type != "cpu" or num_threads <= 1 or torch.is_grad_enabled():
        return [work(item) for item in items]
    is_inference = torch.is_inference_mode_enabled()

    def work_alone(item: Item) -> Result:
        # These settings belong to a thread; a new one has the defaults.
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(item)

    total = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            num_threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(work_alone, items))
    finally:
        # Threads that are born later take over the number that was set last.
        torch.set_num_threads(total)
