# SPDX-License-Identifier: Apache-2.0
"""Reading golden files, and what a kind of golden file consists of."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CONFIG = "config_json"


class GoldenError(ValueError):
    """A golden file cannot be used."""


@dataclass(frozen=True)
class GoldenFile:
    """The arrays of one file and the configuration that they were recorded with."""

    path: Path
    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def load(cls, path: Path) -> GoldenFile:
        """Read a file.

        Raises:
            GoldenError: If it is no ``.npz`` file or has no configuration.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise GoldenError(f"{path} cannot be read as an .npz file: {error}") from error
        if _CONFIG not in arrays:
            raise GoldenError(f"{path} holds no `{_CONFIG}`, so it is no golden file.")
        config = json.loads(str(arrays.pop(_CONFIG)))
        return cls(path, config, arrays)

    @property
    def tag(self) -> str:
        """Name of the recording, which tells its kind; the file's own if it states none."""
        return str(self.config.get("tag", self.path.stem))

    def tensor(self, name: str) -> Tensor:
        """Return one array as a tensor."""
        return torch.from_numpy(self.arrays[name])


@dataclass(frozen=True)
class Check:
    """One array, recorded and computed."""

    array: str
    computed: Tensor | NDArray[Any]
    recorded: NDArray[Any]
    tolerance: float

    def error(self) -> float:
        """Return the largest difference over the recorded RMS; infinity if shapes differ."""
        computed = self.computed
        if isinstance(computed, Tensor):
            computed = computed.detach().cpu().numpy()
        if computed.shape != self.recorded.shape:
            return float("inf")
        found, wanted = computed.astype(np.float64), self.recorded.astype(np.float64)
        # Equal infinities agree; their difference would be NaN.
        difference = np.abs(
            np.subtract(found, wanted, where=found != wanted, out=np.zeros(found.shape))
        )
        scale = float(np.sqrt(np.mean(np.square(wanted[np.isfinite(wanted)]))))
        return float(difference.max()) / (scale or 1.0)


@dataclass(frozen=True, kw_only=True)
class GoldenKind:
    """How files of one kind are recognised and checked."""

    name: str
    tag_pattern: str
    """Regular expression at the start of the ``tag`` in the configuration."""
    run: Callable[[GoldenFile], Iterable[Check]]
    """Computes what the file recorded."""
    is_input: Callable[[str], bool] = lambda name: name.startswith("in_")
    """Tells the arrays that the network was given from those that it made."""
    why_skipped: Callable[[str], str] = lambda name: f"{name} has no counterpart here"
    """Says why an array that `run` left out is not covered."""
