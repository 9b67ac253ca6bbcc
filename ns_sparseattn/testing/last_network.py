# SPDX-License-Identifier: Apache-2.0
"""The network of the last golden file, kept for the next one.

Files that share weights follow each other, and filling the published size takes most of a minute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)

_kept: dict[Hashable, Any] = {}


def keep_last(build: Callable[..., Network]) -> Callable[..., Network]:
    """Make a function return its last network again, if it is asked for the same one.

    All functions together keep one network, and let go of it before another one is made: two of the
    published size are more memory than one needs.

    Args:
        build: Makes a network; its arguments are positional and hashable.
    """

    @functools.wraps(build)
    def built(*arguments: Hashable) -> Network:
        key = (build, arguments)
        if key not in _kept:
            _kept.clear()
            _kept[key] = build(*arguments)
        return _kept[key]

    return built
