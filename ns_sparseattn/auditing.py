# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn audit``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from . import __version__
from .console import EXIT_UNTRUSTED, set_up_logging, stage_progress, user_errors
from .export.json_file import to_plain
from .refine import Audit, AuditOptions, MatchOptions
from .refine.model import audit_model


@dataclass(frozen=True, kw_only=True)
class AuditScene:
    """Judge any COLMAP model by matches between its photos, without ground truth.

    Exits with code 3 if the scene cannot be trusted.
    """

    scene: tyro.conf.Positional[Path]
    """A scene folder, or the folder of a COLMAP model."""
    images: Path | None = None
    """Folder of the photos, full size; images/ in or above the scene if not given."""
    reference: Path | None = None
    """Another model of the same photos that this one must not contradict, such as a prediction."""
    json: Path | None = None
    """Write all figures to this file as JSON; - writes them to standard output instead of the
    table."""
    accept_untrusted: bool = False
    """Exit with code 0 also if the scene cannot be trusted."""
    match: MatchOptions = field(default_factory=MatchOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)
    verbose: bool = False
    """Show every step, and tracebacks of errors."""

    def main(self) -> None:
        """Judge, print or write the verdicts, and exit by them."""
        with user_errors(verbose=self.verbose):
            set_up_logging(verbose=self.verbose)
            with stage_progress() as progress:
                audit = audit_model(
                    self.scene,
                    photos=self.images,
                    reference=self.reference,
                    match=self.match,
                    options=self.audit,
                    progress=progress,
                )
            self._show(audit)
        if not audit.is_trusted and not self.accept_untrusted:
            raise SystemExit(EXIT_UNTRUSTED)

    def _show(self, audit: Audit) -> None:
        """Print the table, or write JSON."""
        if self.json is None:
            print_audit(audit, Console(file=sys.stdout))
            return
        content = {"version": __version__, "audit": to_plain(audit)}
        text = json.dumps(content, indent=2) + "\n"
        if str(self.json) == "-":
            sys.stdout.write(text)
        else:
            self.json.write_text(text, encoding="utf-8")


def print_audit(audit: Audit, out: Console) -> None:
    """Print one line per image, and the verdict on the scene."""
    table = Table("image", "verdict", "pairs", "matches", "rotation deg", "epipolar px", "group")
    for image in audit.images:
        table.add_row(
            image.name,
            image.verdict,
            str(image.num_pairs),
            str(image.num_matches),
            _number(image.rotation_error_deg),
            _number(image.epipolar_error_px),
            "-" if image.component is None else str(image.component + 1),
        )
    out.print(table)
    num_good = len(audit.indices("good"))
    verdict = "The scene can be trusted" if audit.is_trusted else "The scene cannot be trusted"
    out.print(f"{verdict}: {num_good} of {len(audit.images)} images are good.", highlight=False)
    for reason in audit.reasons:
        out.print(reason, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
