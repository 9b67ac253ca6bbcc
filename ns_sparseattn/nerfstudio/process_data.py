# SPDX-License-Identifier: Apache-2.0
"""``ns-process-data sparse-vggt`` and its like: the pipeline beside nerfstudio's sub-commands.

The start-up hook calls `extend_commands` after nerfstudio's module has loaded; nothing else of that
command changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from types import ModuleType
from typing import Annotated, Literal, Union, get_args

import tyro
from tyro.conf import Suppress

from ..console import run_process
from ..models.registry import MODELS, model_names
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


def _command(name: str) -> type[_Process]:
    """Make the command of one model; other packages' models are not imported for it."""
    title = MODELS[name].title if name in MODELS else name
    is_metric = name in MODELS and MODELS[name].scale == "metric"
    command = make_dataclass(
        f"ProcessSparse_{name}",
        [("model", Suppress[Literal[name]], field(default=name))],  # pyright: ignore
        bases=(_Process,),
        frozen=True,
        kw_only=True,
    )
    command.__doc__ = (
        f"Process photos with {title} and sparse attention instead of COLMAP"
        f"{'; the scene is in metres' if is_metric else ''}."
    )
    return command


def extend_commands(module: ModuleType) -> None:
    """Add our sub-commands to the ``Commands`` union of ``nerfstudio.scripts.process_data``.

    Names that the module already has are left alone, so calling it twice changes nothing.

    Args:
        module: nerfstudio's module, loaded.
    """
    taken = {name for member in get_args(module.Commands) for name in _subcommand_names(member)}
    members = [
        Annotated[
            _command(name), tyro.conf.subcommand(name=f"sparse-{name}"), tyro.conf.OmitArgPrefixes
        ]
        for name in model_names()
        if f"sparse-{name}" not in taken
    ]
    if members:
        vars(module)["Commands"] = Union[(module.Commands, *members)]


def _subcommand_names(member: object) -> list[str]:
    """Return the names that an annotated member of the union carries."""
    return [name for note in get_args(member)[1:] if (name := getattr(note, "name", None))]
