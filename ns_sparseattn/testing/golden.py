# SPDX-License-Identifier: Apache-2.0
"""Compare models with recorded outputs: ``python -m ns_sparseattn.testing.golden FILE.npz ...``.

A golden file holds inputs and outputs of a published implementation, and in ``config_json`` what is
needed to build the same network. One JSON line per array goes to standard output; what a kind does
not cover is said in the line's ``skipped``. The exit code is 1 if an array is out of tolerance and
2 if a file cannot be used.

Each kind of file is one `GoldenKind` in `KINDS`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .golden_block_mask import BLOCK_MASK, HILBERT
from .golden_block_mask_pi3 import BLOCK_MASK_PI3
from .golden_block_mask_vggt import BLOCK_MASK_VGGT
from .golden_file import Check, GoldenError, GoldenFile, GoldenKind
from .golden_map import MAP_OUTPUTS
from .golden_pi3 import PI3_OUTPUTS
from .golden_units_map import UNITS_MAP
from .golden_units_pi3 import UNITS_PI3
from .golden_units_vggt import UNITS_VGGT
from .golden_vggt import VGGT_OUTPUTS

__all__ = ["KINDS", "GoldenResult", "check_file", "kind_of", "main"]

logger = logging.getLogger(__name__)

KINDS: tuple[GoldenKind, ...] = (
    VGGT_OUTPUTS,
    UNITS_VGGT,
    BLOCK_MASK,
    BLOCK_MASK_VGGT,
    BLOCK_MASK_PI3,
    HILBERT,
    PI3_OUTPUTS,
    UNITS_PI3,
    MAP_OUTPUTS,
    UNITS_MAP,
)
"""Every kind of file that can be checked; the first whose pattern matches the tag is used."""


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """The outcome for one array."""

    file: str
    array: str
    error: float | None
    """Largest difference over the root mean square of the recorded array; ``None`` if skipped."""
    tolerance: float | None
    ok: bool
    skipped: str | None = None
    """Why the array is not covered."""


def kind_of(golden: GoldenFile) -> GoldenKind:
    """Return the kind of a file.

    Raises:
        GoldenError: If it is of no known kind.
    """
    for kind in KINDS:
        if re.match(kind.tag_pattern, golden.tag):
            return kind
    known = ", ".join(kind.name for kind in KINDS)
    raise GoldenError(
        f"{golden.path}: no kind of golden file has the tag {golden.tag!r}; known kinds: {known}."
    )


def check_file(path: Path) -> Iterable[GoldenResult]:
    """Check one file.

    Args:
        path: The ``.npz`` file.

    Yields:
        One result per recorded output.

    Raises:
        GoldenError: If the file cannot be read or is of no known kind.
    """
    golden = GoldenFile.load(path)
    kind = kind_of(golden)
    seen: set[str] = set()
    for check in kind.run(golden):
        seen.add(check.array)
        yield _judge(path, check)
    for array in golden.arrays:
        if array not in seen and not kind.is_input(array):
            yield GoldenResult(
                file=path.name,
                array=array,
                error=None,
                tolerance=None,
                ok=True,
                skipped=kind.why_skipped(array),
            )


def _judge(path: Path, check: Check) -> GoldenResult:
    error = check.error()
    return GoldenResult(
        file=path.name,
        array=check.array,
        error=error,
        tolerance=check.tolerance,
        # NaN compares false.
        ok=error <= check.tolerance,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the files named on the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ns_sparseattn.testing.golden", description=__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    options = parser.parse_args(arguments)
    num_wrong = num_skipped = 0
    for path in options.files:
        try:
            for result in check_file(path):
                row = {key: value for key, value in asdict(result).items() if key != "skipped"}
                if result.skipped is not None:
                    num_skipped += 1
                    row["skipped"] = result.skipped
                num_wrong += not result.ok
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
        except GoldenError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
    if num_skipped:
        sys.stderr.write(f"{num_skipped} arrays are not covered; their lines say why.\n")
    if num_wrong:
        sys.stderr.write(f"{num_wrong} arrays are out of tolerance.\n")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
