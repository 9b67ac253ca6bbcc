# SPDX-License-Identifier: Apache-2.0
"""Named attention plans of each model; every number says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ns_sparseattn.attention import AttentionPlan


@dataclass(frozen=True, kw_only=True)
class PlanPreset:
    """A named attention plan."""

    description: str
    """One sentence for help texts."""
    source: str
    """Where its numbers come from."""
    plan: AttentionPlan


PLANS: dict[str, dict[str, PlanPreset]] = {
    "vggt": {
        "exact": PlanPreset(
            description="Every global layer dense: the model as it was trained.",
            source="No approximation, hence no number.",
            plan=AttentionPlan.dense(),
        ),
    },
}
"""Plans by model, then by name."""
