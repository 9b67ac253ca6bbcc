# SPDX-License-Identifier: Apache-2.0
"""Importing the package is cheap: no GPU, no triton, no pycolmap, no nerfstudio."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ns_sparseattn"
# The adapters to the two packages that they are named after.
ADAPTERS = ("ns_sparseattn.nerfstudio.", "ns_sparseattn.kernels.")

BLOCKED = ("triton", "pycolmap", "nerfstudio")
CODE = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
failures = {}
for name in NAMES:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = repr(error)
torch = sys.modules.get("torch")
is_on_gpu = torch is not None and torch.cuda.is_initialized()
print("RESULT", json.dumps({"failures": failures, "is_on_gpu": is_on_gpu, "has_torch": torch is not
None}))
"""


def modules() -> list[str]:
    names = (
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem != "__main__"
    )
    return [name for name in names if not name.startswith(ADAPTERS)]


@pytest.fixture
def import_all(run: Callable) -> Callable[[list[str]], dict]:
    """Import modules in a new process that has none of the blocked packages."""

    def import_all(names: list[str]) -> dict:
        head = f"BLOCKED = {BLOCKED!r}; NAMES = {names!r}"
        result = run(sys.executable, "-c", head + CODE, cwd=REPOSITORY)
        assert "RESULT" in result.stdout, result.stderr
        return json.loads(result.stdout.partition("RESULT")[2])

    return import_all


def test_every_module_imports_without_the_heavy_packages(
    import_all: Callable[[list[str]], dict],
) -> None:
    result = import_all(modules())
    assert result["failures"] == {}
    assert not result["is_on_gpu"]


def test_package_itself_does_not_even_import_torch(import_all: Callable[[list[str]], dict]) -> None:
    assert import_all(["ns_sparseattn"]) == {"failures": {}, "is_on_gpu": False, "has_torch": False}
