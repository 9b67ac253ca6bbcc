# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn``: the same work without nerfstudio's own command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from .console import run_process
from .doctor import Doctor
from .judging import Compare, Evaluate
from .pipeline import ProcessOptions


@dataclass(frozen=True, kw_only=True)
class Process(ProcessOptions):
    """Turn a folder of photos into camera poses and points, ready for ns-train."""

    model: tyro.conf.Positional[Literal["vggt"]] = "vggt"
    """The model that looks at the photos."""
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def main(self) -> None:
        """Run the pipeline and print a summary."""
        run_process(self, verbose=self.verbose)


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Photos in, camera poses and points out, for nerfstudio."""

    command: (
        Annotated[Process, tyro.conf.subcommand("process")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
    """What to do."""


def main() -> None:
    """Parse the command line and run the command."""
    # Not the bare union of commands: tyro wraps that in a class whose name its errors then show.
    arguments = tyro.cli(
        _Arguments,
        prog="ns-sparseattn",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    arguments.command.main()
