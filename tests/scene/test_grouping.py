# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ns_sparseattn.frames import ExifCamera
from ns_sparseattn.scene.grouping import group_frames
from ns_sparseattn.testing.stubs import stub_frame

PHONE = ExifCamera(make="A", model="B", lens="wide", focal_length_mm=4.2)
ZOOMED = ExifCamera(make="A", model="B", lens="wide", focal_length_mm=8.4)

FRAMES = (
    stub_frame("x/1.jpg", (64, 48)),
    stub_frame("x/2.jpg", (64, 48), exif=PHONE),
    stub_frame("y/3.jpg", (64, 48), exif=ZOOMED),
    stub_frame("y/4.jpg", (64, 48), exif=PHONE),
    stub_frame("y/5.jpg", (64, 48)),
)
UPRIGHT = stub_frame("z/6.jpg", (48, 64), exif=PHONE)


@pytest.mark.parametrize(
    ("camera_mode", "expected"),
    [
        ("auto", ((0, 4), (1, 3), (2,))),
        ("single", ((0, 1, 2, 3, 4),)),
        ("per-folder", ((0, 1), (2, 3, 4))),
        ("per-image", ((0,), (1,), (2,), (3,), (4,))),
    ],
)
def test_modes(camera_mode, expected) -> None:
    assert group_frames(FRAMES, camera_mode) == expected


def test_auto_parts_by_size() -> None:
    assert group_frames((*FRAMES[1:2], UPRIGHT), "auto") == ((0,), (1,))


def test_one_camera_for_two_sizes_names_two_files() -> None:
    with pytest.raises(ValueError, match=r"x/1\.jpg with 64 x 48 and z/6\.jpg with 48 x 64"):
        group_frames((*FRAMES, UPRIGHT), "single")


def test_one_folder_with_two_sizes_is_an_error() -> None:
    other = stub_frame("y/7.jpg", (32, 48))
    with pytest.raises(ValueError, match=r"y/3\.jpg .* y/7\.jpg"):
        group_frames((*FRAMES, other), "per-folder")
