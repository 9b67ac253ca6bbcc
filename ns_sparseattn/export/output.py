# SPDX-License-Identifier: Apache-2.0
"""Where a scene may be written: never over photos, nor over a folder of somebody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..frames.types import Frames
from ..options import ExportOptions
from .staging import remove_leftovers

MANIFEST_NAME = "manifest.json"

SCENE_FORMAT = "ns_sparseattn scene"
"""Value of ``format`` in the manifest: the mark of a complete scene folder."""

SCENE_FORMAT_VERSION = 1
"""Value of ``format_version``; raised when the layout changes."""

_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "__pycache__"})
"""Files that file browsers leave in any folder."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a scene folder, or ``None`` if it is no complete scene of ours."""
    try:
        content = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(content, dict) and content.get("format") == SCENE_FORMAT
    return content if is_ours else None


def is_scene_folder(path: Path) -> bool:
    """Say whether a folder is a complete scene that this tool wrote.

    Args:
        path: Any path.

    Returns:
        True if its manifest says so; the manifest is written last.

    Example:
        >>> is_scene_folder(Path("/nowhere"))
        False
    """
    return read_manifest(path) is not None


def check_output(
    output_dir: Path, data: Path | Sequence[Path] | Frames, options: ExportOptions
) -> Path:
    """Check that a scene may be written, before anything is computed.

    Leftovers of interrupted runs beside the output are removed on the way.

    Args:
        output_dir: Folder of the scene; need not exist.
        data: The folder of photos, the photos, or the loaded frames. A folder of photos may hold
            the output only below a folder whose name starts with a dot, where no photos are looked
            for.
        options: Whether an existing scene may be replaced.

    Returns:
        The output folder as an absolute path without symbolic links.

    Raises:
        ValueError: If the output and the photos overlap, the output exists and may not be replaced,
            or its parent cannot be written to.

    Example:
        >>> check_output(Path("photos/scene"), Path("photos"), ExportOptions())
        Traceback (most recent call last):
        ...
        ValueError: `output_dir` must not lie in the folder of photos photos, got photos/scene:
            choose one outside.
    """
    target = Path(os.path.realpath(output_dir))
    _check_overlap(output_dir, target, data)
    if target.exists() and not target.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {output_dir}.")
    if os.path.ismount(target):
        raise ValueError(
            f"`output_dir` must not be a mount point, since a scene is renamed into "
            f"place: use a folder inside it, such as {output_dir / 'scene'}."
        )
    if _is_within(Path(os.path.realpath(Path.cwd())), target):
        raise ValueError(
            f"`output_dir` must not be or hold the current folder, got {output_dir}: "
            "name a folder, such as scene."
        )
    ancestor = next(parent for parent in target.parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise ValueError(
            f"`output_dir` must be writable, got {output_dir}: no permission to write "
            f"in {ancestor}."
        )
    remove_leftovers(target)
    if target.exists():
        _check_replaceable(output_dir, target, options)
    return target


def _check_replaceable(output_dir: Path, target: Path, options: ExportOptions) -> None:
    entries = {entry.name for entry in target.iterdir()}
    if not entries:
        return
    manifest = read_manifest(target)
    if manifest is None:
        raise ValueError(
            f"`output_dir` must be empty or a scene written by this tool, got {output_dir} "
            "with other files in it: choose another folder."
        )
    if not options.overwrite:
        raise ValueError(
            f"`output_dir` already holds a scene, got {output_dir}: add --overwrite to replace it."
        )
    foreign = sorted(entries - set(manifest.get("contents", ())) - _LITTER)
    if foreign:
        raise ValueError(
            f"`output_dir` {output_dir} holds {', '.join(foreign[:5])}, which this tool did "
            "not write and would delete: move that away or choose another folder."
        )


def _check_overlap(output_dir: Path, target: Path, data: Path | Sequence[Path] | Frames) -> None:
    if isinstance(data, Path) and not data.is_file():
        source = Path(os.path.realpath(data))
        if source == target:
            raise ValueError(
                f"`output_dir` must not be the folder of photos, got {output_dir} for both."
            )
        if _is_within(source, target):
            raise ValueError(
                f"`output_dir` must not hold the folder of photos {data}, got {output_dir}: "
                "choose another."
            )
        if _is_within(target, source):
            between = target.relative_to(source).parts
            if not any(part.startswith(".") for part in between):
                raise ValueError(
                    f"`output_dir` must not lie in the folder of photos {data}, got "
                    f"{output_dir}: choose one outside."
                )
        return
    for path in _files(data):
        # A photo may be a symbolic link: neither the link nor the file may be lost.
        places = (Path(os.path.realpath(path.parent)) / path.name, Path(os.path.realpath(path)))
        if any(_is_within(place, target) for place in places):
            raise ValueError(
                f"`output_dir` must not hold the photos, got {output_dir} with {path} in it."
            )


def _files(data: Path | Sequence[Path] | Frames) -> Iterable[Path]:
    if isinstance(data, Path):
        return [data]
    if isinstance(data, Frames):
        photos = [frame.path for frame in data.frames]
        masks = [frame.mask_path for frame in data.frames if frame.mask_path is not None]
        return photos + masks
    return data


def _is_within(path: Path, folder: Path) -> bool:
    """Say whether an absolute path is a folder or lies in it."""
    return path == folder or folder in path.parents
