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


_TABLES = (
    "The paper's tables (arXiv 2509.07120) call their rows S25, S50 and S75; which ratio and "
    "threshold those ran with is not known for certain. The S50 rows are reported to leave out "
    "only 26 to 29 % in effect, so they are probably milder than paper-s50. VGGT's rows on Tanks "
    "and Temples, 200 frames on an H100: RRA@5 83.9 dense, 80.7 S50, 57.1 S75; 18, 7.3 and 5.5 "
    "seconds."
)

PLANS: dict[str, dict[str, PlanPreset]] = {
    "vggt": {
        "exact": PlanPreset(
            description="Every global layer dense: the model as it was trained.",
            source="No approximation, hence no number.",
            plan=AttentionPlan.dense(),
        ),
        "paper-s50": PlanPreset(
            description="The published block-sparse method at about half sparsity: up to 50 per "
            "cent of the key blocks left out.",
            source="sparse_ratio 0.5 with cdf_threshold 0.7 is what the authors' project page ("
            "brianwang00001.github.io/sparse-vggt) names beside its VGGT scene of 50 % sparsity; "
            "0.46 was reached there. " + _TABLES,
            plan=AttentionPlan.paper(sparse_ratio=0.5, cdf_threshold=0.7),
        ),
        "paper-s75": PlanPreset(
            description="The published block-sparse method at about three quarters sparsity: up to "
            "80 per cent of the key blocks left out. Poses suffer.",
            source="sparse_ratio 0.8 with cdf_threshold 0.5 is what the authors' project page ("
            "brianwang00001.github.io/sparse-vggt) names beside its VGGT scene of 70 % sparsity; "
            "0.70 was reached there, 0.74 with pi3. Of the published pairs it is the nearest to "
            "75 %. " + _TABLES,
            plan=AttentionPlan.paper(sparse_ratio=0.8, cdf_threshold=0.5),
        ),
    },
}
"""Plans by model, then by name."""
