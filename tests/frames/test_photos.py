# SPDX-License-Identifier: Apache-2.0
"""The synthetic photos of the tests are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from ns_sparseattn.testing.photos import (
    HARD_CASES,
    HardCase,
    PhotoKind,
    camera_exif,
    draw_view,
    write_hard_case,
    write_photo,
)


def test_views_of_one_wall_are_shifted_by_a_tenth() -> None:
    first, second = np.array(draw_view((200, 80))), np.array(draw_view((200, 80), index=1))
    assert np.abs(first[:, 20:].astype(int) - second[:, :-20]).max() <= 1
    assert np.abs(first.astype(int) - second).mean() > 10


def test_different_walls_differ() -> None:
    first, second = np.array(draw_view()), np.array(draw_view(seed=1))
    assert np.abs(first.astype(int) - second).mean() > 20


@pytest.mark.parametrize(
    ("kind", "image_format", "mode"),
    [
        ("jpeg", "JPEG", "RGB"),
        ("gray", "JPEG", "L"),
        ("cmyk", "JPEG", "CMYK"),
        ("webp", "WEBP", "RGB"),
        ("tiff16", "TIFF", "I;16"),
        ("palette", "PNG", "P"),
        ("one_bit", "PNG", "1"),
        ("gray_alpha", "PNG", "LA"),
        ("gif", "GIF", "P"),
    ],
)
def test_kinds_are_what_they_say(
    kind: PhotoKind, image_format: str, mode: str, tmp_path: Path
) -> None:
    with Image.open(write_photo(tmp_path / "a", kind=kind)) as image:
        assert (image.format, image.mode, image.size) == (image_format, mode, (96, 64))


def test_deep_png_has_16_bits(tmp_path: Path) -> None:
    data = write_photo(tmp_path / "a.png", kind="rgb16").read_bytes()
    assert (data[24], data[25]) == (16, 2)


def test_rotated_photos_are_stored_turned(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", orientation=8, exif=camera_exif(make="M"))
    with Image.open(path) as image:
        assert image.size == (64, 96)
        assert image.getexif()[ExifTags.Base.Orientation] == 8
        assert image.getexif()[ExifTags.Base.Make] == "M"


@pytest.mark.parametrize("case", HARD_CASES)
def test_hard_cases_are_the_same_each_time(case: HardCase, tmp_path: Path) -> None:
    first = write_hard_case(tmp_path / "a", case, size=(48, 32))
    second = write_hard_case(tmp_path / "b", case, size=(48, 32))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert bool(files) == (case != "empty_folder")
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
