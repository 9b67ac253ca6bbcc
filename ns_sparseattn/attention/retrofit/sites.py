# SPDX-License-Identifier: Apache-2.0
"""Find the global attention layers of a model by its structure.

Transformers over several frames alternate between attention within each frame and attention over
all tokens. The module that holds the list of blocks is called the carrier here; the families differ
in the name of that list and in which of its blocks are global.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """A structure that is known."""

    name: str
    """Who builds it."""
    blocks: str
    """Attribute of the carrier: the list that the global blocks are in."""
    marks: tuple[str, ...]
    """Further attributes that tell the carrier from other modules with such a list."""
    first: int
    """Index of the first global block."""
    step: int
    """Distance from one global block to the next."""

    @property
    def description(self) -> str:
        """The structure in words."""
        return f"{self.name}: `{self.blocks}` beside {', '.join(f'`{m}`' for m in self.marks)}"


FAMILIES = (
    Family(name="VGGT", blocks="global_blocks", marks=("frame_blocks",), first=0, step=1),
    Family(
        name="Pi3",
        blocks="decoder",
        marks=("register_token", "patch_start_idx"),
        first=1,
        step=2,
    ),
    Family(
        name="MapAnything",
        blocks="self_attention_blocks",
        # A sibling in uniception, whose blocks are all global, has these attributes too: of that
        # one, which no published MapAnything uses, every other block is taken.
        marks=("use_pe_for_non_reference_views",),
        first=0,
        step=2,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One global attention layer."""

    layer: int
    """Index among the global layers, from 0."""
    name: str
    """Path of the attention module below the model."""
    attention: nn.Module | None
    """The module; none if the block has no attention that can be taken."""


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """The module that holds the global blocks of a model."""

    name: str
    """Path below the model; empty for the model itself."""
    module: nn.Module
    sites: tuple[Site, ...]


def find_carrier(model: nn.Module) -> Carrier:
    """Find the one carrier in a model.

    Raises:
        TypeError: If the model is no module.
        ValueError: If there is none, or more than one, or if the model was compiled.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    found: list[tuple[str, nn.Module, Family]] = []
    for name, module in model.named_modules():
        # A compiled graph may have been made from the old `forward` and would go on using it.
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "`model` must not be compiled: give `sparsify` the model that torch.compile was "
                "called with."
            )
        found += [(name, module, family) for family in FAMILIES if _is_carrier(module, family)]
    if not found:
        raise ValueError(
            f"`model` must hold global attention blocks in a structure that is known, "
            f"got {type(model).__name__} without any. Looked for "
            f"{'; '.join(family.description for family in FAMILIES)}."
        )
    if len(found) > 1:
        names = ", ".join(f"`{name}` ({family.name})" for name, _, family in found)
        raise ValueError(f"`model` must hold one set of global blocks, got {names}: pass one.")
    name, module, family = found[0]
    return Carrier(name=name, module=module, sites=_sites(name, module, family))


def find_planner(model: nn.Module, carrier: Carrier) -> nn.Module | None:
    """Return the outermost module around a carrier that takes a plan itself, if there is one.

    Such a ``forward`` has a keyword argument ``plan`` of type `AttentionPlan`.
    """
    parts = carrier.name.split(".") if carrier.name else []
    for depth in range(len(parts) + 1):
        module = model.get_submodule(".".join(parts[:depth]))
        plan = inspect.signature(module.forward).parameters.get("plan")
        if plan is not None and "AttentionPlan" in str(plan.annotation):
            return module
    return None


def _is_carrier(module: nn.Module, family: Family) -> bool:
    blocks = getattr(module, family.blocks, None)
    return (
        isinstance(blocks, nn.ModuleList)
        and len(blocks) > family.first
        and all(hasattr(module, mark) for mark in family.marks)
    )


def _sites(name: str, module: nn.Module, family: Family) -> tuple[Site, ...]:
    blocks = module.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    sites = []
    for layer, index in enumerate(range(family.first, len(blocks), family.step)):
        attention = getattr(blocks[index], "attn", None)
        # Queries, keys and values from one projection: self-attention among the block's tokens.
        is_fused = isinstance(attention, nn.Module) and hasattr(attention, "qkv")
        parts = (name, family.blocks, str(index), "attn")
        sites.append(
            Site(
                layer=layer,
                name=".".join(part for part in parts if part),
                attention=attention if is_fused else None,
            )
        )
    return tuple(sites)
