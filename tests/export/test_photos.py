# SPDX-License-Identifier: Apache-2.0
"""Photos in a scene folder: linked where possible, upright 8-bit copies where not."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from ns_sparseattn.errors import BrokenPhotoError
from ns_sparseattn.export.photos import PhotoRecord, link_or_copy, plan_photos, write_photos
from ns_sparseattn.frames import Frames

LoadPhotos = Callable[..., Frames]


def write(frames: Frames, folder: Path, num_downscales: int = 2) -> tuple[PhotoRecord, ...]:
    return write_photos(plan_photos(frames.frames), folder, num_downscales=num_downscales)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def mode_and_format(path: Path) -> tuple[str, str | None]:
    with Image.open(path) as image:
        return image.mode, image.format


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.png", {}),
        ("a.webp", {}),
        ("a.tif", {}),
        ("gray.png", {"mode": "L"}),
        ("alpha.png", {"mode": "RGBA"}),
        ("sub folder/ä.jpeg", {"orientation": 1}),
    ],
)
def test_ready_photos_are_hard_links(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos, name: str, options: dict[str, Any]
) -> None:
    source = make_photo(tmp_path / "photos" / name, **options)
    before = (source.read_bytes(), source.stat().st_mtime_ns, source.stat().st_mode)
    (record,) = write(load_photos(tmp_path / "photos"), tmp_path / "out")
    written = tmp_path / "out/images" / name
    assert written.samefile(source)
    assert (record.how, record.name, record.reason) == ("link", name, None)
    assert (source.read_bytes(), source.stat().st_mtime_ns, source.stat().st_mode) == before


def test_symbolic_links_are_followed(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    source = make_photo(tmp_path / "elsewhere/x.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").symlink_to(source)
    write(load_photos(tmp_path / "photos"), tmp_path / "out")
    written = tmp_path / "out/images/a.png"
    assert not written.is_symlink()
    assert written.samefile(source)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_photos_are_copied_where_links_fail(
    tmp_path: Path,
    make_photo: Any,
    load_photos: LoadPhotos,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    source = make_photo(tmp_path / "photos/sub/a.png")
    frames = load_photos(tmp_path / "photos")
    monkeypatch.setattr(os, "link", fail)
    with caplog.at_level(logging.INFO):
        (record,) = write(frames, tmp_path / "out")
    assert record.how == "copy"
    assert "1 photos are copied" in caplog.text
    for name in ("sub/a.png", "sub__a.png"):
        assert (tmp_path / "out/images" / name).read_bytes() == source.read_bytes()


def test_full_disk_is_not_answered_by_a_copy(
    tmp_path: Path, make_photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="full"):
        link_or_copy(make_photo(tmp_path / "a.png"), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_rotated_jpeg_becomes_an_upright_copy(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos, orientation: int
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = make_photo(
        tmp_path / "photos/a.jpg", (64, 40), orientation=orientation, icc_profile=profile
    )
    before = source.read_bytes()
    frames = load_photos(tmp_path / "photos")
    (record,) = write(frames, tmp_path / "out")
    assert (record.how, record.name) == ("upright copy", "a.jpg")
    assert record.reason == f"EXIF orientation {orientation}"
    with Image.open(tmp_path / "out/images/a.jpg") as written, Image.open(source) as original:
        assert written.format == "JPEG"
        assert written.size == frames.frames[0].size == (record.width, record.height)
        assert written.size == ((40, 64) if orientation > 4 else (64, 40))
        assert written.info["icc_profile"] == profile
        assert dict(written.getexif()) == {0x010F: "Maker"}
        upright = np.asarray(ImageOps.exif_transpose(original)).astype(int)
        assert np.abs(np.asarray(written).astype(int) - upright).max() <= 3
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "options", "written_name", "file_format"),
    [
        ("deep.png", {"mode": "I;16"}, "deep.png", "PNG"),
        ("deep.tif", {"mode": "I;16"}, "deep.png", "PNG"),
        ("cmyk.jpg", {"mode": "CMYK"}, "cmyk.jpg", "JPEG"),
        ("palette.png", {"mode": "P"}, "palette.png", "PNG"),
        ("palette.gif", {"mode": "P"}, "palette.png", "PNG"),
        ("bits.PNG", {"mode": "1"}, "bits.PNG", "PNG"),
        ("named so.png", {"mode": "CMYK", "format": "JPEG"}, "named so.jpg", "JPEG"),
    ],
)
def test_other_pixels_become_8_bit_rgb(
    tmp_path: Path,
    make_photo: Any,
    load_photos: LoadPhotos,
    name: str,
    options: dict[str, Any],
    written_name: str,
    file_format: str,
) -> None:
    make_photo(tmp_path / "photos" / name, **options)
    (record,) = write(load_photos(tmp_path / "photos"), tmp_path / "out")
    assert (record.how, record.name) == ("upright copy", written_name)
    for folder in ("images", "images_2", "images_4"):
        path = tmp_path / "out" / folder / written_name
        assert mode_and_format(path) == ("RGB", file_format)


def test_heic_becomes_png(tmp_path: Path, make_photo: Any, load_photos: LoadPhotos) -> None:
    heif = pytest.importorskip("pillow_heif", reason="HEIC is an extra: pip install pillow-heif")
    with Image.open(make_photo(tmp_path / "a.png", (64, 48))) as image:
        (tmp_path / "photos").mkdir()
        heif.from_pillow(image).save(tmp_path / "photos/a.heic")
    (record,) = write(load_photos(tmp_path / "photos"), tmp_path / "out")
    assert (record.name, record.reason) == ("a.png", "HEIC of mode RGB")
    assert mode_and_format(tmp_path / "out/images_2/a.png") == ("RGB", "PNG")


def test_profile_of_another_colour_space_is_dropped(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    profile = b"\0" * 16 + b"CMYK" + b"\0" * 108
    make_photo(tmp_path / "photos/a.jpg", mode="CMYK", icc_profile=profile)
    write(load_photos(tmp_path / "photos"), tmp_path / "out")
    with Image.open(tmp_path / "out/images/a.jpg") as image:
        assert "icc_profile" not in image.info


def test_size_in_the_exif_block_follows_the_rotation(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    details = exif.get_ifd(0x8769)
    details[0xA002], details[0xA003], details[0x920A] = 64, 40, 35.0
    make_photo(tmp_path / "photos/a.jpg", (64, 40), exif=exif.tobytes())
    write(load_photos(tmp_path / "photos"), tmp_path / "out")
    with Image.open(tmp_path / "out/images/a.jpg") as image:
        assert dict(image.getexif().get_ifd(0x8769)) == {
            0xA002: 40,
            0xA003: 64,
            0x920A: 35.0,
        }


@pytest.mark.parametrize("size", [(64, 48), (61, 45), (9, 3)], ids=str)
def test_smaller_copies_are_block_means(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos, size: tuple[int, int]
) -> None:
    source = make_photo(tmp_path / "photos/a.png", size)
    write(load_photos(tmp_path / "photos"), tmp_path / "out", num_downscales=3)
    for factor in (2, 4, 8):
        small = pixels(tmp_path / f"out/images_{factor}/a.png")
        width, height = (max(1, length // factor) for length in size)
        assert small.shape == (height, width, 3)
        if min(size) >= factor:
            full = pixels(source)[: height * factor, : width * factor].astype(float)
            blocks = full.reshape(height, factor, width, factor, 3).mean((1, 3))
            assert np.abs(small - blocks).max() <= 0.51


def test_smaller_copies_keep_name_format_and_mode(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    kinds = {
        "a.jpg": ("RGB", "JPEG"),
        "b.webp": ("RGB", "WEBP"),
        "c/d.tif": ("RGB", "TIFF"),
        "e.PNG": ("L", "PNG"),
        "f.png": ("RGBA", "PNG"),
    }
    for name, (mode, _) in kinds.items():
        make_photo(tmp_path / "photos" / name, mode=mode)
    write(load_photos(tmp_path / "photos"), tmp_path / "out")
    for name, kind in kinds.items():
        assert mode_and_format(tmp_path / "out/images_2" / name) == kind


def test_no_smaller_copies(tmp_path: Path, make_photo: Any, load_photos: LoadPhotos) -> None:
    make_photo(tmp_path / "photos/a.png")
    write(load_photos(tmp_path / "photos"), tmp_path / "out", num_downscales=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_folders_mirror_each_other(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    """gsplat's loader pairs the sorted files of ``images`` and ``images_2``."""
    for name in ("0.png", "l/0.png", "r/0.jpg", "r/1.heif.tif"):
        make_photo(tmp_path / "photos" / name)
    write(load_photos(tmp_path / "photos"), tmp_path / "out")

    def files(folder: str) -> list[str]:
        root = tmp_path / "out" / folder
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

    assert files("images") == files("images_2") == files("images_4")
    assert {"l/0.png", "l__0.png", "r__0.jpg"} <= set(files("images"))


def test_masks_are_written_for_all_photos(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    make_photo(tmp_path / "photos/s/a.jpg", (64, 48))
    make_photo(tmp_path / "photos/b.png", (61, 45))
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[10:30, 20:50] = 1
    (tmp_path / "masks/s").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks/s/a.png")
    frames = load_photos(tmp_path / "photos", tmp_path / "masks")
    write(frames, tmp_path / "out")
    written = pixels(tmp_path / "out/masks/s/a.png")
    np.testing.assert_array_equal(written, mask * 255)
    np.testing.assert_array_equal(pixels(tmp_path / "out/masks/s__a.png"), written)
    assert pixels(tmp_path / "out/masks/b.png").shape == (45, 61)
    assert pixels(tmp_path / "out/masks/b.png").min() == 255
    for factor in (2, 4):
        small = pixels(tmp_path / f"out/masks_{factor}/s/a.png")
        np.testing.assert_array_equal(small, written[factor // 2 :: factor, factor // 2 :: factor])


def test_transparency_is_a_mask(tmp_path: Path, make_photo: Any, load_photos: LoadPhotos) -> None:
    source = make_photo(tmp_path / "photos/a.png", (64, 48))
    with Image.open(source) as image:
        alpha = Image.new("L", image.size, 255)
        alpha.paste(0, (0, 0, 64, 20))
        image.putalpha(alpha)
        image.save(source)
    write(load_photos(tmp_path / "photos"), tmp_path / "out")
    np.testing.assert_array_equal(pixels(tmp_path / "out/masks/a.png"), np.asarray(alpha))
    assert (tmp_path / "out/images/a.png").samefile(source)


def test_copies_and_new_names_are_logged(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos, caplog: pytest.LogCaptureFixture
) -> None:
    make_photo(tmp_path / "photos/deep.tif", mode="I;16")
    make_photo(tmp_path / "photos/turned.jpg", orientation=3)
    with caplog.at_level(logging.INFO):
        write(load_photos(tmp_path / "photos"), tmp_path / "out")
    assert "2 of 2 photos are written as upright 8-bit copies" in caplog.text
    assert "turned.jpg (EXIF orientation 3)" in caplog.text
    assert "deep.tif -> deep.png" in caplog.text


def test_progress_counts_photos(tmp_path: Path, make_photo: Any, load_photos: LoadPhotos) -> None:
    for index in range(3):
        make_photo(tmp_path / f"photos/{index}.png")
    photos = plan_photos(load_photos(tmp_path / "photos").frames)
    calls: list[tuple[int, int]] = []
    write_photos(
        photos, tmp_path / "out", num_downscales=1, progress=lambda *call: calls.append(call)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_photo_that_changed_is_named(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    source = make_photo(tmp_path / "photos/a.png", (64, 48))
    frames = load_photos(tmp_path / "photos")
    make_photo(source, (48, 64))
    with pytest.raises(BrokenPhotoError, match=r"a\.png.*64 x 48.*48 x 64"):
        write(frames, tmp_path / "out")


def test_photo_that_broke_is_named(
    tmp_path: Path, make_photo: Any, load_photos: LoadPhotos
) -> None:
    source = make_photo(tmp_path / "photos/a.jpg", (640, 480))
    frames = load_photos(tmp_path / "photos")
    source.write_bytes(source.read_bytes()[:2000])
    with pytest.raises(BrokenPhotoError, match=r"a\.jpg.*truncated"):
        write(frames, tmp_path / "out")
