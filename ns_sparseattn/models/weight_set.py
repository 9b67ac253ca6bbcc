# SPDX-License-Identifier: Apache-2.0
"""What is known about weights: of named sets before loading, and of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """A published or shipped set of weights under a name of ours."""

    name: str
    """How users call it."""
    repo_id: str | None
    """Repository on the Hugging Face hub; none if the file ships with this package."""
    filename: str
    """File in the repository, or in the package's folder of weights."""
    config: Any
    """Sizes of the network, of the configuration class of its kind."""
    num_keys: int
    """Tensors in the file, those that we do not use included."""
    size_gb: float
    """Size of the file, in units of 10^9 bytes."""
    licence: str
    """Short name of the licence of the weights."""
    licence_summary: str
    """What the licence means for a user, and how that is known."""
    commercial_use: bool
    """Whether the licence allows commercial use."""
    long_side: int | None = None
    """Longest side of the photos that it was trained on, pixels, if that is not the side of its
    position embedding."""
    plans: str | None = None
    """Attention plans of these weights, by name in `ns_sparseattn.configs.plans`, if they are not
    those of the model."""


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where the weights of a model came from and what may be done with them."""

    name: str
    """Name of the set, or of the file."""
    source: str
    """Repository and file, path, or how they were made."""
    licence: str
    """Licence of the weights; "unknown" if nobody said."""
    commercial: bool | None
    """Whether the licence allows commercial use; ``None`` if unknown."""
    verified: bool
    """Whether this is a published or shipped set. Results of other weights may mean nothing."""
    sha256: str | None = None
    """Checksum of the file; ``None`` for weights made from a seed."""
    seed: int | None = None
    """Seed of weights that were made instead of read."""
    licence_summary: str = ""
    """What the licence means for a user."""

    def describe(self) -> str:
        """Return one sentence for a log."""
        use = {True: "commercial use allowed", False: "no commercial use", None: "terms unknown"}
        trust = "" if self.verified else "; unverified, results may mean nothing"
        terms = f"licence {self.licence}, {use[self.commercial]}"
        return f"{self.name} from {self.source}: {terms}{trust}."
