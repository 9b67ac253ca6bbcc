# SPDX-License-Identifier: Apache-2.0
"""``ns-process-data sparse-vggt`` and its like: the pipeline beside nerfstudio's sub-commands.

The start-up hook calls `extend_commands` after nerfstudio's module has loaded; nothing else of that
command changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Literal, Union, get_args

import tyro
from tyro.conf import Suppress

from ..console import run_process
from ..pipeline import ProcessOptions


@dataclass(frozen=True, kw_only=True)
class _Process(ProcessOptions):
    """What the commands of all models have in common."""

    verbose: bool = False
    """If True, print extra logging, and tracebacks of errors."""

    def main(self) -> None:
        """Run the pipeline and print a summary."""
        # nerfstudio's entry point turns errors into exit code 0; `run_process` raises SystemExit
        # instead.
        run_process(self, verbose=self.verbose)


@dataclass(frozen=True, kw_only=True)
class ProcessSparseVGGT(_Process):
    """Process photos with VGGT and sparse attention instead of COLMAP."""

    model: Suppress[Literal["vggt"]] = "vggt"


@dataclass(frozen=True, kw_only=True)
class ProcessSparsePi3(_Process):
    """Process photos with Pi3 and sparse attention instead of COLMAP."""

    model: Suppress[Literal["pi3"]] = "pi3"


@dataclass(frozen=True, kw_only=True)
class ProcessSparsePi3X(_Process):
    """Process photos with Pi3X and sparse attention instead of COLMAP; the scene is in metres."""

    model: Suppress[Literal["pi3x"]] = "pi3x"


@dataclass(frozen=True, kw_only=True)
class ProcessSparseMapAnything(_Process):
    """Process photos with MapAnything and sparse attention instead of COLMAP; in metres."""

    model: Suppress[Literal["mapanything"]] = "mapanything"


_COMMANDS = {
    "sparse-vggt": ProcessSparseVGGT,
    "sparse-pi3": ProcessSparsePi3,
    "sparse-pi3x": ProcessSparsePi3X,
    "sparse-mapanything": ProcessSparseMapAnything,
}


def extend_commands(module: ModuleType) -> None:
    """Add our sub-commands to the ``Commands`` union of ``nerfstudio.scripts.process_data``.

    Names that the module already has are left alone, so calling it twice changes nothing.

    Args:
        module: nerfstudio's module, loaded.
    """
    taken = {name for member in get_args(module.Commands) for name in _subcommand_names(member)}
    members = [
        Annotated[command, tyro.conf.subcommand(name=name), tyro.conf.OmitArgPrefixes]
        for name, command in _COMMANDS.items()
        if name not in taken
    ]
    if members:
        vars(module)["Commands"] = Union[(module.Commands, *members)]


def _subcommand_names(member: object) -> list[str]:
    """Return the names that an annotated member of the union carries."""
    return [name for note in get_args(member)[1:] if (name := getattr(note, "name", None))]
