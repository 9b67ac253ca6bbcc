# SPDX-License-Identifier: Apache-2.0
"""``ns-process-data sparse-vggt``: the pipeline beside nerfstudio's own sub-commands.

The start-up hook calls `extend_commands` after nerfstudio's module has loaded; nothing else of that
command changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Union, get_args

import tyro

from ..console import run_process
from ..pipeline import ProcessOptions


@dataclass(frozen=True, kw_only=True)
class ProcessSparseVGGT(ProcessOptions):
    """Process photos with VGGT and sparse attention instead of COLMAP."""

    verbose: bool = False
    """If True, print extra logging, and tracebacks of errors."""

    def main(self) -> None:
        """Run the pipeline and print a summary."""
        # nerfstudio's entry point turns errors into exit code 0; `run_process` raises SystemExit
        # instead.
        run_process(self, verbose=self.verbose)


_COMMANDS = {"sparse-vggt": ProcessSparseVGGT}


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
