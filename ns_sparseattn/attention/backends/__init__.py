# SPDX-License-Identifier: Apache-2.0
"""What can compute `block_sparse_attention`.

A backend is a module with ``run(inputs)``, which returns the output ``[B, H, Nq, D]`` in q's dtype
and the natural log-sum-exp ``[B, H, Nq]`` in the accumulation dtype, which may be none where it is
not needed, and ``why_not(inputs)``, which returns a sentence when it cannot run such inputs here. A
new one is entered in `BACKENDS`, its name in `BackendName`, and its place among the others in
`PREFERENCES`; nothing above changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from . import fa4, flex, gather, native, reference, triton
from .inputs import AttentionInputs

BackendName = Literal["auto", "reference", "gather", "native", "triton", "flex", "fa4"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How to run a backend, and a sentence for when it cannot."""

    run: Callable[[AttentionInputs], tuple[Tensor, Tensor | None]]
    why_not: Callable[[AttentionInputs], str | None]
    """Why it cannot run such inputs here; none if it can."""
    what_is_missing: Callable[[], str | None] = lambda: None
    """What this machine lacks for any inputs at all; none if nothing. `why_not` says it as well."""


BACKENDS: dict[str, Backend] = {
    "reference": Backend(run=reference.run, why_not=reference.why_not),
    "gather": Backend(run=gather.run, why_not=gather.why_not),
    "native": Backend(
        run=native.run, why_not=native.why_not, what_is_missing=native.what_is_missing
    ),
    "triton": Backend(
        run=triton.run, why_not=triton.why_not, what_is_missing=triton.what_is_missing
    ),
    "flex": Backend(run=flex.run, why_not=flex.why_not, what_is_missing=flex.what_is_missing),
    "fa4": Backend(run=fa4.run, why_not=fa4.why_not, what_is_missing=fa4.what_is_missing),
}
PREFERENCES: dict[str, tuple[str, ...]] = {"cpu": ("native",), "cuda": ("triton",)}
"""By device type, the backends that ``auto`` tries in this order before gather, which can all."""
