# SPDX-License-Identifier: Apache-2.0
"""The start-up hook, first with stand-ins for nerfstudio and our extension, then with both."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Environment

REPOSITORY = Path(__file__).resolve().parents[2]
SILENT = ""

NERFSTUDIO = """
import sys
runs = getattr(sys, "process_data_runs", 0) + 1
sys.process_data_runs = runs
Commands = ["images", "video"]
def entrypoint():
    print(*Commands)
"""
EXTENSION = """
def extend_commands(module):
    module.Commands.append("sparse-vggt")
"""
CALL = "from nerfstudio.scripts.process_data import entrypoint; entrypoint()"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def hooked(new_environment: Callable[[], Environment]) -> Environment:
    """An environment with the start-up files and stand-ins for nerfstudio and our extension."""
    environment = new_environment()
    site = environment.site_packages
    for name in ("ns_sparseattn.pth", "ns_sparseattn.start", "_ns_sparseattn_hook.py"):
        shutil.copy(REPOSITORY / "startup" / name, site / name)
    for package in (
        "nerfstudio",
        "nerfstudio/scripts",
        "ns_sparseattn",
        "ns_sparseattn/nerfstudio",
    ):
        write(site / package / "__init__.py")
    write(site / "nerfstudio/scripts/process_data.py", NERFSTUDIO)
    write(site / "ns_sparseattn/nerfstudio/process_data.py", EXTENSION)
    return environment


def expect(
    environment: Environment, code: str, output: str, errors: str = SILENT, **variables: str
) -> None:
    result = environment.python(code, **variables)
    assert (result.stdout.strip(), result.stderr.strip(), result.returncode) == (output, errors, 0)


def test_commands_are_added(hooked: Environment) -> None:
    expect(hooked, CALL, "images video sparse-vggt")


def test_off_switch(hooked: Environment) -> None:
    expect(hooked, CALL, "images video", NS_SPARSEATTN_NO_HOOK="1")
    expect(hooked, CALL, "images video sparse-vggt", NS_SPARSEATTN_NO_HOOK="0")


def test_start_up_imports_nothing_else(hooked: Environment) -> None:
    # What a bare interpreter has, and this module: no importlib.util, no typing, nothing of the
    # package.
    code = "import sys; print(*sorted(sys.modules))"
    bare = set(hooked.python(code, NS_SPARSEATTN_NO_HOOK="1").stdout.split())
    assert not {"typing", "threading", "importlib.util", "ns_sparseattn"} & bare
    assert set(hooked.python(code).stdout.split()) == bare
    (hooked.site_packages / "ns_sparseattn.pth").unlink()
    (hooked.site_packages / "ns_sparseattn.start").unlink()
    assert bare - set(hooked.python(code).stdout.split()) == {
        "_ns_sparseattn_hook",
        "__future__",
    }


def test_a_probe_before_the_import_changes_nothing(hooked: Environment) -> None:
    probe = "import importlib.util as u; assert u.find_spec('nerfstudio.scripts.process_data'); "
    expect(hooked, probe + probe + CALL, "images video sparse-vggt")


def test_installing_twice_adds_once(hooked: Environment) -> None:
    install = "import _ns_sparseattn_hook as hook; hook.install(); hook.install(); "
    expect(hooked, install + CALL, "images video sparse-vggt")


def test_module_runs_once_and_keeps_its_loader(hooked: Environment) -> None:
    code = (
        "import sys, inspect, nerfstudio.scripts.process_data as m; "
        "assert sys.process_data_runs == 1; "
        "assert m.__loader__ is m.__spec__.loader; "
        "assert type(m.__loader__).__name__ == 'SourceFileLoader'; "
        "assert 'entrypoint' in inspect.getsource(m); "
        "print(*m.Commands)"
    )
    expect(hooked, code, "images video sparse-vggt")


def test_reload_adds_again(hooked: Environment) -> None:
    code = (
        "import importlib as i, nerfstudio.scripts.process_data as m; print(*i.reload(m).Commands)"
    )
    expect(hooked, code, "images video sparse-vggt")


def test_two_such_hooks_live_together(hooked: Environment) -> None:
    site = hooked.site_packages
    for suffix in (".py", ".pth", ".start"):
        prefix = "_" if suffix == ".py" else ""
        ours = site / (f"{prefix}ns_sparseattn" + ("_hook" if prefix else "") + suffix)
        text = ours.read_text(encoding="utf-8").replace("ns_sparseattn", "ns_other")
        write(site / ours.name.replace("ns_sparseattn", "ns_other"), text)
    write(site / "ns_other/nerfstudio/process_data.py", EXTENSION.replace("sparse-vggt", "other"))
    result = hooked.python(CALL)
    assert sorted(result.stdout.split()) == ["images", "other", "sparse-vggt", "video"]
    assert result.stderr == SILENT


def test_threads_import_it_once(hooked: Environment) -> None:
    code = (
        "import importlib, threading\n"
        "load = lambda: importlib.import_module('nerfstudio.scripts.process_data')\n"
        "threads = [threading.Thread(target=load) for _ in range(8)]\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
        "print(*load().Commands)"
    )
    expect(hooked, code, "images video sparse-vggt")


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        pytest.param(
            "raise ImportError('no module\\nof that name')", "no module of that name", id="import"
        ),
        pytest.param("def extend_commands(module):\n    1 / 0", "ZeroDivisionError", id="call"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", id="exit"),
        pytest.param("", "cannot import name 'extend_commands'", id="missing"),
    ],
)
def test_our_failure_is_one_line_and_nerfstudio_goes_on(
    hooked: Environment, extension: str, reason: str
) -> None:
    write(hooked.site_packages / "ns_sparseattn/nerfstudio/process_data.py", extension)
    result = hooked.python(CALL)
    assert (result.stdout.strip(), result.returncode) == ("images video", 0)
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr
    assert "NS_SPARSEATTN_NO_HOOK" in result.stderr


def test_failure_of_nerfstudio_is_its_own(hooked: Environment) -> None:
    write(
        hooked.site_packages / "nerfstudio/scripts/process_data.py", "raise RuntimeError('theirs')"
    )
    result = hooked.python(CALL)
    assert result.returncode == 1
    assert "RuntimeError: theirs" in result.stderr
    assert "ns_sparseattn:" not in result.stderr


def test_without_nerfstudio_nothing_happens(hooked: Environment) -> None:
    shutil.rmtree(hooked.site_packages / "nerfstudio")
    expect(hooked, "print('fine')", "fine")
    assert "No module named 'nerfstudio'" in hooked.python(CALL).stderr


def test_hook_is_valid_where_start_files_are_read(hooked: Environment) -> None:
    # Python 3.15 resolves the line of the .start file like this, and ignores the .pth beside it.
    (hooked.site_packages / "ns_sparseattn.pth").unlink()
    line = (hooked.site_packages / "ns_sparseattn.start").read_text(encoding="utf-8").strip()
    resolve = f"import pkgutil; pkgutil.resolve_name({line!r})(); "
    expect(hooked, resolve + CALL, "images video sparse-vggt")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nerfstudio") is None
    or importlib.util.find_spec("_ns_sparseattn_hook") is None,
    reason="nerfstudio or the start-up hook is not installed.",
)
def test_real_nerfstudio_keeps_its_own_commands(tmp_path: Path, run: Callable) -> None:
    code = (
        "import json, typing, nerfstudio.scripts.process_data as m\n"
        "print('COMMANDS', json.dumps([[c.__name__, a.name] for c, a in "
        "((typing.get_args(x)[0], typing.get_args(x)[1]) for x in typing.get_args(m.Commands))]))"
    )

    def commands(**variables: str) -> list[list[str]]:
        result = run(sys.executable, "-c", code, cwd=tmp_path, **variables)
        assert "ns_sparseattn:" not in result.stderr
        return json.loads(result.stdout.partition("COMMANDS")[2])

    theirs = commands(NS_SPARSEATTN_NO_HOOK="1")
    assert len(theirs) >= 8
    extended = commands()
    assert extended[: len(theirs)] == theirs
    assert "sparse-vggt" in [name for _, name in extended[len(theirs) :]]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nerfstudio") is None
    or importlib.util.find_spec("_ns_sparseattn_hook") is None,
    reason="nerfstudio or the start-up hook is not installed.",
)
def test_real_command_shows_ours_beside_theirs(tmp_path: Path, run: Callable) -> None:
    command = Path(sys.executable).with_name("ns-process-data")
    result = run(command, "--help", cwd=tmp_path, COLUMNS="200")
    assert result.returncode == 0
    assert {"images", "video", "polycam", "sparse-vggt"} <= set(result.stdout.split())
    owner = importlib.metadata.distribution("nerfstudio")
    assert any(file.name == "ns-process-data" for file in owner.files or [])
