# SPDX-License-Identifier: Apache-2.0
"""Attention plans: what each global attention layer of a model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from .backends import BackendName
from .block_map import BlockMap
from .layout import BLOCK_K
from .tiles import tile_side

Pooling = Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True)
class DensePolicy:
    """Every query attends to every key, through torch's scaled dot product attention."""

    @property
    def name(self) -> str:
        """Short name for statistics."""
        return "dense"


@dataclass(frozen=True, kw_only=True)
class FramePolicy:
    """Every token attends to its own frame only, as in the model's frame layers.

    Published for the early global layers, which find no correspondences yet (AVGGT, arXiv
    2512.02541). Tokens without a frame see everything and are seen by everyone.
    """

    with_first_frame: bool = False
    """Whether every token attends to the first frame, the reference of VGGT, as well."""

    @property
    def name(self) -> str:
        """Short name for statistics."""
        return "first-frame" if self.with_first_frame else "frame-only"


PatchOrder = Literal["tiles", "hilbert", "raster"]
"""How patches follow each other: tiles across similar frames, or frame by frame along a Hilbert
curve or row by row."""

Share = float | tuple[float, ...]
"""A share in [0, 1] of all heads, or one for each head."""

Selector = Callable[..., BlockMap]
"""Takes what `ns_sparseattn.attention.selection.select_blocks` takes, and gives what it gives."""


@dataclass(frozen=True, kw_only=True)
class BlockSparsePolicy:
    """Each query block attends to the blocks that `select_blocks` picks and to special tokens."""

    mass: Share | None = None
    """Share of the pooled softmax to reach, in (0, 1]; none keeps `max_density` blocks."""
    min_density: Share = 0.0
    """Share of the key blocks kept at least."""
    max_density: Share = 1.0
    """Share of the key blocks kept at most."""
    coarse: bool = True
    """Whether blocks that are left out contribute through the means of their keys and values."""
    order: PatchOrder = "tiles"
    """How patches are grouped into blocks."""
    block_k: int = BLOCK_K
    """Tokens of a key block, four times a square; a query block has twice as many. Smaller blocks
    choose more finely where there are few tokens, and are slower where there are many."""
    backend: BackendName = "auto"
    """What computes it."""
    selector: Selector | None = None
    """What picks the blocks in place of `select_blocks`, to measure other selections."""

    def __post_init__(self) -> None:
        if self.order not in get_args(PatchOrder):
            raise ValueError(f"`order` must be one of {get_args(PatchOrder)}, got {self.order!r}.")
        tile_side(self.block_k)
        for mass in _each(1.0 if self.mass is None else self.mass):
            if not 0.0 < mass <= 1.0:
                raise ValueError(f"`mass` must be in (0, 1], got {mass:g}.")
        shares = [self.mass, self.min_density, self.max_density]
        num_heads = {len(share) for share in shares if isinstance(share, tuple)}
        if len(num_heads) > 1 or 0 in num_heads:
            raise ValueError(
                f"Shares for each head must be of one number of heads, got {sorted(num_heads)}."
            )
        heads = max(num_heads, default=1)
        for least, most in zip(
            _each(self.min_density, heads), _each(self.max_density, heads), strict=True
        ):
            if not 0.0 <= least <= most <= 1.0 or most == 0.0:
                raise ValueError(
                    "Density bounds must satisfy 0 <= min <= max <= 1 with max > 0, got "
                    f"{least:g} and {most:g}."
                )

    @property
    def name(self) -> str:
        """Short name for statistics, with the shares asked for."""
        wanted = [] if self.mass is None else [f"mass {_spell(self.mass)}"]
        if self.min_density != 0.0:
            wanted.append(f"density at least {_spell(self.min_density)}")
        if self.mass is None or self.max_density != 1.0:
            wanted.append(f"density {_spell(self.max_density)}")
        if self.coarse:
            wanted.append("coarse")
        if self.order != "tiles":
            wanted.append(self.order)
        if self.block_k != BLOCK_K:
            wanted.append(f"blocks of {self.block_k}")
        return f"block-sparse ({', '.join(wanted)})"


def _each(share: Share, num_heads: int = 1) -> tuple[float, ...]:
    return share if isinstance(share, tuple) else (share,) * num_heads


def _spell(share: Share) -> str:
    if isinstance(share, tuple):
        return f"{min(share):g} to {max(share):g}"
    return f"{share:g}"


@dataclass(frozen=True, kw_only=True)
class AutoPolicy:
    """A sparse policy where it was measured to be faster on this kind of device, else dense.

    `ns_sparseattn.attention.crossover` decides: before selection by the number of tokens and the
    density asked for, after it by the density found if a mass was asked for.
    """

    policy: BlockSparsePolicy | FramePolicy
    """What to do above the crossover."""

    @property
    def name(self) -> str:
        """Short name for statistics."""
        return f"auto {self.policy.name}"


@dataclass(frozen=True, kw_only=True)
class PaperPolicy:
    """The published method's own layout and selection, its defects included; for comparison.

    Special tokens of the first frames can be dropped, and the mass asked for is missed by a block
    (see `ns_sparseattn.attention.paper`). `BlockSparsePolicy` does neither.
    """

    sparse_ratio: float | None = None
    """Share of the key blocks that may be left out, in [0, 1]: an upper bound on sparsity."""
    cdf_threshold: float | None = None
    """Share of the pooled softmax, in [0, 1], that the kept blocks may fill. If `sparse_ratio` is
    given as well, whichever keeps more blocks counts."""
    pooling: Pooling = "mean"
    """How the tokens of a block become one. Published results use the mean."""
    hilbert: bool = False
    """Order the patches of each frame along a Hilbert curve instead of row by row."""
    block_k: int = BLOCK_K
    """Tokens of a key block; a query block has twice as many. Published results use 64 and 128."""
    backend: BackendName = "auto"
    """What computes it."""

    def __post_init__(self) -> None:
        if self.sparse_ratio is None and self.cdf_threshold is None:
            raise ValueError("A paper policy needs `sparse_ratio`, `cdf_threshold`, or both.")
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` must be in [0, 1], got {value:g}.")
        if self.block_k < 1:
            raise ValueError(f"`block_k` must be at least 1, got {self.block_k}.")
        if self.pooling not in ("mean", "max"):
            raise ValueError(f"`pooling` must be mean or max, got {self.pooling!r}.")

    @property
    def name(self) -> str:
        """Short name for statistics, with what was asked for."""
        wanted = [] if self.sparse_ratio is None else [f"ratio {self.sparse_ratio:g}"]
        if self.cdf_threshold is not None:
            wanted.append(f"cdf {self.cdf_threshold:g}")
        if self.pooling != "mean":
            wanted.append(f"{self.pooling} pooling")
        if self.hilbert:
            wanted.append("hilbert")
        if self.block_k != BLOCK_K:
            wanted.append(f"blocks of {self.block_k}")
        return f"paper ({', '.join(wanted)})"


LayerPolicy = DensePolicy | FramePolicy | BlockSparsePolicy | AutoPolicy | PaperPolicy


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """One policy for every global layer of a model, with exceptions by layer index."""

    default: LayerPolicy = field(default_factory=DensePolicy)
    layers: Mapping[int, LayerPolicy] = field(default_factory=dict)
    """Policies of single global layers, counted from 0, that differ from the default."""
    depth: int | None = None
    """Global layers of the model that `layers` was written for. A model of another depth takes, for
    each of its layers, the policy at the same relative depth. None: `layers` are meant as they
    are, and a model that lacks one of them is refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    @classmethod
    def dense(cls) -> AttentionPlan:
        """Return the exact plan: every layer dense."""
        return cls()

    @classmethod
    def block_sparse(
        cls,
        *,
        density: float | None = None,
        mass: float | None = None,
        coarse: bool | None = None,
        layout: PatchOrder | Literal["paper"] = "tiles",
    ) -> AttentionPlan:
        """Return a plan with one block-sparse policy for all layers.

        Args:
            density: Share of the key blocks that every query block keeps, or keeps at most if
                `mass` is given.
            mass: Share of the pooled softmax to reach.
            coarse: Let blocks that are left out contribute through their means. Not said, they do,
                unless the layout is the published one, which cannot.
            layout: How tokens are grouped into blocks. ``paper`` is the published layout together
                with the published selection, as `PaperPolicy` describes them: `density` is then the
                least share kept and `mass` the share that may be filled.

        Raises:
            ValueError: If neither share is given, one is out of range, or `coarse` is asked of the
                published layout.

        Example:
            >>> AttentionPlan.block_sparse(density=0.25).policy(3).name
            'block-sparse (density 0.25, coarse)'
        """
        if density is None and mass is None:
            raise ValueError("A block-sparse plan needs `density`, `mass`, or both.")
        if layout == "paper":
            if coarse:
                raise ValueError("`coarse` must be false with `layout` paper, which has no such.")
            sparse_ratio = None if density is None else 1.0 - density
            return cls.paper(sparse_ratio=sparse_ratio, cdf_threshold=mass)
        return cls(
            default=BlockSparsePolicy(
                mass=mass,
                max_density=1.0 if density is None else density,
                coarse=coarse is not False,
                order=layout,
            )
        )

    @classmethod
    def paper(
        cls,
        *,
        sparse_ratio: float | None = None,
        cdf_threshold: float | None = None,
        hilbert: bool = False,
    ) -> AttentionPlan:
        """Return a plan with the published method in all layers, as `PaperPolicy` describes it.

        Args:
            sparse_ratio: Share of the key blocks that may be left out.
            cdf_threshold: Share of the pooled softmax that the kept blocks may fill.
            hilbert: Order patches along a Hilbert curve.

        Raises:
            ValueError: If neither share is given, or one is out of range.

        Example:
            >>> AttentionPlan.paper(sparse_ratio=0.5, cdf_threshold=0.9).policy(3).name
            'paper (ratio 0.5, cdf 0.9)'
        """
        return cls(
            default=PaperPolicy(
                sparse_ratio=sparse_ratio, cdf_threshold=cdf_threshold, hilbert=hilbert
            )
        )

    @classmethod
    def preset(cls, model: str, name: str) -> AttentionPlan:
        """Return a named plan of `ns_sparseattn.configs`.

        Args:
            model: Name of the model, for example ``"vggt"``, or of weights with plans of their own,
                such as ``"tiny"``.
            name: Name of the plan, for example ``"exact"``.

        Raises:
            ValueError: If there is no such model or plan; the message lists what there is.
        """
        # Presets are built from plans, so importing them at the top would be circular.
        from ..configs.plans import PLANS

        if model not in PLANS:
            raise ValueError(f"`model` must be one of {sorted(PLANS)}, got {model!r}.")
        if name not in PLANS[model]:
            raise ValueError(
                f"`name` must be one of {sorted(PLANS[model])} for {model}, got {name!r}."
            )
        return PLANS[model][name].plan

    def policy(self, layer: int) -> LayerPolicy:
        """Return the policy of a global layer, counted from 0."""
        return self.layers.get(layer, self.default)

    def fitted_to(self, num_layers: int) -> AttentionPlan:
        """Return the plan for a model of so many global layers.

        Raises:
            ValueError: If the plan is for no particular depth and names layers that the model
                lacks.

        Example:
            >>> plan = AttentionPlan(layers=dict.fromkeys(range(9), FramePolicy()), depth=24)
            >>> sorted(plan.fitted_to(8).layers)
            [0, 1, 2]
        """
        if self.depth is not None:
            layers = {i: self.policy(i * self.depth // num_layers) for i in range(num_layers)}
            layers = {i: policy for i, policy in layers.items() if policy != self.default}
            return AttentionPlan(default=self.default, layers=layers)
        missing = sorted(layer for layer in self.layers if not 0 <= layer < num_layers)
        if missing:
            raise ValueError(
                f"The attention plan names layers {missing}; "
                f"this model has layers 0 to {num_layers - 1}."
            )
        return self
