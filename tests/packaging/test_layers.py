# SPDX-License-Identifier: Apache-2.0
"""Which packages there are, and in which direction they import each other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ns_sparseattn"

# Every module and package under `ns_sparseattn`, from the bottom up. Each may import those of the
# rows above it in this table, never its neighbours nor what follows.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"kernels"}),
    frozenset({"errors"}),
    frozenset({"geometry", "options"}),
    frozenset({"attention", "frames"}),
    frozenset({"prediction"}),
    frozenset({"stages"}),
    frozenset({"models", "scene"}),
    frozenset({"configs"}),
    frozenset({"export"}),
    frozenset({"evaluate", "refine"}),
    frozenset({"conditioning"}),
    frozenset({"predicting"}),
    frozenset({"testing"}),
    frozenset({"pipeline"}),
    frozenset({"console", "doctor"}),
    frozenset({"attention_report", "auditing", "demo_picture", "judging", "model_list"}),
    frozenset({"cli"}),
    frozenset({"demo", "nerfstudio"}),
)
UNITS = frozenset().union(*LAYERS)

# Presets are made of the types of these packages, which look them up by name inside functions.
LOOK_UP_BY_NAME = {("attention", "configs"), ("models", "configs")}

# Packages whose imports beyond the standard library are limited: kernels can be lifted out as they
# are.
ONLY_IMPORTS = {"kernels": {"torch", "triton"}}
# Packages that one unit alone may import.
ONLY_IMPORTED_BY = {"nerfstudio": "nerfstudio", "triton": "kernels"}


def unit_of(path: Path) -> str:
    """The first component of a module's name below the package."""
    relative = (
        path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.relative_to(REPOSITORY)
    )
    return relative.with_suffix("").parts[0]


def python_files() -> list[Path]:
    folders = (PACKAGE, REPOSITORY / "kernels", REPOSITORY / "configs")
    links = (PACKAGE / "kernels", PACKAGE / "configs")
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if not any(path.is_relative_to(link) for link in links)
    )


def imports(path: Path, *, is_top_level_only: bool = False) -> Iterator[str]:
    """Yield the absolute name of what a file imports, in functions as well unless told not to."""
    is_linked = not path.is_relative_to(PACKAGE)
    module = path.relative_to(REPOSITORY).with_suffix("").parts
    module = ("ns_sparseattn", *module) if is_linked else module
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if is_top_level_only and isinstance(node, ast.FunctionDef):
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else ()
            source = ".".join((*base, *(node.module or "").split("."))).strip(".")
            # `from . import geometry` names the unit in the alias.
            if source == "ns_sparseattn":
                yield from (f"{source}.{alias.name}" for alias in node.names)
            else:
                yield source


def imported_units(path: Path, *, is_top_level_only: bool = False) -> set[str]:
    """The parts of our own package that a file imports."""
    names = [name.split(".") for name in imports(path, is_top_level_only=is_top_level_only)]
    return {name[1] for name in names if name[0] == "ns_sparseattn" and len(name) > 1} & UNITS


def test_every_unit_has_a_layer() -> None:
    entries = {
        path.stem
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" and path.stem not in {"__init__", "__main__"})
        or (path.is_dir() and path.name != "__pycache__" and any(path.rglob("*.py")))
    }
    assert entries == UNITS


def test_no_unit_is_listed_twice() -> None:
    assert sum(len(layer) for layer in LAYERS) == len(UNITS)


@pytest.mark.parametrize(
    "path", python_files(), ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_imports_point_downwards(path: Path) -> None:
    unit = unit_of(path)
    if unit in {"__init__", "__main__"}:
        below = UNITS
    else:
        assert unit in UNITS, f"Enter {unit!r} in the table of layers."
        rank = next(i for i, layer in enumerate(LAYERS) if unit in layer)
        below = frozenset().union(*LAYERS[:rank]) | {unit}
    by_name = {other for owner, other in LOOK_UP_BY_NAME if owner == unit}
    assert imported_units(path, is_top_level_only=True) <= below
    assert imported_units(path) <= below | by_name


@pytest.mark.parametrize(
    "path", python_files(), ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_third_parties_stay_where_they_belong(path: Path) -> None:
    unit = unit_of(path)
    others = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    if unit in ONLY_IMPORTS:
        assert others <= ONLY_IMPORTS[unit] | {"ns_sparseattn"}
    for other, owner in ONLY_IMPORTED_BY.items():
        assert other not in others or unit == owner


def test_top_level_packages_never_shadow_others() -> None:
    # With an `__init__.py`, `kernels` at the repository root would hide the package of that name.
    for name in ("kernels", "configs"):
        assert not (REPOSITORY / name / "__init__.py").exists()
        assert (PACKAGE / name).is_symlink()
        assert (PACKAGE / name).resolve() == REPOSITORY / name
