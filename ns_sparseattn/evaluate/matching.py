# SPDX-License-Identifier: Apache-2.0
"""Which image of one model is which image of another: by name, or by time.

The names of two models rarely agree to the letter: folders are added or dropped, and suffixes
change when photos are converted. Several rules are tried, the strictest first, and the one that
pairs the most images is used for all of them. A rule under which two images of one model would have
the same name, and the other model has that name, is out: nothing is guessed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_TIME_DIFFERENCE_S = 0.02
"""Default of ``--max_difference`` in ``associate.py`` of the TUM RGB-D benchmark."""

_MAX_NAMED = 3
"""Names shown in an error."""


class AmbiguousNamesError(ValueError):
    """Names would match, but several images of one model share one."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Pairs of images that are the same."""

    pairs: tuple[tuple[int, int], ...]
    """Index in the first model, index in the second, in the order of the second."""
    rule: str
    """How they were matched, a phrase."""


def _flat(name: str) -> str:
    return name.replace("/", "__")


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("whole name", lambda name: name),
    ("name without suffix", lambda name: PurePosixPath(name).with_suffix("").as_posix()),
    # The scene folder's second names of photos in sub-folders.
    ("name with folders joined by __", _flat),
    ("file name without folders", lambda name: PurePosixPath(name).name),
    ("file name without folders and suffix", lambda name: PurePosixPath(name).stem),
)


def match_names(first: Sequence[str], second: Sequence[str]) -> Match:
    """Match images by their names.

    Args:
        first: Names of one model, unique.
        second: Names of the other, unique.

    Returns:
        The pairs, and the rule that found them.

    Raises:
        AmbiguousNamesError: If only such rules pair images that are ambiguous.
        ValueError: If no rule pairs any image.

    Example:
        >>> match_names(["b.png", "a.png"], ["images/a.jpg", "images/b.jpg"]).pairs
        ((1, 0), (0, 1))
    """
    best: Match | None = None
    ambiguous: tuple[str, list[str]] | None = None
    for rule, key_of in _RULES:
        places, second_places = _by_key(first, key_of), _by_key(second, key_of)
        common = [key for key in second_places if key in places]
        repeated = [key for key in common if len(places[key]) + len(second_places[key]) > 2]
        if repeated:
            ambiguous = ambiguous or (rule, repeated)
            continue
        if common and (best is None or len(common) > len(best.pairs)):
            pairs = tuple((places[key][0], second_places[key][0]) for key in common)
            best = Match(pairs=pairs, rule=rule)
    if best is not None:
        return best
    if ambiguous is not None:
        rule, keys = ambiguous
        raise AmbiguousNamesError(
            f"Images cannot be matched by {rule}: {_some(keys)} stands for several images of one "
            "model. Give both models the same names, sub-folders included."
        )
    raise ValueError(
        f"The models have no image in common: one has {_some(first)}, the other {_some(second)}. "
        "Images are matched by name, with or without folders and suffix."
    )


def match_times(
    names: Sequence[str],
    times: Sequence[str],
    *,
    max_difference_s: float = MAX_TIME_DIFFERENCE_S,
) -> Match:
    """Match images that are named by time stamps with poses of a trajectory.

    The nearest go first, and each is used once: as ``associate.py`` of the TUM RGB-D benchmark.

    Args:
        names: Image names whose stem is the time in seconds.
        times: Time stamps of the trajectory, seconds.
        max_difference_s: Largest difference.

    Returns:
        Pairs of an image and a pose, in the order of the images.

    Raises:
        ValueError: If the names are no time stamps, or none is near a pose.

    Example:
        >>> match_times(["rgb/1.50.png", "rgb/9.png"], ["1.49", "1.505"]).pairs
        ((0, 1),)
    """
    stamps = [_time_of(name) for name in names]
    order = sorted(range(len(times)), key=lambda index: float(times[index]))
    in_order = [float(times[index]) for index in order]
    near = []
    for image, stamp in enumerate(stamps):
        first = bisect_left(in_order, stamp - max_difference_s)
        last = bisect_right(in_order, stamp + max_difference_s)
        near += [
            (abs(in_order[place] - stamp), image, order[place]) for place in range(first, last)
        ]
    taken_images: dict[int, int] = {}
    taken_poses: set[int] = set()
    for _, image, pose in sorted(near):
        if image not in taken_images and pose not in taken_poses:
            taken_images[image] = pose
            taken_poses.add(pose)
    if not taken_images:
        raise ValueError(
            f"No image is within {max_difference_s:g} s of a pose of the trajectory: images begin "
            f"at {min(stamps):.6f} s and end at {max(stamps):.6f} s, poses at {in_order[0]:.6f} s "
            f"and {in_order[-1]:.6f} s."
        )
    return Match(
        pairs=tuple(sorted(taken_images.items())),
        rule=f"time, within {max_difference_s:g} s",
    )


def normalise(name: str) -> str:
    """Return a name with forward slashes and without a leading ``./``."""
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _by_key(names: Sequence[str], key_of: Callable[[str], str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(key_of(normalise(name)), []).append(index)
    return places


def _time_of(name: str) -> float:
    path = PurePosixPath(normalise(name))
    # The whole first: a bare time stamp such as 1311868169.16 looks as if it had a suffix.
    for text in (path.name, path.stem):
        try:
            time_s = float(text)
        except ValueError:
            continue
        if math.isfinite(time_s):
            return time_s
    raise ValueError(
        "Images must be named by their time in seconds to be matched with a trajectory, such as "
        f"1311868169.163.png, got {name}."
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest
