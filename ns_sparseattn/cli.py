# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn``: the same work without nerfstudio's own command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from .attention_report import AttentionReport
from .auditing import AuditScene
from .console import run_process, set_up_logging, stage_progress, user_errors
from .doctor import Doctor
from .export import write_undistorted
from .judging import Compare, Evaluate
from .model_list import ListModels
from .models.registry import ModelName
from .options import ExportOptions
from .pipeline import ProcessOptions


@dataclass(frozen=True, kw_only=True)
class Process(ProcessOptions):
    """Turn a folder of photos into camera poses and points, ready for ns-train."""

    model: tyro.conf.Positional[ModelName] = "vggt"
    """The model that looks at the photos."""
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def main(self) -> None:
        """Run the pipeline and print a summary."""
        run_process(self, verbose=self.verbose)


@dataclass(frozen=True, kw_only=True)
class Undistort(ExportOptions):
    """Write the twin of a scene folder that has no lens distortion: PINHOLE cameras throughout."""

    undistort: tyro.conf.Suppress[bool] = False
    scene: tyro.conf.Positional[Path]
    """The scene folder; it is not changed."""
    output_dir: tyro.conf.Positional[Path]
    """Folder to write the twin to; must not exist yet, or be empty, unless `overwrite` is set."""
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def main(self) -> None:
        """Write the twin and print where it is."""
        with user_errors(verbose=self.verbose):
            set_up_logging(verbose=self.verbose)
            with stage_progress() as progress:
                written = write_undistorted(
                    self.scene,
                    self.output_dir,
                    self,
                    progress=partial(progress, "write scene"),
                )
            line = f"Scene: {written.root}\nNext: {written.train_command()}"
            Console(file=sys.stdout).print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Photos in, camera poses and points out, for nerfstudio."""

    command: (
        Annotated[Process, tyro.conf.subcommand("process")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[AuditScene, tyro.conf.subcommand("audit")]
        | Annotated[Undistort, tyro.conf.subcommand("undistort")]
        | Annotated[AttentionReport, tyro.conf.subcommand("attention-report")]
        | Annotated[ListModels, tyro.conf.subcommand("models")]
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
