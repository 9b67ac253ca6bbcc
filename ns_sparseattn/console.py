# SPDX-License-Identifier: Apache-2.0
"""What the commands show: log, progress bars, closing summary, errors without tracebacks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.rule import Rule

from .errors import BrokenPhotoError, ReconstructionError
from .pipeline import ProcessOptions, ProcessResult, process

USER_ERRORS = (ReconstructionError, ValueError, OSError)
"""What a user of a command can cause: shown as a sentence, without a traceback."""

EXIT_UNTRUSTED = 3
"""Exit code of commands whose scene was written but cannot be trusted."""

_MIN_IMAGES_FOR_DEFAULT_SPLIT = 10
"""Of fewer, none is left to evaluate on: nerfstudio trains on 90 per cent, rounded up."""

_console = Console(stderr=True)


def set_up_logging(*, verbose: bool) -> None:
    """Show the package's log on standard error: warnings, and with `verbose` everything it does."""
    handler = RichHandler(console=_console, show_path=False, show_time=False, rich_tracebacks=False)
    logger = logging.getLogger(__package__)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = False


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar per stage with count and remaining time; yields the function that feeds them."""
    bars = Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        # Bars without a task would leave an empty line before an early error.
        bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


@contextmanager
def user_errors(*, verbose: bool) -> Iterator[None]:
    """Turn errors that a user can cause into one sentence and exit code 1, Ctrl-C into 130.

    Args:
        verbose: Show the traceback as well.

    Raises:
        SystemExit: In place of the error.
    """
    try:
        yield
    except KeyboardInterrupt:
        _console.print("[bold red]Interrupted.[/] Nothing was written.")
        raise SystemExit(130) from None
    except USER_ERRORS as error:
        if verbose:
            _console.print_exception()
        _console.print("[bold red]Error:[/]", end=" ")
        _console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def run_process(options: ProcessOptions, *, verbose: bool) -> ProcessResult:
    """Run the pipeline as a command does: log, progress bars, summary, errors as exit codes.

    Args:
        options: What to do.
        verbose: Show every log line, and tracebacks of errors.

    Raises:
        SystemExit: If it fails, with code 1, or if matches do not confirm the scene, with code 3;
            the reason has been shown.
    """
    with user_errors(verbose=verbose):
        try:
            result = show_process(options, verbose=verbose)
        except BrokenPhotoError as error:
            if not options.data.is_dir():
                raise
            raise ValueError(f"{error}\nAdd --skip-broken to leave such files out.") from error
    if not result.is_trusted and options.refine.accept_untrusted:
        _console.print("[bold yellow]The scene cannot be trusted[/]; the notes say why.")
    elif not result.is_trusted:
        _console.print(
            "[bold red]The scene cannot be trusted[/]; the notes say why. It was written; "
            "--accept-untrusted makes this a warning.",
            highlight=False,
        )
        raise SystemExit(EXIT_UNTRUSTED)
    return result


def show_process(
    options: ProcessOptions, *, verbose: bool, shows_next: bool = True
) -> ProcessResult:
    """Run the pipeline with log, progress bars and a closing summary.

    Args:
        options: What to do.
        verbose: Show every log line.
        shows_next: Whether the summary ends with the scene's folder and the command that trains on
            it.

    Raises:
        ReconstructionError: As `ns_sparseattn.pipeline.process` does, and ``ValueError`` likewise.
    """
    set_up_logging(verbose=verbose)
    with stage_progress() as progress:
        result = process(options, progress=progress)
    parser = () if options.eval_data is not None else _parser_for(len(result.scene.images))
    _print_summary(result, parser, shows_next=shows_next)
    return result


def _print_summary(result: ProcessResult, parser: tuple[str, ...], *, shows_next: bool) -> None:
    """Print what was made and which command comes next, on standard output."""
    out = Console(file=sys.stdout)
    built, weights = result.scene, result.weights
    title = "[bold green]:tada: All DONE :tada:[/]" if weights.verified else "[bold]All DONE[/]"
    out.print(Rule(title))
    points = built.points
    mean_track = float(points.track_length.double().mean()) if len(points) else 0.0
    total_s = sum(stage.time_ms for stage in result.stages) / 1e3
    lines = [
        f"{_count(len(built.images), 'image')} posed, {_count(len(built.cameras), 'camera')}, "
        f"{_count(len(points), 'point')} (mean track length {mean_track:.1f}).",
        f"Weights {weights.name}, licence: {weights.licence}.",
        f"{total_s:.1f} s in all: "
        + ", ".join(f"{stage.name} {stage.time_ms / 1e3:.1f} s" for stage in result.stages)
        + ".",
    ]
    if result.attention:
        densities = [layer.density for layer in result.attention]
        masses = [layer.kept_mass.mean for layer in result.attention if layer.kept_mass]
        kept = f", mean kept mass {sum(masses) / len(masses):.3f}" if masses else ""
        lines.append(
            f"Global attention: {result.attention[0].policy}, mean density "
            f"{sum(densities) / len(densities):.2f}{kept} over {len(densities)} layers."
        )
    lines += [f"Note: {note}" for note in result.notes]
    if shows_next:
        command = result.folder.train_command(parser=parser)
        lines += [f"Scene: {result.folder.root}", f"Next: {command}"]
        if result.folder.undistorted is not None:
            lines.append(f"Without lens distortion: {result.folder.undistorted}")
    for line in lines:
        out.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _parser_for(num_images: int) -> tuple[str, ...]:
    """Return the dataparser options that training needs if the scene has no split of its own.

    By default nerfstudio keeps every tenth image for evaluation, fails without any, and divides by
    the extent of the cameras.
    """
    if num_images == 1:
        return ("nerfstudio-data", "--eval-mode", "all", "--auto-scale-poses", "False")
    if num_images < _MIN_IMAGES_FOR_DEFAULT_SPLIT:
        return ("nerfstudio-data", "--eval-mode", "interval")
    return ()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
