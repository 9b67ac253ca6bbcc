# SPDX-License-Identifier: Apache-2.0
"""Which photo an entry of a file of intrinsics, poses or depth belongs to: told by names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..evaluate.matching import AmbiguousNamesError, match_names
from ..frames.masks import name_some
from ..frames.types import Frame

_NUM_SHOWN = 3


def match_photos(
    frames: Sequence[Frame], names: Sequence[str], what: str, where: object
) -> tuple[tuple[int, int], ...]:
    """Match photos with the entries of a source.

    Args:
        frames: The photos.
        names: Names of the entries, with or without folders and suffix.
        what: What the entries are, with an article, for messages.
        where: The source, for messages.

    Returns:
        Pairs of a photo's index and an entry's.

    Raises:
        ValueError: If no name fits, or one stands for several entries.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{what} in {where} must be of different photos, got "
            f"{name_some(repeated[:_NUM_SHOWN])} more than once."
        )
    own = [frame.name for frame in frames]
    try:
        return match_names(own, names).pairs
    except AmbiguousNamesError as error:
        raise ValueError(
            f"{what} in {where} do not tell which photo each is of, because several names differ "
            f"by folder or suffix alone, such as {name_some(names[:_NUM_SHOWN])}; use the names of "
            "the photos, sub-folders included."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{what} in {where} are of other photos: they have names such as "
            f"{name_some(names[:_NUM_SHOWN])}, the photos are {name_some(own[:_NUM_SHOWN])}."
        ) from error
