# SPDX-License-Identifier: Apache-2.0
"""Scenes that the dataparser made, kept by content: same input, same scene, computed once.

The key covers the bytes of the photos and masks, every option that changes the result, and the
package's version. One process at a time fills a scene, since multi-GPU training parses in every
rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from filelock import FileLock

from .. import __version__
from ..console import run_process
from ..errors import ReconstructionError
from ..pipeline import ProcessOptions

_logger = logging.getLogger(__name__)

CACHE_FOLDER = ".ns_sparseattn"
"""Name of the cache beside the photos; hidden, so that no loader takes what it holds for photos."""

_made_here: set[Path] = set()
"""Scenes that this process had to compute."""


def cached_scene(
    options: ProcessOptions, *, cache_dir: Path | None = None, is_evaluation: bool = False
) -> Path:
    """Return the scene folder of some photos, and make it first if it is not there.

    Args:
        options: What to process, and how; `output_dir` is ignored.
        cache_dir: Where scenes are kept; by default beside the photos, or in the user's cache
        folder if that cannot
            be written.
        is_evaluation: The caller evaluates a trained model. A scene that had to be made again in
        the same process is
            then an error: its frame may differ from the one that the model was trained in.

    Returns:
        The folder.

    Raises:
        ReconstructionError: If the pipeline fails, or as said for `is_evaluation`.
        ValueError: If the photos or options are unusable.
    """
    data = options.data.resolve()
    if not data.is_dir():
        raise ValueError(f"`data` must be a folder of photos, got {options.data}.")
    root = _cache_root(data, cache_dir)
    scene_dir = root / _key(options, root / "hashes.json")
    with FileLock(root / f"{scene_dir.name}.lock"):
        if not (scene_dir / "manifest.json").is_file():
            _logger.info("No cached scene for %s yet: running the pipeline.", data)
            _process_apart(dataclasses.replace(options, data=data, output_dir=scene_dir))
            _made_here.add(scene_dir)
    if is_evaluation and scene_dir in _made_here:
        raise ReconstructionError(
            f"The scene that this model was trained on is not in {root}, and has been made again "
            f"in {scene_dir.name}. Its coordinates may differ from the trained ones: run the "
            "command again to accept the new scene, or train again."
        )
    return scene_dir


def _cache_root(data: Path, cache_dir: Path | None) -> Path:
    """Create and return the folder of cached scenes: as asked, beside the photos, or the user's."""
    if cache_dir is not None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return cache_dir.resolve()
    beside = data / CACHE_FOLDER
    with contextlib.suppress(OSError):
        beside.mkdir(exist_ok=True)
    if os.access(beside, os.W_OK):
        return beside
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fallback = home / "ns_sparseattn" / "scenes"
    fallback.mkdir(parents=True, exist_ok=True)
    return fallback


def _key(options: ProcessOptions, index_path: Path) -> str:
    """Return the name of a scene: a digest of version, options, and every file's name and bytes."""
    digest = hashlib.sha256(__version__.encode())
    # Paths are left out: a moved folder keeps its scene.
    settings = dataclasses.replace(
        options,
        data=Path(),
        output_dir=Path(),
        frames=dataclasses.replace(options.frames, masks=None),
    )
    digest.update(repr(settings).encode())
    index = _HashIndex(index_path)
    for folder in filter(None, (options.data, options.frames.masks)):
        digest.update(b"folder")
        for path in _files(folder):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(index.sha256(path).encode())
    index.save()
    return digest.hexdigest()[:24]


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder that are not hidden, in a fixed order."""
    found = []
    for directory, sub_folders, names in os.walk(folder):
        sub_folders[:] = [name for name in sub_folders if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return sorted(found)


class _HashIndex:
    """Digests of files by size and modification time, since training parses photos repeatedly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        try:
            self._known = json.loads(path.read_text())
        except (OSError, ValueError):
            # No index, or one that was cut short: everything is hashed again.
            self._known = {}

    def sha256(self, path: Path) -> str:
        """Return the hex digest of a file."""
        status = path.stat()
        entry = self._known.get(str(path))
        if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
            with path.open("rb") as file:
                entry = [status.st_size, status.st_mtime_ns, _sha256_of(file)]
            self._known[str(path)] = entry
        return str(entry[2])

    def save(self) -> None:
        """Write the index, whole or not at all; without it the next run merely hashes again."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._known))
        os.replace(temporary, self._path)


def _sha256_of(file: object) -> str:
    # hashlib.file_digest exists from Python 3.11 on.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()


def _process_apart(options: ProcessOptions) -> None:
    """Run the pipeline in a process of its own, which leaves nothing behind in the trainer."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            is_done = pool.submit(_run, options).result()
        except BrokenProcessPool:
            raise ReconstructionError(
                "The pipeline's process was killed, most likely for lack of memory: use fewer "
                "photos or a smaller `long_side`."
            ) from None
    if not is_done:
        raise ReconstructionError(
            f"No scene could be made of {options.data}; the reason is printed above."
        )


def _run(options: ProcessOptions) -> bool:
    """Run the pipeline in the child, and say whether it succeeded; errors have been shown there."""
    try:
        run_process(options, verbose=False)
    except SystemExit:
        return False
    return True
