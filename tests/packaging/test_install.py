# SPDX-License-Identifier: Apache-2.0
"""Installing and uninstalling, as a wheel and editable, beside a stand-in for nerfstudio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Archives, Environment

REPOSITORY = Path(__file__).resolve().parents[2]
STARTUP = {"ns_sparseattn.pth", "ns_sparseattn.start", "_ns_sparseattn_hook.py"}


@pytest.fixture
def environment(new_environment: Callable[[], Environment]) -> Environment:
    """An environment with a command ``ns-process-data`` that lists its sub-commands."""
    environment = new_environment()
    scripts = environment.site_packages / "nerfstudio" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "process_data.py").write_text(
        "Commands = ['images']\ndef entrypoint(): print(Commands)\n"
    )
    command = environment.bin / "ns-process-data"
    command.write_text(
        f"#!{environment.bin / 'python'}\n"
        "from nerfstudio.scripts.process_data import entrypoint\n"
        "entrypoint()\n"
    )
    command.chmod(0o755)
    return environment


@pytest.mark.parametrize("kind", ["wheel", "wheel_of_sdist", "editable"])
def test_install_and_uninstall(
    environment: Environment, archives: Archives, kind: str, run: Callable
) -> None:
    command = environment.bin / "ns-process-data"
    before, text = environment.files(), command.read_bytes()

    environment.install(getattr(archives, kind))
    added = environment.files() - before
    assert {path.name for path in environment.site_packages.iterdir()} >= STARTUP
    assert "bin/ns-sparseattn" in added
    assert command.read_bytes() == text

    # The package needs torch, which is not here: our failure is one line and the command works.
    result = run(command)
    assert (result.stdout, result.returncode) == ("['images']\n", 0)
    assert result.stderr.startswith("ns_sparseattn: ")
    assert result.stderr.count("\n") == 1

    imports = "import ns_sparseattn.kernels, ns_sparseattn.configs as c; print(list(c.__path__)[0])"
    result = environment.python(imports)
    assert (result.returncode, result.stderr) == (0, "")
    assert Path(result.stdout.strip()).is_relative_to(REPOSITORY) == (kind == "editable")

    environment.pip("uninstall", "--yes", "ns-sparseattn")
    assert environment.files() == before
    assert command.read_bytes() == text
    result = run(command)
    assert (result.stdout, result.stderr, result.returncode) == ("['images']\n", "", 0)
