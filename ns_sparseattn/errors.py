# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause, and the checks that raise them.

Whatever the caller gave is a ``TypeError`` or ``ValueError`` that names the value and says what to
do. A stage that cannot go on with valid input raises `ReconstructionError`. The command line shows
both without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class ReconstructionError(RuntimeError):
    """A stage cannot go on; the message says which one, why, and what to try."""


class BrokenPhotoError(ValueError):
    """A file that should be a photo cannot be read.

    Args:
        path: The file.
        reason: What is wrong with it, a clause without a full stop.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"Cannot read {path}: {reason}.")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenPhotoError], tuple[Any, ...]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary; ours take two
        # arguments.
        return (BrokenPhotoError, (self.path, self.reason))


class BrokenPhotosError(BrokenPhotoError):
    """Several files that should be photos cannot be read; the message names the first of them.

    Args:
        broken: One error per file, at least two, in the order of the files' names.
        num_photos: Number of files that were tried.
    """

    MAX_NAMED = 10

    def __init__(self, broken: Sequence[BrokenPhotoError], num_photos: int) -> None:
        first = broken[0]
        super().__init__(first.path, first.reason)
        self.broken = tuple(broken)
        self.num_photos = num_photos
        lines = [f"{error.path}: {error.reason}" for error in self.broken[: self.MAX_NAMED]]
        if len(self.broken) > self.MAX_NAMED:
            lines.append(f"and {len(self.broken) - self.MAX_NAMED} more")
        listing = "\n".join(f"  {line}" for line in lines)
        self.args = (f"Cannot read {len(self.broken)} of {num_photos} photos:\n{listing}",)

    def __reduce__(self) -> tuple[type[BrokenPhotosError], tuple[Any, ...]]:
        return (BrokenPhotosError, (self.broken, self.num_photos))


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str, ...],
    *,
    is_floating: bool | None = None,
) -> Tensor:
    """Check that a value is a tensor of a shape and return it.

    Args:
        name: The parameter's name, for the message.
        value: What the caller gave.
        shape: Expected sizes; a string stands for any size and is shown in the message.
        is_floating: Whether the dtype must (``True``) or must not (``False``) be floating point.

    Returns:
        The value, typed as a tensor.

    Raises:
        TypeError: If it is no tensor, or its dtype is of the wrong kind.
        ValueError: If its shape differs.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    sizes_match = len(shape) == value.ndim and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not sizes_match:
        want = ", ".join(str(size) for size in shape)
        raise ValueError(f"`{name}` must have shape [{want}], got {list(value.shape)}.")
    if is_floating is not None and value.is_floating_point() != is_floating:
        kind = "floating point" if is_floating else "integer or boolean"
        raise TypeError(f"`{name}` must have a {kind} dtype, got {value.dtype}.")
    return value


def check_finite(name: str, value: Tensor) -> None:
    """Raise ``ValueError`` if a tensor holds NaN or infinity, with how many and where."""
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"`{name}` must be finite, got {int(bad.sum())} non-finite values, "
            f"the first at {first}."
        )
