# SPDX-License-Identifier: Apache-2.0
"""What can compute `block_sparse_attention`.

A backend is a module with ``run(inputs)``, which returns the output ``[B, H, Nq, D]`` in q's dtype
and the natural log-sum-exp ``[B, H, Nq]`` in the accumulation dtype, and ``why_not(inputs)``, which
returns a sentence when it cannot run such inputs here. A new one is entered in `BACKENDS`, its name
in `BackendName`; nothing above changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from . import gather, reference
from .inputs import AttentionInputs

BackendName = Literal["auto", "reference", "gather"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How to run a backend, and a sentence for when it cannot."""

    run: Callable[[AttentionInputs], tuple[Tensor, Tensor]]
    why_not: Callable[[AttentionInputs], str | None]


BACKENDS: dict[str, Backend] = {
    "reference": Backend(run=reference.run, why_not=reference.why_not),
    "gather": Backend(run=gather.run, why_not=gather.why_not),
}
