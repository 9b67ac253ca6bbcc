# SPDX-License-Identifier: Apache-2.0
"""Find the photos that a path stands for, name them, and put them in natural order."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .types import SkippedFile

PHOTO_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
    }
)
"""Files of a folder that are taken for photos, lower case."""

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".mov",
        ".m4v",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".3gp",
        ".mts",
        ".m2ts",
        ".insv",
        ".360",
    }
)

RAW_SUFFIXES = frozenset(
    {
        ".dng",
        ".cr2",
        ".cr3",
        ".crw",
        ".nef",
        ".nrw",
        ".arw",
        ".srf",
        ".sr2",
        ".orf",
        ".raf",
        ".rw2",
        ".pef",
        ".srw",
        ".3fr",
        ".iiq",
        ".x3f",
        ".raw",
    }
)

# Folders that archivers and storage boxes fill with thumbnails and metadata.
_IGNORED_FOLDERS = frozenset({"__MACOSX", "@eaDir"})


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A file that should be a photo."""

    name: str
    """POSIX path relative to the folder given."""
    path: Path
    is_eval: bool = False
    """Whether it is kept for evaluation."""


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """What a path holds, both in natural order of the names, photos for evaluation last."""

    photos: tuple[PhotoFile, ...]
    skipped: tuple[SkippedFile, ...]


def natural_key(name: str) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """Return a sort key that counts as people do: img2 before img10, folder by folder.

    Case does not matter. The name itself comes last, so that the order of 1.jpg and 01.jpg is
    defined, too.
    """
    # Splitting at digits alternates text and number, so that equal positions hold equal types.
    parts = (re.split("([0-9]+)", part.casefold()) for part in name.split("/"))
    key = tuple(
        tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)) for pieces in parts
    )
    return key, name


def find_photos(
    source: Path | str | Sequence[Path | str],
    *,
    eval_data: Path | str | None = None,
    exclude: Path | None = None,
) -> FoundFiles:
    """Find all photos of a folder (recursively), of a list of files, or of a single file.

    Args:
        source: What the user gave.
        eval_data: Folder or file of the photos to evaluate on. Names then begin with ``train/`` or
            ``eval/``. It may lie in `source`, and is left out there.
        exclude: A folder below `source` to leave out, such as that of the masks.

    Returns:
        At least one photo. Hidden files and folders are not mentioned; all other files that are no
        photos are listed.

    Raises:
        ValueError: If there is no photo, or one is to be trained and evaluated on, in one sentence.
    """
    left_out = [] if exclude is None else [exclude]
    if eval_data is None:
        return _find(source, left_out)
    sources = [Path(source)] if isinstance(source, (str, Path)) else []
    if any(os.path.realpath(path) == os.path.realpath(eval_data) for path in sources):
        raise ValueError(f"`eval_data` must not be the photos to train on, got {eval_data} twice.")
    train = _find(source, [*left_out, Path(eval_data)])
    held_out = _find(eval_data, [*left_out, *sources])
    train_paths = {os.path.realpath(photo.path) for photo in train.photos}
    for photo in held_out.photos:
        if os.path.realpath(photo.path) in train_paths:
            raise ValueError(f"{photo.path} must be trained or evaluated on, not both.")
    return FoundFiles(
        photos=(
            *(replace(photo, name=f"train/{photo.name}") for photo in train.photos),
            *(replace(photo, name=f"eval/{photo.name}", is_eval=True) for photo in held_out.photos),
        ),
        skipped=(*train.skipped, *held_out.skipped),
    )


def list_files(folder: Path, *, exclude: Collection[Path] = ()) -> list[PhotoFile]:
    """List all visible files below a folder in natural order; links are followed, each folder once.

    Raises:
        ValueError: If a folder cannot be listed.
    """
    files: list[PhotoFile] = []
    visited: set[tuple[int, int]] = set()
    excluded = {_identity(path) for path in exclude if path.is_dir()}

    def visit(current: Path, prefix: str) -> None:
        identity = _identity(current)
        if identity in excluded or identity in visited:
            return
        visited.add(identity)
        try:
            entries = sorted(os.listdir(current), key=natural_key)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ValueError(f"The folder {current} cannot be listed: {reason}.") from error
        for entry in entries:
            path = current / entry
            if entry.startswith("."):
                continue
            if not path.is_dir():
                files.append(PhotoFile(name=prefix + entry, path=path))
            elif entry not in _IGNORED_FOLDERS:
                visit(path, f"{prefix}{entry}/")

    visit(folder, "")
    return sorted(files, key=lambda file: natural_key(file.name))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _find(source: Path | str | Sequence[Path | str], exclude: Collection[Path]) -> FoundFiles:
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _find_in_folder(path, exclude) if path.is_dir() else _find_in_list([path])
    paths = [Path(path) for path in source]
    if not paths:
        raise ValueError("The list of photos is empty.")
    return _find_in_list(paths)


def _find_in_folder(folder: Path, exclude: Collection[Path]) -> FoundFiles:
    if any(path.is_dir() and path.samefile(folder) for path in exclude):
        raise ValueError(f"The folder {folder} must not hold photos and their masks alike.")
    files = list_files(folder, exclude=exclude)
    photos = [file for file in files if file.path.suffix.lower() in PHOTO_SUFFIXES]
    others = [file for file in files if file.path.suffix.lower() not in PHOTO_SUFFIXES]
    if not photos:
        raise ValueError(_why_no_photos(folder, [file.path for file in others]))
    _check_names(photos)
    skipped = (SkippedFile(path=file.path, reason=_kind_of(file.path)) for file in others)
    return FoundFiles(photos=tuple(photos), skipped=tuple(skipped))


def _find_in_list(paths: list[Path]) -> FoundFiles:
    for path in paths:
        if path.is_dir():
            raise ValueError(f"A list of photos must name files, got the folder {path}.")
        if not os.path.lexists(path):
            raise ValueError(f"There is no file or folder {path}.")
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(_video_sentence(path))
        if path.suffix.lower() in RAW_SUFFIXES:
            raise ValueError(f"{path} is a camera raw file; develop it to JPEG, PNG or TIFF first.")
    absolute = [Path(os.path.abspath(path)) for path in paths]
    parent = Path(os.path.commonpath([path.parent for path in absolute]))
    photos = [
        PhotoFile(name=full.relative_to(parent).as_posix(), path=path)
        for full, path in zip(absolute, paths, strict=True)
    ]
    photos.sort(key=lambda photo: natural_key(photo.name))
    for before, after in zip(photos, photos[1:], strict=False):
        if before.name == after.name:
            raise ValueError(f"A list of photos must name each file once, got {after.path} twice.")
    _check_names(photos)
    return FoundFiles(photos=tuple(photos), skipped=())


def _check_names(photos: list[PhotoFile]) -> None:
    """Refuse names that no text file can hold; the scene lists its photos by name."""
    for photo in photos:
        try:
            photo.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Names of photos must be valid UTF-8, got {os.fsencode(photo.path)!r}; "
                "rename the file."
            ) from error


def _kind_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "a video"
    if suffix in RAW_SUFFIXES:
        return "a camera raw file; develop it to JPEG, PNG or TIFF to use it"
    return "not a photo"


def _why_no_photos(folder: Path, others: list[Path]) -> str:
    if not others:
        return f"The folder {folder} holds no photos: it is empty."
    videos = [path for path in others if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        return f"The folder {folder} holds no photos. {_video_sentence(videos[0])}"
    if any(path.suffix.lower() in RAW_SUFFIXES for path in others):
        return (
            f"The folder {folder} holds camera raw files (such as {others[0].name}) and no other "
            "photos; develop them to JPEG, PNG or TIFF first."
        )
    files = "1 other file" if len(others) == 1 else f"{len(others)} other files"
    example = others[0].name if len(others) == 1 else f"such as {others[0].name}"
    return f"The folder {folder} holds no photos, only {files} ({example})."


def _video_sentence(path: Path) -> str:
    return (
        f"{path} is a video, and video input is not supported yet: extract its frames first, for "
        f"example with `ffmpeg -i {path.name} -vf fps=2 imgs/%05d.jpg`, and give their folder."
    )
