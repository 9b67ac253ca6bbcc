# SPDX-License-Identifier: Apache-2.0
"""What the wheel and the source archive hold."""

from __future__ import annotations

import configparser
import email
import hashlib
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Archives

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ns_sparseattn"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
        return archive.read(member).decode()


@pytest.fixture(scope="module")
def metadata(archives: Archives) -> Message:
    return email.message_from_string(read(archives.wheel, "METADATA"))


def test_wheel_holds_the_package_and_nothing_else(archives: Archives) -> None:
    roots = {name.split("/")[0] for name in names(archives.wheel)}
    dist_info = next(root for root in roots if root.endswith(".dist-info"))
    startup = {path.name for path in (REPOSITORY / "startup").iterdir() if path.is_file()}
    assert roots == {"ns_sparseattn", dist_info, *startup}


def test_wheel_holds_the_kernel_that_is_compiled_on_first_use(archives: Archives) -> None:
    folder = "ns_sparseattn/attention/backends"
    sources = {f"{folder}/native_kernel.cpp", f"{folder}/native_arithmetic.h"}
    assert sources <= names(archives.wheel)


def test_wheel_holds_the_weights_that_ship(archives: Archives) -> None:
    folder = "ns_sparseattn/weights"
    for wheel in (archives.wheel, archives.wheel_of_sdist):
        with zipfile.ZipFile(wheel) as archive:
            sums = archive.read(f"{folder}/SHA256SUMS").decode().split()
            data = archive.read(f"{folder}/tiny.safetensors")
            assert f"SHA-256 `{sums[0]}`" in archive.read(f"{folder}/tiny.md").decode()
        assert sums == [hashlib.sha256(data).hexdigest(), "tiny.safetensors"]


def test_wheel_holds_every_python_file(archives: Archives) -> None:
    # The links are followed here: each folder stands where it is installed.
    on_disk = {
        f"ns_sparseattn/{path.relative_to(folder.parent).as_posix()}"
        for folder in (REPOSITORY / "kernels", REPOSITORY / "configs")
        for path in folder.rglob("*.py")
    } | {
        path.relative_to(REPOSITORY).as_posix()
        for path in PACKAGE.rglob("*.py")
        if not any(path.is_relative_to(PACKAGE / link) for link in ("kernels", "configs"))
    }
    in_wheel = {
        n for n in names(archives.wheel) if n.startswith("ns_sparseattn/") and n.endswith(".py")
    }
    assert in_wheel == on_disk


def test_wheel_is_typed_and_has_top_level_folders(archives: Archives) -> None:
    assert {
        "ns_sparseattn/py.typed",
        "ns_sparseattn/kernels/README.md",
        "ns_sparseattn/configs/README.md",
    } <= names(archives.wheel)
    assert not any("__pycache__" in name for name in names(archives.wheel))


def test_wheel_through_sdist_is_the_same(archives: Archives) -> None:
    assert names(archives.wheel_of_sdist) == names(archives.wheel)


def test_sdist_has_no_copies_behind_the_links(archives: Archives) -> None:
    with tarfile.open(archives.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "kernels/README.md", "configs/README.md"} <= files
    assert not any(
        name.startswith(("ns_sparseattn/kernels", "ns_sparseattn/configs")) for name in files
    )


def test_entry_points(archives: Archives) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(read(archives.wheel, "entry_points.txt"))
    assert {group: dict(parser[group]) for group in parser.sections()} == {
        "console_scripts": {"ns-sparseattn": "ns_sparseattn.cli:main"},
        "nerfstudio.dataparser_configs": {
            f"sparse-{model}-data": f"ns_sparseattn.nerfstudio.dataparser:sparse_{model}_data"
            for model in ("vggt", "pi3", "pi3x", "mapanything")
        },
    }


def test_metadata(metadata: Message, archives: Archives) -> None:
    import ns_sparseattn

    assert metadata["Name"] == "ns-sparseattn"
    assert metadata["Version"] == ns_sparseattn.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert read(archives.wheel, "licenses/LICENSE").lstrip().startswith("Apache License")


def test_requirements_keep_to_the_platforms_that_have_them(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist") or []
    (triton,) = [line for line in requirements if line.startswith("triton")]
    assert "Linux" in triton
    # A pin in the package would bind every user; the development set-up pins in constraints.txt.
    assert not any("==" in line.partition(";")[0] for line in requirements)


def test_startup_files_name_the_same_function(archives: Archives) -> None:
    with zipfile.ZipFile(archives.wheel) as archive:
        pth = archive.read("ns_sparseattn.pth").decode()
        start = archive.read("ns_sparseattn.start").decode()
    assert pth == "import _ns_sparseattn_hook; _ns_sparseattn_hook.install()\n"
    assert start == "_ns_sparseattn_hook:install\n"
