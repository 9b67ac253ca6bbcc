# SPDX-License-Identifier: Apache-2.0
"""Models are found by name, those of other packages included."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from ns_sparseattn.configs.plans import PLANS
from ns_sparseattn.models import registry
from ns_sparseattn.models.registry import MODELS, find_model, model_names

MINE = replace(MODELS["vggt"], name="mine", title="Mine")
MISNAMED = MODELS["pi3"]
NOT_AN_ENTRY = 3


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str) -> EntryPoints:
        assert group == registry.ENTRY_POINT_GROUP
        return EntryPoints(
            EntryPoint(name, value, group)
            for name, value in (
                ("mine", f"{__name__}:MINE"),
                ("vggt", f"{__name__}:MINE"),
                ("misnamed", f"{__name__}:MISNAMED"),
                ("number", f"{__name__}:NOT_AN_ENTRY"),
                ("gone", "no_such_package:MODEL"),
            )
        )

    monkeypatch.setattr(registry, "entry_points", entry_points)
    find_model.cache_clear()


def test_other_packages_add_models() -> None:
    assert model_names() == (
        "vggt",
        "pi3",
        "pi3x",
        "mapanything",
        "gone",
        "mine",
        "misnamed",
        "number",
    )
    assert find_model("mine").title == "Mine"


def test_they_cannot_replace_ours() -> None:
    assert find_model("vggt") is MODELS["vggt"]


def test_what_is_wrong_with_a_package_is_said() -> None:
    with pytest.raises(ValueError, match="gone cannot be loaded from no_such_package:MODEL: Modul"):
        find_model("gone")
    with pytest.raises(ValueError, match="must lead to a ModelEntry named 'misnamed', got one nam"):
        find_model("misnamed")
    with pytest.raises(ValueError, match="must lead to a ModelEntry named 'number', got 3"):
        find_model("number")
    with pytest.raises(ValueError, match="`model` must be one of vggt, .*, got 'dust3r'"):
        find_model("dust3r")


def test_entries_agree_with_their_networks() -> None:
    for name, entry in MODELS.items():
        assert entry.name == name
        assert set(entry.plans()) == set(PLANS[name])
        model = entry.family.make_seeded(entry.family.seeded["seeded-small"](), 0)
        assert getattr(model, "scale", entry.scale) == entry.scale
        taken = type(model).predict.__annotations__
        assert ("priors" in taken) == bool(entry.told)
        assert ("masks" in taken) == entry.takes_masks
        assert hasattr(model, "encode")
    with pytest.raises(ValueError, match="`attention` must be one of exact, .* for pi3, got 'x'"):
        MODELS["pi3"].plan("x")
