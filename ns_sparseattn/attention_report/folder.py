# SPDX-License-Identifier: Apache-2.0
"""The folder of a report: one JSON file and its pictures, renamed into place when complete."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..attention import BlockMap
from ..export.json_file import to_plain, write_json
from ..export.output import check_output
from ..export.staging import remove_leftovers, staged_folder
from ..options import ExportOptions
from .pictures import draw_block_maps, draw_heads, draw_list_lengths, draw_times
from .report import Report

REPORT_NAME = "attention-report.json"
_FORMAT = "ns-sparseattn attention report"
_FORMAT_VERSION = 1
_RESERVED = ("format", "format_version", "pictures", "layers")


def check_report_folder(output_dir: Path, data: Path, *, overwrite: bool) -> Path:
    """Check that a report may be written, before any work is done.

    Args:
        output_dir: Folder of the report.
        data: The photos, which must not lie in it, nor it among them.
        overwrite: Whether an existing report may be replaced.

    Returns:
        The folder as an absolute path without symbolic links.

    Raises:
        ValueError: If it may not be written; the message says why.
    """
    target = Path(os.path.realpath(output_dir))
    if not target.is_dir() or not any(target.iterdir()):
        return check_output(output_dir, data, ExportOptions())
    entries = {entry.name for entry in target.iterdir()}
    foreign = sorted(entries - _own_files(target))
    if foreign:
        raise ValueError(
            f"`output_dir` must be empty or a report written by this tool, got {output_dir} with "
            f"{', '.join(foreign[:5])} in it: choose another folder."
        )
    if not overwrite:
        raise ValueError(
            f"`output_dir` already holds a report, got {output_dir}: add --overwrite to replace it."
        )
    remove_leftovers(target)
    return target


def write_report(
    report: Report,
    target: Path,
    *,
    facts: Mapping[str, object],
    map_of: tuple[int, BlockMap] | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a report: ``attention-report.json`` and PNG pictures.

    Args:
        report: What to write.
        target: Folder to make, as `check_report_folder` returned it.
        facts: What else the JSON file says about the run.
        map_of: Layer whose block maps are drawn, and its map; none to draw no map.
        overwrite: Whether an existing report is replaced.

    Returns:
        Names of the files.

    Raises:
        ValueError: If `facts` has entries that are written here.
        OSError: If the folder cannot be written; it is then what it was before.
    """
    reserved = sorted(set(_RESERVED) & set(facts))
    if reserved:
        raise ValueError(
            f"`facts` must not use the entries {', '.join(_RESERVED)}, got {reserved}."
        )
    plain = to_plain(facts)
    with staged_folder(target, may_replace=overwrite) as folder:
        draw_heads(report, folder / "heads.png")
        draw_times(report, folder / "times.png")
        if any(layer.lists is not None for layer in report.layers):
            draw_list_lengths(report, folder / "list-lengths.png")
        if map_of is not None:
            index, block_map = map_of
            layer = next(layer for layer in report.layers if layer.layer == index)
            draw_block_maps(layer, block_map, folder / f"block-maps-layer-{index:02d}.png")
        pictures = sorted(path.name for path in folder.iterdir())
        content = {
            **plain,
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "pictures": pictures,
            "layers": report.layers,
        }
        write_json(folder / REPORT_NAME, content)
    return (REPORT_NAME, *pictures)


def _own_files(folder: Path) -> set[str]:
    """Return the names of the files that a report in a folder lists as its own."""
    try:
        content = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return set()
    return {REPORT_NAME, *map(str, content.get("pictures", ()))}
