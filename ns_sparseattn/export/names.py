# SPDX-License-Identifier: Apache-2.0
"""Which file names the photos of a scene get.

A photo keeps its name, sub-folder included, wherever it can. Three things force another:

* An upright copy may need another suffix (``a.heic`` becomes ``a.png``).
* Trainers look for the mask of ``a.jpg`` and of ``a.webp`` alike in ``a.png``, so with masks two
  names may not differ in their suffix alone.
* nerfstudio's ``nerfstudio-data`` parser drops sub-folders when it looks for smaller copies:
  ``images_2/0.jpg`` would serve both ``left/0.jpg`` and ``right/0.jpg``. Photos in sub-folders
  therefore get a second, flat name (``left__0.jpg``), a hard link in every ``images`` folder, and
  ``transforms.json`` uses that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

FLAT_SEPARATOR = "__"
"""Stands for the slash in a flat name."""


@dataclass(frozen=True, kw_only=True)
class PhotoNames:
    """The names of one photo in a scene folder, relative to ``images`` or ``masks``."""

    image: str
    """Path below ``images``, as in the COLMAP model."""
    flat_image: str
    """Path without a sub-folder, as in ``transforms.json``; often the same as `image`."""

    @property
    def mask(self) -> str:
        """Path below ``masks``."""
        return mask_name(self.image)

    @property
    def flat_mask(self) -> str:
        """Path below ``masks`` without a sub-folder."""
        return mask_name(self.flat_image)


def mask_name(image: str) -> str:
    """Return the name that trainers look for beside ``masks`` (``a/b.jpg`` becomes ``a/b.png``)."""
    return PurePosixPath(image).with_suffix(".png").as_posix()


def plan_names(
    sources: Sequence[str],
    suffixes: Sequence[str | None],
    *,
    has_masks: bool,
) -> tuple[PhotoNames, ...]:
    """Choose a name for every photo; the same input gives the same names.

    Args:
        sources: POSIX names of the photos, unique.
        suffixes: Suffix that each written file must have, with its dot, or ``None`` to keep its
            own.
        has_masks: Whether masks are written.

    Returns:
        One entry per photo, in the same order.

    Raises:
        ValueError: If a name is not valid UTF-8, which neither COLMAP nor JSON can hold.
    """
    for source in sources:
        try:
            source.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"Photo names must be valid UTF-8, got {source!a}: rename the file."
            ) from None
    taken = _Taken(has_masks)
    images: dict[int, str] = {}
    # Photos that keep their name come first, so that none has to make way for a copy.
    for is_renamed in (False, True):
        for index, (source, suffix) in enumerate(zip(sources, suffixes, strict=True)):
            wanted = (
                source if suffix is None else PurePosixPath(source).with_suffix(suffix).as_posix()
            )
            if (wanted != source) == is_renamed:
                images[index] = taken.claim(wanted, source)
    flat: dict[int, str] = {}
    for index, image in sorted(images.items()):
        is_flat = "/" not in image
        flat[index] = (
            image if is_flat else taken.claim(image.replace("/", FLAT_SEPARATOR), sources[index])
        )
    return tuple(
        PhotoNames(image=images[index], flat_image=flat[index]) for index in range(len(sources))
    )


class _Taken:
    """Names given so far."""

    def __init__(self, has_masks: bool) -> None:
        self._has_masks = has_masks
        self._keys: set[str] = set()

    def claim(self, wanted: str, source: str) -> str:
        """Return the wanted name, or one with the source's suffix and a number in its stem."""
        path = PurePosixPath(wanted)
        suffix_word = PurePosixPath(source).suffix.lstrip(".").lower() or "photo"
        name, number = wanted, 1
        while self._key(name) in self._keys:
            extra = suffix_word if number == 1 else f"{suffix_word}_{number}"
            name = path.with_name(f"{path.stem}_{extra}{path.suffix}").as_posix()
            number += 1
        self._keys.add(self._key(name))
        return name

    def _key(self, name: str) -> str:
        return mask_name(name) if self._has_masks else name
