# SPDX-License-Identifier: Apache-2.0
"""Names of photos in a scene folder."""

from __future__ import annotations

import pytest

from ns_sparseattn.export.names import mask_name, plan_names


def plan(sources: list[str], suffixes: list[str | None] | None = None, masks: bool = False) -> list:
    return list(plan_names(sources, suffixes or [None] * len(sources), has_masks=masks))


def test_names_are_kept() -> None:
    names = ["a.jpg", "b c.PNG", "sub/a.jpg", "sub/deeper/a.jpg", "日本.webp", "noending"]
    assert [photo.image for photo in plan(names)] == names


def test_flat_names_are_unique_and_only_for_sub_folders() -> None:
    planned = plan(["0.jpg", "l/0.jpg", "r/0.jpg", "l/x/0.jpg", "l__0.jpg"])
    assert [photo.flat_image for photo in planned] == [
        "0.jpg",
        "l__0_jpg.jpg",
        "r__0.jpg",
        "l__x__0.jpg",
        "l__0.jpg",
    ]


def test_new_suffix_makes_way_for_existing_names() -> None:
    planned = plan(["a.heic", "a.png", "a.tif", "s/a.heic"], [".png", None, ".png", ".png"])
    assert [photo.image for photo in planned] == [
        "a_heic.png",
        "a.png",
        "a_tif.png",
        "s/a.png",
    ]


def test_numbers_end_a_long_fight() -> None:
    planned = plan(["a.tif", "a.png", "a_tif.png"], [".png", None, None])
    assert planned[0].image == "a_tif_2.png"


def test_with_masks_names_differ_in_more_than_the_suffix() -> None:
    names = ["a.jpg", "a.png", "b.jpg"]
    assert [photo.image for photo in plan(names)] == names
    planned = plan(names, masks=True)
    assert [photo.image for photo in planned] == ["a.jpg", "a_png.png", "b.jpg"]
    assert [photo.mask for photo in planned] == ["a.png", "a_png.png", "b.png"]
    assert len({photo.flat_mask for photo in planned}) == 3


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a.png"),
        ("s/a.b.JPG", "s/a.b.png"),
        ("a.png", "a.png"),
        ("noending", "noending.png"),
    ],
)
def test_masks_are_named_as_nerfstudio_looks_for_them(image: str, mask: str) -> None:
    assert mask_name(image) == mask


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"valid UTF-8, got 'bad\\udcff.jpg'"):
        plan(["bad\udcff.jpg"])
