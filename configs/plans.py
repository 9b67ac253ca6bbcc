# SPDX-License-Identifier: Apache-2.0
"""Named attention plans of each model; every number says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ns_sparseattn.attention import AttentionPlan, AutoPolicy, BlockSparsePolicy, FramePolicy


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

_EARLY = (
    "Early layers within frames: AVGGT (arXiv 2512.02541) does so for VGGT's global layers 0 to 8 "
    "and Pi3's 0 to 9 and reports AUC@30 on RealEstate10K of 87.98 instead of 88.13 for VGGT."
)
_MEASURED = (
    "Densities by python -m benchmarks.selection, on synthetic overlapping views, not on a trained "
    "model: blocks in tiles with the coarse term leave a smaller output error at {ours} than "
    "blocks in rows without it, as published, at {published}."
)


_MAPANYTHING = (
    " The pairs were not chosen for MapAnything: the paper's second version shows plots alone for "
    "it, in which leaving out about 60 % of the blocks is tolerated."
)


def _published(note: str = "") -> dict[str, PlanPreset]:
    """The exact plan and the published method's, which are the same for every model."""
    return {
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
            "0.46 was reached there. " + _TABLES + note,
            plan=AttentionPlan.paper(sparse_ratio=0.5, cdf_threshold=0.7),
        ),
        "paper-s75": PlanPreset(
            description="The published block-sparse method at about three quarters sparsity: up to "
            "80 per cent of the key blocks left out. Poses suffer.",
            source="sparse_ratio 0.8 with cdf_threshold 0.5 is what the authors' project page ("
            "brianwang00001.github.io/sparse-vggt) names beside its VGGT scene of 70 % sparsity; "
            "0.70 was reached there, 0.74 with pi3. Of the published pairs it is the nearest to "
            "75 %. " + _TABLES + note,
            plan=AttentionPlan.paper(sparse_ratio=0.8, cdf_threshold=0.5),
        ),
    }


def _ours(depth: int, num_early: int) -> dict[str, PlanPreset]:
    """Our plans for a model of so many global layers, the first of which only see frames."""
    early = f"The first {num_early} global layers see frames only; then" if num_early else "Keeps"
    sources = [_EARLY] if num_early else []
    quarter, tenth = BlockSparsePolicy(max_density=0.25), BlockSparsePolicy(max_density=0.1)
    within_frames = FramePolicy()
    balanced_source = " ".join([*sources, _MEASURED.format(ours=0.25, published=0.5)])
    return {
        "auto": PlanPreset(
            description="balanced where it was measured to be faster than dense attention on this "
            "kind of device, else exact.",
            source=f"{balanced_source} Crossovers as ns_sparseattn.attention.crossover says.",
            plan=AttentionPlan(
                default=AutoPolicy(policy=quarter),
                layers=dict.fromkeys(range(num_early), AutoPolicy(policy=within_frames)),
                depth=depth,
            ),
        ),
        "balanced": PlanPreset(
            description=f"{early} a quarter of the key blocks and the means of the others.",
            source=balanced_source,
            plan=AttentionPlan(
                default=quarter, layers=dict.fromkeys(range(num_early), within_frames), depth=depth
            ),
        ),
        "fast": PlanPreset(
            description=f"{early} a tenth of the key blocks and the means of the others.",
            source=" ".join([*sources, _MEASURED.format(ours=0.1, published=0.25)]),
            plan=AttentionPlan(
                default=tenth, layers=dict.fromkeys(range(num_early), within_frames), depth=depth
            ),
        ),
    }


_TINY_SOURCE = (
    "python -m benchmarks.accuracy, held-out scenes of the generator that the network was trained "
    "with (docs/accuracy.md)."
)


def _tiny() -> dict[str, PlanPreset]:
    """Our plans for the shipped network of six layers and about a hundred tokens a photo.

    No layer is within photos alone: already the first looks for correspondence, and without it
    poses suffer. Blocks are smaller than those of large networks, which would hold most of a photo.
    """
    quarter, tenth = (BlockSparsePolicy(max_density=density, block_k=16) for density in (0.25, 0.1))
    return {
        "auto": PlanPreset(
            description="balanced where it was measured to be faster than dense attention on this "
            "kind of device, else exact.",
            source=f"{_TINY_SOURCE} Crossovers as ns_sparseattn.attention.crossover says.",
            plan=AttentionPlan(default=AutoPolicy(policy=quarter)),
        ),
        "balanced": PlanPreset(
            description="Keeps a quarter of the key blocks and the means of the others.",
            source=_TINY_SOURCE,
            plan=AttentionPlan(default=quarter),
        ),
        "fast": PlanPreset(
            description="Keeps a tenth of the key blocks and the means of the others.",
            source=_TINY_SOURCE,
            plan=AttentionPlan(default=tenth),
        ),
    }


PLANS: dict[str, dict[str, PlanPreset]] = {
    "vggt": {**_published(), **_ours(24, 9)},
    "pi3": {**_published(), **_ours(18, 10)},
    "pi3x": {**_published(), **_ours(18, 10)},
    # Nothing is published on MapAnything's early layers.
    "mapanything": {**_published(_MAPANYTHING), **_ours(8, 0)},
    # Weights of VGGT with plans of their own.
    "tiny": {**_published(), **_tiny()},
}
"""Plans by model or set of weights, then by name."""
