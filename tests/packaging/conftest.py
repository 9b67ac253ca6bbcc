# SPDX-License-Identifier: Apache-2.0
"""Built archives, and throw-away environments to install them into."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(
    *command: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without this environment's Python settings; the caller judges the result."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NS_SPARSEATTN"))}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**kept, **variables},
    )


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command, as `_run` says."""
    return _run


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment without pip; this process's pip installs into it."""

    root: Path

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return self.root / "bin"

    @property
    def site_packages(self) -> Path:
        """The folder where packages are installed."""
        return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(self.root)}))

    def files(self) -> set[str]:
        """Everything in the environment, as paths from its root, caches of byte code left out."""
        return {
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if "__pycache__" not in path.parts
        }

    def python(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run code in this environment, from a folder that holds none of our files."""
        return _run(self.bin / "python", "-c", code, cwd=self.root, **variables)

    def pip(self, *arguments: str | Path) -> None:
        """Run pip on this environment, offline."""
        command = (sys.executable, "-m", "pip", "--python", self.bin / "python", *arguments)
        result = _run(*command, cwd=self.root, PIP_DISABLE_PIP_VERSION_CHECK="1")
        assert result.returncode == 0, result.stdout + result.stderr

    def install(self, wheel: Path) -> None:
        """Install a wheel without its dependencies."""
        self.pip("install", "--no-index", "--no-deps", wheel)


@pytest.fixture
def new_environment(tmp_path: Path) -> Callable[[], Environment]:
    """Make an empty environment."""

    def make() -> Environment:
        root = tmp_path / "environment"
        venv.create(root, with_pip=False, symlinks=True)
        return Environment(root=root)

    return make


@dataclass(frozen=True, kw_only=True)
class Archives:
    """What the build backend makes of the checkout."""

    sdist: Path
    wheel: Path  # Built from the checkout.
    wheel_of_sdist: Path  # Built from the unpacked sdist.
    editable: Path  # The wheel that `pip install --editable` builds and installs.


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Build all of them once; the backend comes from this environment, so nothing is fetched."""
    direct, through = tmp_path_factory.mktemp("direct"), tmp_path_factory.mktemp("through_sdist")
    editable = tmp_path_factory.mktemp("editable")
    build = (sys.executable, "-m", "build", "--no-isolation", REPOSITORY, "--outdir")
    build_editable = f"import hatchling.build as b; b.build_editable({str(editable)!r})"
    for command in (
        (*build, direct, "--wheel"),
        (*build, through),
        (sys.executable, "-c", build_editable),
    ):
        result = _run(*command, cwd=REPOSITORY)
        assert result.returncode == 0, result.stdout + result.stderr
    return Archives(
        sdist=next(through.glob("*.tar.gz")),
        wheel=next(direct.glob("*.whl")),
        wheel_of_sdist=next(through.glob("*.whl")),
        editable=next(editable.glob("*.whl")),
    )
