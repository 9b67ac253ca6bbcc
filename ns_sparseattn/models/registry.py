# SPDX-License-Identifier: Apache-2.0
"""The models by name: those of the package, and those that other packages bring.

Another package adds one by an entry point of the group `ENTRY_POINT_GROUP` that leads to a
`ModelEntry`; docs/adding-a-model.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ..attention import AttentionPlan
from ..options import DEFAULT_LONG_SIDE, FrameOptions, SizingRule
from ..prediction import ScaleKind
from .loading import ModelFamily, trained_side
from .mapanything_weights import MAPANYTHING_FAMILY
from .pi3_weights import PI3_FAMILY, PI3X_FAMILY
from .weights import VGGT_FAMILY

ENTRY_POINT_GROUP = "ns_sparseattn.models"
"""Entry points of other packages' models; the name of one is the name of its model."""

Told = Literal["intrinsics", "poses", "depth"]
"""What a network may take beside the photos."""


def _dense_alone() -> Mapping[str, AttentionPlan]:
    return {"exact": AttentionPlan.dense()}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model: how it is built, and what the pipeline must know of it.

    The network that `family` builds has a method ``predict(images, *, plan, options, progress)``
    that returns a `Prediction`; with `told` it takes ``priors`` as well, with `takes_masks`
    ``masks``.
    """

    name: str
    """What commands call it."""
    title: str
    """What people call it."""
    family: ModelFamily[Any]
    """How its weights are named, read and made."""
    plans: Callable[[], Mapping[str, AttentionPlan]] = _dense_alone
    """Returns its attention plans by the names that ``--attention`` takes."""
    resize: SizingRule = "fit"
    """How photos become its input, as it was published."""
    told: frozenset[Told] = frozenset()
    """What its network can be told; the rest becomes a prior of the scene."""
    depth_needs_intrinsics: bool = False
    """Whether its network takes a depth only with intrinsics of the same photo."""
    has_reference: bool = False
    """Whether the first photo is special to it. It then has a method ``encode(images, *,
    options)`` that returns tokens of each photo, by which the first one is chosen."""
    takes_masks: bool = False
    """Whether its network can leave masked patches out of its attention."""
    scale: ScaleKind = "relative"
    """Whether lengths come out in metres."""

    def plan(self, name: str, weights: str | None = None) -> AttentionPlan:
        """Return the attention plan of a name.

        Args:
            name: As ``--attention`` takes it.
            weights: As `load_model` takes them; some named sets have plans of their own.

        Raises:
            ValueError: If the model has none of that name.
        """
        sets, default = self.family.named_sets()
        named = sets.get(weights or default)
        plans = self.plans() if named is None or named.plans is None else _plans_of(named.plans)
        if name not in plans:
            raise ValueError(
                f"`attention` must be one of {', '.join(plans)} or block-sparse for {self.name}, "
                f"got {name!r}."
            )
        return plans[name]

    def sized(self, options: FrameOptions, weights: str | None = None) -> FrameOptions:
        """Return the options of loading photos, what they leave open chosen for a model.

        Args:
            options: The rule ``auto`` becomes the model's own, and a side that is not given that
                which the weights were trained with.
            weights: As `load_model` takes them.

        Raises:
            ValueError: If the weights are a folder in which no file can be meant.
        """
        return replace(
            options,
            resize=self.resize if options.resize == "auto" else options.resize,
            long_side=options.long_side or trained_side(self.family, weights) or DEFAULT_LONG_SIDE,
        )


def _plans_of(name: str) -> Mapping[str, AttentionPlan]:
    """Look up presets in the configs."""
    from ..configs.plans import PLANS

    return {key: preset.plan for key, preset in PLANS[name].items()}


def _presets(name: str) -> Callable[[], Mapping[str, AttentionPlan]]:
    """Return what looks up the presets of a model."""
    return partial(_plans_of, name)


_EVERYTHING: frozenset[Told] = frozenset({"intrinsics", "poses", "depth"})

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            ModelEntry(
                name="vggt",
                title="VGGT",
                family=VGGT_FAMILY,
                plans=_presets("vggt"),
                has_reference=True,
                takes_masks=True,
            ),
            ModelEntry(
                name="pi3",
                title="Pi3",
                family=PI3_FAMILY,
                plans=_presets("pi3"),
                resize="area",
                takes_masks=True,
            ),
            ModelEntry(
                name="pi3x",
                title="Pi3X",
                family=PI3X_FAMILY,
                plans=_presets("pi3x"),
                resize="area",
                told=_EVERYTHING,
                takes_masks=True,
                scale="metric",
            ),
            ModelEntry(
                name="mapanything",
                title="MapAnything",
                family=MAPANYTHING_FAMILY,
                plans=_presets("mapanything"),
                resize="cover",
                told=_EVERYTHING,
                depth_needs_intrinsics=True,
                has_reference=True,
                takes_masks=True,
                scale="metric",
            ),
        )
    }
)
"""The models of the package by name."""


def model_names() -> tuple[str, ...]:
    """Return the names of all models: ours, then those of other packages in alphabetical order.

    Other packages are not imported.
    """
    return (*MODELS, *sorted(set(_entry_points()) - set(MODELS)))


@cache
def find_model(name: str) -> ModelEntry:
    """Return the model of a name. Names of the package's own models cannot be taken by others.

    Raises:
        ValueError: If there is none, or the package that brings it is broken.
    """
    if name in MODELS:
        return MODELS[name]
    found = _entry_points().get(name)
    if found is None:
        raise ValueError(f"`model` must be one of {', '.join(model_names())}, got {name!r}.")
    try:
        entry = found.load()
    except Exception as error:  # Whatever another package raises as it is imported.
        raise ValueError(
            f"The model {name} cannot be loaded from {found.value}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(entry, ModelEntry) or entry.name != name:
        got = f"one named {entry.name!r}" if isinstance(entry, ModelEntry) else repr(entry)
        raise ValueError(
            f"The entry point {found.value} must lead to a ModelEntry named {name!r}, got {got}."
        )
    return entry


def _name_type() -> Any:
    """Return the type of model names, for the help of commands."""
    return Literal[model_names()]


ModelName = Annotated[str, arg(constructor_factory=_name_type)]
"""Name of a model; commands list those that there are."""


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=ENTRY_POINT_GROUP)}
