# SPDX-License-Identifier: Apache-2.0
"""Weights that ship with the package; their checksums are compared before they are read."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import sha256_of

FOLDER = Path(__file__).resolve().parents[1] / "weights"
"""Where they lie, with their model cards."""
SUMS = "SHA256SUMS"
"""File of checksums in that folder, as ``sha256sum --check`` reads it."""


def shipped_weights(filename: str, folder: Path = FOLDER) -> Path:
    """Return a weights file of the package.

    Args:
        filename: Its name.
        folder: Where shipped weights lie.

    Raises:
        ValueError: If it is missing or is not the file that was shipped.
    """
    path = folder / filename
    if not path.is_file():
        raise ValueError(
            f"The weights {path.stem} ship with this package, but {path} is missing; install the "
            "package again."
        )
    if sha256_of(path) != _checksums(folder).get(filename):
        raise ValueError(
            f"{path} is not the file that was shipped: its checksum differs from that in "
            f"{folder / SUMS}. Install the package again; weights of your own are named by their "
            "path."
        )
    return path


def write_checksum(path: Path) -> None:
    """Enter a file into the checksums of its folder, in place of an older entry."""
    sums = _checksums(path.parent) | {path.name: sha256_of(path)}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (path.parent / SUMS).write_text("".join(lines), encoding="utf-8")


def _checksums(folder: Path) -> dict[str, str]:
    """Return the digest of each file that is listed."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
