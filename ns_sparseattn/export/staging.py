# SPDX-License-Identifier: Apache-2.0
"""A folder that appears whole or not at all.

Content is written into a hidden sibling of the target (``.NAME.tmp-PID-RANDOM``) and renamed into
place. The sibling is locked (``flock``) while its writer lives; the lock dies with the process,
however it ends, and so the next run knows a leftover from work in progress. A folder that is
replaced is renamed aside (``.NAME.old-PID-RANDOM``) first and deleted last; if a run dies between
the two renames, the next one puts it back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def staged_folder(target: Path, *, may_replace: bool) -> Iterator[Path]:
    """Give a folder to fill, and rename it to the target when the block ends without an exception.

    Whatever goes wrong, the target is afterwards what it was before, and nothing else is left
    behind. Call `remove_leftovers` before.

    Args:
        target: Absolute path, without symbolic links, of the folder to make. Missing parents are
            made.
        may_replace: Whether a target that exists and is not empty is replaced.

    Yields:
        The folder to fill, on the same file system.

    Raises:
        OSError: If folders cannot be made or renamed, or the target may not be replaced.
    """
    made_parents = _make_parents(target.parent)
    try:
        with _locked_sibling(target, "tmp") as staging:
            try:
                yield staging
                sync_tree(staging)
                _rename_into_place(staging, target, may_replace)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
    except BaseException:
        for parent in made_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def remove_leftovers(target: Path) -> None:
    """Remove what dead runs left beside a target; put back a folder that one had renamed aside."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(tmp|old)-\d+-[0-9a-f]{8}")
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        with _try_lock(path) as is_locked:
            if not is_locked:
                _log.info("%s belongs to a run that may still be alive and is left alone.", path)
            elif match[1] == "old" and not target.exists():
                _log.warning("Putting %s back, which an interrupted run had renamed aside.", target)
                os.rename(path, target)
            else:
                _log.info("Removing %s, which an interrupted run left behind.", path)
                shutil.rmtree(path, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flush a folder's files to the disk, but for hard links to files from elsewhere."""
    names_of: dict[int, list[str]] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            names_of.setdefault(os.stat(path).st_ino, []).append(path)
        _sync(root)
    for paths in names_of.values():
        if os.stat(paths[0]).st_nlink == len(paths):
            _sync(paths[0])


def _rename_into_place(staging: Path, target: Path, may_replace: bool) -> None:
    """Rename the staging folder to the target; there is a complete folder at every moment."""
    if not target.exists():
        os.rename(staging, target)
    elif not any(target.iterdir()):
        # Windows does not rename over an empty folder.
        target.rmdir()
        os.rename(staging, target)
    elif not may_replace:
        raise FileExistsError(f"{target} was filled by somebody else in the meantime")
    else:
        with _try_lock(target):
            aside = _sibling(target, "old")
            os.rename(target, aside)
            try:
                os.rename(staging, target)
            except BaseException:
                os.rename(aside, target)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def _locked_sibling(target: Path, kind: str) -> Iterator[Path]:
    """Make a sibling folder and hold its lock, where the file system has locks."""
    while True:
        path = _sibling(target, kind)
        try:
            path.mkdir()
            with _try_lock(path):
                # Another run may have taken the new folder for a leftover before it was locked.
                if path.exists():
                    yield path
                    return
        except BaseException:
            # An interrupt may come before the caller has the folder, and nobody else would remove
            # it. One that holds anything is the caller's.
            with contextlib.suppress(OSError):
                path.rmdir()
            raise


@contextlib.contextmanager
def _try_lock(folder: Path) -> Iterator[bool]:
    """Lock a folder for the block if that is possible at once; yield whether it was."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:
            # Taken, or a file system without locks.
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were missing, the deepest first."""
    missing = []
    current = folder
    while not current.exists():
        missing.append(current)
        current = current.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _sync(path: str | Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
