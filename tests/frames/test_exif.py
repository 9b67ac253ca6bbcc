# SPDX-License-Identifier: Apache-2.0
"""What EXIF says about the camera, and that rubbish in it does no harm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from ns_sparseattn.frames import ExifCamera
from ns_sparseattn.frames.decode import decode_photo
from ns_sparseattn.frames.exif import read_camera
from ns_sparseattn.testing.photos import PhotoKind, camera_exif, draw_view, write_photo

TAG = ExifTags.Base


def _read(
    tmp_path: Path, details: Mapping[str, object], size: tuple[int, int] = (96, 64)
) -> ExifCamera:
    exif = camera_exif(details={TAG[name].value: value for name, value in details.items()})
    return decode_photo(write_photo(tmp_path / "a.jpg", draw_view(size), exif=exif)).exif


def test_a_photo_without_exif_says_nothing(tmp_path: Path) -> None:
    assert decode_photo(write_photo(tmp_path / "a.jpg")).exif == ExifCamera()


def test_names_are_read_without_padding(tmp_path: Path) -> None:
    exif = camera_exif(make="  Maker \0\0rest", model="", lens="35mm F1.8")
    camera = decode_photo(write_photo(tmp_path / "a.jpg", exif=exif)).exif
    assert (camera.make, camera.model, camera.lens) == ("Maker", None, "35mm F1.8")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_every_format_gives_its_exif(kind: PhotoKind, tmp_path: Path) -> None:
    exif = camera_exif(lens="L", details={TAG.FocalLengthIn35mmFilm: 36, TAG.FocalLength: 24.0})
    path = write_photo(tmp_path / "a", kind=kind, orientation=6, exif=exif)
    assert decode_photo(path).exif == ExifCamera(
        make="Maker",
        model="Model 1",
        lens="L",
        focal_length_mm=24.0,
        focal_length_px=pytest.approx(96.0),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_the_35_mm_equivalent_goes_by_the_diagonal(size: tuple[int, int], tmp_path: Path) -> None:
    camera = _read(tmp_path, {"FocalLengthIn35mmFilm": 36, "FocalLength": 24.0}, size)
    assert camera.focal_length_mm == pytest.approx(24.0)
    # 96 x 64 has the aspect of film, so that 36 mm see as many pixels as the film is wide.
    assert camera.focal_length_px == pytest.approx(96.0)


@pytest.mark.parametrize(
    ("unit", "resolution"), [(2, 100 * 25.4), (3, 1000.0), (4, 100.0), (5, 0.1), (None, 100 * 25.4)]
)
def test_the_focal_plane_resolution_is_used(
    unit: int | None, resolution: float, tmp_path: Path
) -> None:
    details: dict[str, object] = {"FocalLength": 2.0, "FocalPlaneXResolution": resolution}
    if unit is not None:
        details["FocalPlaneResolutionUnit"] = unit
    assert _read(tmp_path, details).focal_length_px == pytest.approx(200.0, rel=1e-4)


def test_a_resize_after_the_shot_is_taken_into_account(tmp_path: Path) -> None:
    camera = _read(
        tmp_path,
        {
            "FocalLength": 20.0,
            "FocalPlaneXResolution": 200.0,
            "FocalPlaneResolutionUnit": 4,
            "ExifImageWidth": 3840,
            "ExifImageHeight": 2560,
        },
    )
    assert camera.focal_length_px == pytest.approx(20.0 * 200.0 * 96 / 3840)


def test_a_rotation_changes_nothing(tmp_path: Path) -> None:
    exif = camera_exif(details={TAG.FocalLengthIn35mmFilm: 36})
    path = write_photo(tmp_path / "a.jpg", draw_view((64, 96)), orientation=6, exif=exif)
    decoded = decode_photo(path)
    assert decoded.rgb.size == (64, 96)
    assert decoded.exif.focal_length_px == pytest.approx(96.0)


@pytest.mark.parametrize(
    "details",
    [
        {"FocalLength": IFDRational(0, 0), "FocalLengthIn35mmFilm": 0},
        {"FocalLength": IFDRational(5, 0), "FocalPlaneXResolution": IFDRational(0, 0)},
        {"FocalLength": 5.0, "FocalPlaneXResolution": IFDRational(7, 0)},
        {"FocalLengthIn35mmFilm": 65535},
        {"FocalLength": 5.0, "FocalPlaneXResolution": 100.0, "FocalPlaneResolutionUnit": 77},
        {"FocalLength": 1e-6, "FocalPlaneXResolution": 100.0},
        {"FocalLength": 5.0, "FocalPlaneXResolution": 1e9},
        {"FocalLength": "wide"},
    ],
)
def test_rubbish_gives_no_focal_length(details: dict[str, object], tmp_path: Path) -> None:
    camera = _read(tmp_path, details)
    assert camera.focal_length_px is None
    assert camera.make == "Maker"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, (1, 2), b"5", "5", None])
def test_values_of_any_type_are_survived(value: object) -> None:
    image = Image.new("RGB", (96, 64))
    details = image.getexif().get_ifd(ExifTags.IFD.Exif)
    for tag in (TAG.FocalLength, TAG.FocalLengthIn35mmFilm, TAG.FocalPlaneXResolution):
        details[tag] = value
    image.getexif()[TAG.Make] = value
    camera = read_camera(image)
    assert camera.focal_length_mm is None
    assert camera.focal_length_px is None


def test_a_damaged_exif_block_does_no_harm(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", exif=camera_exif(details={TAG.FocalLength: 5.0}))
    data = bytearray(path.read_bytes())
    start = data.index(b"Exif\0\0") + 6
    data[start + 4 : start + 40] = b"\xff" * 36
    path.write_bytes(data)
    decoded = decode_photo(path)
    assert decoded.orientation == 1
    assert decoded.exif.focal_length_px is None


def test_real_cameras_agree_with_their_calibration(shared: Path) -> None:
    """A nominal focal length is good to several per cent of the published calibration."""
    decoded = decode_photo(shared / "data" / "lund_door" / "images" / "DSC_0001.jpg")
    if decoded.exif.focal_length_px is None:
        pytest.skip("This copy of the photo has no EXIF.")
    assert math.isclose(decoded.exif.focal_length_px, 990.0, rel_tol=0.05)
