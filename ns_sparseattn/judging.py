# SPDX-License-Identifier: Apache-2.0
"""The commands ``ns-sparseattn evaluate`` and ``ns-sparseattn compare``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from . import __version__
from .console import set_up_logging, user_errors
from .evaluate import compare, evaluate, print_comparison, print_evaluation, read_poses
from .evaluate.matching import MAX_TIME_DIFFERENCE_S
from .export.json_file import to_plain
from .frames.discover import find_photos
from .options import check_range


@dataclass(frozen=True, kw_only=True)
class _JudgingOptions:
    """What both commands share."""

    json: Path | None = None
    """Write all figures to this file as JSON; - writes them to standard output instead of the
    table."""
    max_time_difference: float = MAX_TIME_DIFFERENCE_S
    """Largest difference between the time in an image's name and that of a trajectory's pose,
    seconds. As in associate.py of the TUM RGB-D benchmark."""
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def __post_init__(self) -> None:
        check_range("max_time_difference", self.max_time_difference, 0.0, 1e6, unit=" s")


@dataclass(frozen=True, kw_only=True)
class Evaluate(_JudgingOptions):
    """Judge a scene's cameras by a reference: relative poses, trajectory, focal length, pixels.

    Both may be a scene folder, a COLMAP model (ETH3D's are such), a transforms.json, a TUM
    trajectory, a camera file of RealEstate10K, a log of Tanks and Temples, or annotations of Co3D.
    """

    scene: tyro.conf.Positional[Path]
    """The scene to judge."""
    reference: Path
    """What is taken for the truth."""
    photos: Path | None = None
    """Folder of the photos that were to be posed, if the reference holds more; those without a pose
    count as failures."""
    sequence: str | None = None
    """Name of the reference's sequence, if its file holds several (Co3D)."""

    def main(self) -> None:
        """Judge, and print or write the figures."""
        with user_errors(verbose=self.verbose):
            set_up_logging(verbose=self.verbose)
            photos = self.photos
            found = None if photos is None else find_photos(photos).photos
            evaluation = evaluate(
                read_poses(self.scene),
                read_poses(self.reference, sequence=self.sequence),
                photos=None if found is None else [photo.name for photo in found],
                max_time_difference_s=self.max_time_difference,
            )
            if _write_json(self.json, "evaluation", evaluation):
                print_evaluation(evaluation, Console(file=sys.stdout))


@dataclass(frozen=True, kw_only=True)
class Compare(_JudgingOptions):
    """Show two scenes of the same photos side by side, and how far their cameras are apart."""

    first: tyro.conf.Positional[Path]
    """A scene folder, COLMAP model, transforms.json or trajectory."""
    second: tyro.conf.Positional[Path]
    """Another one; it is judged by the first over the images that both hold."""

    def main(self) -> None:
        """Compare, and print or write the figures."""
        with user_errors(verbose=self.verbose):
            set_up_logging(verbose=self.verbose)
            comparison = compare(
                read_poses(self.first),
                read_poses(self.second),
                max_time_difference_s=self.max_time_difference,
            )
            if _write_json(self.json, "comparison", comparison):
                print_comparison(comparison, Console(file=sys.stdout))


def _write_json(path: Path | None, kind: str, figures: object) -> bool:
    """Write the figures where asked; return whether a table is wanted as well."""
    if path is None:
        return True
    content = {"format": f"ns_sparseattn {kind}", "version": __version__, **to_plain(figures)}
    text = json.dumps(content, indent=4, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return False
    path.write_text(text, encoding="utf-8", newline="\n")
    return True
