# SPDX-License-Identifier: Apache-2.0
"""Add this package's sub-commands to ``ns-process-data``.

nerfstudio has no extension point for that command, so ``ns_sparseattn.pth``
(``ns_sparseattn.start`` from Python 3.15 on) calls `install` when the interpreter starts. `install`
puts one finder on ``sys.meta_path`` and imports nothing; only when
``nerfstudio.scripts.process_data`` is imported does the finder do anything: it lets the module load
as usual and then hands it to ``ns_sparseattn.nerfstudio.process_data.extend_commands``.

This file runs in every process of the environment. It therefore uses the standard library alone,
stays cheap, and never lets a failure of ours reach nerfstudio: that costs one line on stderr. The
environment variable ``NS_SPARSEATTN_NO_HOOK=1`` turns it off. ``ns-sparseattn`` offers the same
commands without it.
"""

from __future__ import annotations

import os
import sys

# The built-in module: `threading` would be the only costly import of this file.
from _thread import get_ident

# For annotations alone, which are never evaluated: importing these at start-up would cost
# milliseconds.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["install"]

_TARGET = "nerfstudio.scripts.process_data"
_OFF_SWITCH = "NS_SPARSEATTN_NO_HOOK"


class _ExtendingLoader:
    """Load a module as the loader inside does, then extend its commands."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, so nothing that inspects it later meets this class.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _extend(module)


class _Finder:
    """Find the one module to extend through all other finders, and wrap its loader.

    It stays on ``sys.meta_path``: one that removed itself after the first hit would be spent by any
    earlier probe with ``importlib.util.find_spec``.
    """

    def __init__(self) -> None:
        # Threads that are inside `find_spec`: another package's finder may ask us back.
        self._searching: set[int] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        thread = get_ident()
        if fullname != _TARGET or thread in self._searching:
            return None
        self._searching.add(thread)
        try:
            spec = self._find_elsewhere(fullname, path, target)
        finally:
            self._searching.discard(thread)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return None
        spec.loader = _ExtendingLoader(spec.loader)  # type: ignore[assignment, arg-type]
        return spec

    def _find_elsewhere(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec = find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None


def _extend(module: ModuleType) -> None:
    try:
        from ns_sparseattn.nerfstudio.process_data import extend_commands

        extend_commands(module)
    # Whatever goes wrong here is ours alone, and the user asked for a command of nerfstudio.
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(
            f"ns_sparseattn: could not add its commands to ns-process-data ({reason}). "
            f"Set {_OFF_SWITCH}=1 to silence this line.\n"
        )


def install() -> None:
    """Put the finder first on ``sys.meta_path``, once, unless the off switch is set."""
    if os.environ.get(_OFF_SWITCH, "0") not in ("", "0"):
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
