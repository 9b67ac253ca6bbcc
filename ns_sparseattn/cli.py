# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn``: the same work without nerfstudio's own command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from .console import run_process
from .doctor import Doctor
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


def main() -> None:
    """Parse the command line and run the command."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"process": Process, "doctor": Doctor},
        prog="ns-sparseattn",
        description="Photos in, camera poses and points out, for nerfstudio.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    command.main()
