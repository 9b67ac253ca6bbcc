# SPDX-License-Identifier: Apache-2.0
"""Scenes that the dataparser made, kept by content: same input, same scene, computed once.

The key covers the names and bytes of the photos and masks that are used, the weights, every option
that changes the result, and the package's version. One process at a time fills a scene, since
multi-GPU training parses in every rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .. import __version__
from ..conditioning import KnownOptions
from ..errors import ReconstructionError
from ..export import is_scene_folder
from ..frames.discover import find_photos, list_files
from ..frames.masks import match_masks
from ..models.checkpoint import sha256_of
from ..models.loading import local_file
from ..models.registry import find_model
from ..pipeline import ProcessOptions
from ..refine import RefineOptions

_logger = logging.getLogger(__name__)

_MODEL_FILES = ("cameras", "images", "frames", "rigs")
"""Files of a COLMAP model that hold poses and intrinsics, without suffix."""

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
            folder if that cannot be written.
        is_evaluation: The caller evaluates a trained model. A scene that had to be made again in
            the same process is then an error: its frame may differ from the one that the model was
            trained in.

    Returns:
        The folder.

    Raises:
        ReconstructionError: If the pipeline fails, or as said for `is_evaluation`.
        ValueError: If the photos or options are unusable.
    """
    data = options.data.resolve()
    if not data.is_dir():
        raise ValueError(f"`data` must be a folder of photos, got {options.data}.")
    roots = _cache_roots(data, cache_dir)
    root = next(filter(_is_writable, roots), None)
    if root is None:
        raise ReconstructionError(
            f"The scene cannot be kept: no permission to write in {roots[-1]}. Set `cache_dir` to "
            "a folder that can be written."
        )
    key = _key(dataclasses.replace(options, data=data), root / "hashes.json")
    # What was made before a folder became read-only, or before it could be written, still counts.
    scene_dir = next((path / key for path in roots if is_scene_folder(path / key)), root / key)
    if not is_scene_folder(scene_dir):
        with _locked(root / f"{key}.lock"):
            if not is_scene_folder(scene_dir):
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


def _cache_roots(data: Path, cache_dir: Path | None) -> list[Path]:
    """Return the folders that scenes may be in, the preferred one first; make them if possible."""
    if cache_dir is not None:
        roots = [cache_dir.expanduser().resolve()]
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        roots = [data / CACHE_FOLDER, home / "ns_sparseattn" / "scenes"]
    for root in roots:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
        if _is_writable(root):
            break
    return roots


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _key(options: ProcessOptions, index_path: Path) -> str:
    """Return the name of a scene: a digest of version, options, and every file's name and bytes."""
    index = _HashIndex(index_path)
    photos = find_photos(
        options.data, eval_data=options.eval_data, exclude=options.frames.masks
    ).photos
    masks = {} if options.frames.masks is None else match_masks(options.frames.masks, photos)
    entry = find_model(options.model)
    family = entry.family
    source = options.weights.weights or family.named_sets()[1]
    weights = local_file(family, source)
    # Paths are left out: moved photos keep their scene. So is what changes nothing but speed and
    # rounding: a scene that was made on a GPU serves a machine without one.
    settings = (
        __version__,
        options.model,
        dataclasses.replace(entry.sized(options.frames, source), masks=None),
        options.scene,
        dataclasses.replace(options.export, overwrite=False),
        options.attention,
        options.inference.precision,
        options.weights.commercial,
        options.reference,
        _refinement(options.refine),
        _known_content(options.known, index),
        source if weights is None else index.sha256(weights),
    )
    digest = hashlib.sha256(repr(settings).encode())
    for photo in photos:
        mask = masks.get(photo.name)
        entry = (photo.name, index.sha256(photo.path), None if mask is None else index.sha256(mask))
        digest.update(repr(entry).encode())
    index.save()
    return digest.hexdigest()[:24]


def _refinement(options: RefineOptions) -> RefineOptions | None:
    """Return the options of refinement without those that change no scene."""
    if options.refine == "none":
        return None
    match = dataclasses.replace(options.match, match_threads=0, match_device="auto")
    return dataclasses.replace(options, accept_untrusted=False, match=match)


def _known_content(known: KnownOptions, index: _HashIndex) -> tuple[object, ...]:
    """Return what identifies the files of what is known, and how they are read."""
    content: list[object] = [known.metric_poses, known.depth_unit]
    for source in (known.intrinsics, known.poses, known.depth):
        path = None if source is None else Path(source)
        if path is None or not path.exists():
            content.append(source)
        elif path.is_file():
            # Of a COLMAP model any file may be named, and all are read.
            model = [path.with_name(f"{name}{path.suffix}") for name in _MODEL_FILES]
            files = [file for file in model if file.is_file()] if path in model else [path]
            content += [index.sha256(file) for file in files]
        else:
            content += [(file.name, index.sha256(file.path)) for file in list_files(path)]
    return tuple(content)


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
        """Return the hex digest of a file.

        Raises:
            ValueError: If the file cannot be read.
        """
        try:
            status = path.stat()
            facts = [status.st_size, status.st_mtime_ns]
            entry = self._known.get(str(path))
            if entry is None or entry[:2] != facts:
                entry = [*facts, sha256_of(path)]
                self._known[str(path)] = entry
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ValueError(f"Cannot read {path}: {reason}.") from error
        return str(entry[2])

    def save(self) -> None:
        """Write the index, whole or not at all; without it the next run merely hashes again."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._known))
        os.replace(temporary, self._path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock for the block; say so if another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        _logger.warning("Another process is making this scene; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _process_apart(options: ProcessOptions) -> None:
    """Run the pipeline in a process of its own, which leaves nothing behind in the trainer.

    Raises:
        ReconstructionError: If it fails, with the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, failure = Path(folder, "job"), Path(folder, "failure")
        job.write_bytes(pickle.dumps(options))
        code = subprocess.run(
            [sys.executable, "-m", f"{__package__}.worker", str(job), str(failure)],
            # The current folder is no place for modules.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            check=False,
        ).returncode
        if code == 0:
            return
        reason = failure.read_text(encoding="utf-8") if failure.is_file() else _reason_of(code)
    raise ReconstructionError(f"No scene could be made of {options.data}: {reason}")


def _reason_of(exit_code: int) -> str:
    """Say why the pipeline's process ended without a word."""
    if exit_code == -signal.SIGKILL:
        return (
            "its process was killed, most likely for lack of memory; use fewer photos or a smaller "
            "`long_side`."
        )
    return f"its process ended with exit code {exit_code}; it may have said why above."
