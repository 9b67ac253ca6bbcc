# SPDX-License-Identifier: Apache-2.0
"""Replace the ``forward`` of single modules, and take the replacement back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

_logger = logging.getLogger(__name__)

Forward = Callable[..., Any]


class Replacement:
    """Stands in for the ``forward`` of one module until it is removed.

    It is an attribute of the instance: the class and its other instances are not touched.
    Replacements of one module may lie on top of each other and go in any order.

    Args:
        module: Whose ``forward`` to replace.
        handle: Called with the module's real ``forward``, below all replacements, and the arguments
            of a call; returns the result.
    """

    def __init__(
        self,
        module: nn.Module,
        handle: Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        self._module = module
        self._handle = handle
        self._below: Forward = module.forward
        # What is below is the class's own method, or was put on the instance by somebody.
        self._is_below_on_instance = "forward" in vars(module)
        # `inspect.signature` looks through this.
        self.__wrapped__ = self._below
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""
        forward = self._below
        while isinstance(forward, Replacement):
            forward = forward._below
        return self._handle(forward, args, kwargs)

    def remove(self) -> None:
        """Put back what was there before."""
        above: Replacement | None = None
        forward: Forward = self._module.forward
        while isinstance(forward, Replacement) and forward is not self:
            above, forward = forward, forward._below
        if forward is not self:
            _logger.warning(
                "The forward of a %s was replaced by somebody else meanwhile; it is left as it is.",
                type(self._module).__name__,
            )
        elif above is not None:
            above._below = above.__wrapped__ = self._below
            above._is_below_on_instance = self._is_below_on_instance
        elif self._is_below_on_instance:
            self._module.forward = self._below
        else:
            del self._module.forward
