# SPDX-License-Identifier: Apache-2.0
"""Every kind of file becomes the right upright 8-bit RGB pixels, or an error that says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ns_sparseattn import frames
from ns_sparseattn.errors import BrokenPhotoError
from ns_sparseattn.frames.decode import allow_large_images, decode_photo
from ns_sparseattn.testing.photos import (
    SUFFIXES,
    PhotoKind,
    camera_exif,
    draw_view,
    levels_16_bit,
    write_photo,
)

SIZE = (96, 64)

# Whether a plain 8-bit reader that ignores EXIF gets the right pixels.
TRAINER_READY: dict[PhotoKind, bool] = {
    "jpeg": True,
    "progressive": True,
    "gray": True,
    "cmyk": False,
    "webp": True,
    "tiff": True,
    "tiff16": False,
    "bmp": True,
    "png": True,
    "palette": False,
    "one_bit": False,
    "rgba": True,
    "gray_alpha": False,
    "gray16": False,
    "rgb16": False,
    "gif": False,
    "heic": False,
}

# Largest mean difference of levels from the image that was written.
TOLERANCE: dict[PhotoKind, float] = {
    "jpeg": 3,
    "progressive": 3,
    "gray": 3,
    "cmyk": 4,
    "palette": 8,
    "gif": 8,
    "heic": 4,
}


def _expected(kind: PhotoKind, image: Image.Image) -> np.ndarray:
    if kind in {"gray", "gray16", "tiff16", "gray_alpha"}:
        image = image.convert("L").convert("RGB")
    if kind == "one_bit":
        image = image.convert("1").convert("RGB")
    levels = np.array(image).astype(float)
    if kind in {"rgba", "gray_alpha"}:
        levels[:, : image.width // 6] = 255
    return levels


def test_every_kind_is_listed() -> None:
    assert set(TRAINER_READY) == set(get_args(PhotoKind)) == set(SUFFIXES)


@pytest.mark.parametrize("kind", get_args(PhotoKind))
def test_every_kind_is_read(kind: PhotoKind, tmp_path: Path) -> None:
    if kind == "heic":
        pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif.")
    image = draw_view(SIZE)
    (frame,) = frames.load(write_photo(tmp_path / f"a{SUFFIXES[kind]}", image, kind=kind)).frames
    assert frame.size == SIZE
    assert frame.trainer_ready == TRAINER_READY[kind]
    assert frame.has_alpha == (kind in {"rgba", "gray_alpha"})
    levels = frames.read_rgb(frame)
    assert levels.dtype == np.uint8
    assert levels.flags.writeable
    error = np.abs(levels - _expected(kind, image)).mean()
    assert error <= TOLERANCE.get(kind, 0), error


@pytest.mark.parametrize("kind", [kind for kind, is_ready in TRAINER_READY.items() if is_ready])
def test_trainer_ready_means_that_plain_pillow_reads_the_same(
    kind: PhotoKind, tmp_path: Path
) -> None:
    """The reference is nerfstudio's loader: open, np.array uint8, gray repeated, RGB(A) as is."""
    path = write_photo(tmp_path / "photo", draw_view(SIZE), kind=kind)
    with Image.open(path) as image:
        levels = np.array(image, dtype="uint8")
    if levels.ndim == 2:
        levels = levels[:, :, None].repeat(3, axis=2)
    if levels.shape[2] == 4:
        opacity = levels[..., 3:] / 255
        levels = levels[..., :3] * opacity + 255 * (1 - opacity)
    assert np.array_equal(levels, np.asarray(decode_photo(path).rgb))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_exif_orientation_is_applied(kind: PhotoKind, orientation: int, tmp_path: Path) -> None:
    image = draw_view(SIZE)
    path = write_photo(tmp_path / "a.img", image, kind=kind, orientation=orientation)
    decoded = decode_photo(path)
    assert decoded.orientation == orientation
    assert decoded.rgb.size == SIZE
    assert decoded.trainer_ready == (orientation == 1)
    error = np.abs(np.array(decoded.rgb).astype(float) - np.array(image)).mean()
    assert error <= TOLERANCE.get(kind, 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientations_are_upright(orientation: int, tmp_path: Path) -> None:
    decoded = decode_photo(write_photo(tmp_path / "a.jpg", orientation=orientation))
    assert decoded.orientation == 1
    assert decoded.trainer_ready


def test_transparency_turns_with_its_photo(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", draw_view(SIZE), kind="rgba", orientation=6)
    (frame,) = frames.load(path).frames
    mask = frames.read_mask(frame)
    assert mask is not None
    assert mask.shape == (64, 96)
    # The stored left sixth is that of the stored, turned photo: the upright photo's bottom.
    with Image.open(path) as stored:
        upright = stored.getchannel("A").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(mask, np.asarray(upright) > 0)
    assert (frames.read_rgb(frame)[~mask] == 255).all()


def test_opaque_alpha_is_no_mask(tmp_path: Path) -> None:
    image = draw_view(SIZE)
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    loaded = frames.load(tmp_path)
    assert not loaded.frames[0].has_alpha
    assert loaded.masks is None
    assert frames.read_mask(loaded.frames[0]) is None


@pytest.mark.parametrize("kind", ["palette", "png"])
def test_a_transparent_colour_is_a_mask(kind: PhotoKind, tmp_path: Path) -> None:
    image = Image.new("RGB", SIZE, (10, 200, 30))
    image.paste((250, 0, 0), (0, 0, 20, 64))
    transparency: object = (250, 0, 0)
    if kind == "palette":
        image = image.quantize(2)
        transparency = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=transparency)
    (frame,) = frames.load(tmp_path).frames
    mask = frames.read_mask(frame)
    assert mask is not None
    assert not mask[:, :20].any()
    assert mask[:, 20:].all()
    assert not frame.trainer_ready


def test_16_bit_levels_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for name, levels in (("little", "<u2"), ("big", ">u2")):
        Image.fromarray(levels_16_bit(ramp).astype(levels)).save(tmp_path / f"{name}.tif")
        decoded = decode_photo(tmp_path / f"{name}.tif")
        assert np.array_equal(np.asarray(decoded.rgb)[..., 0], np.asarray(ramp))


def test_levels_beyond_16_bit_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(BrokenPhotoError, match="save it as 8 or 16 bit"):
        decode_photo(tmp_path / "deep.tif")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(
        BrokenPhotoError, match=r"floating-point numbers; save it as 8 or 16 bit\.$"
    ):
        decode_photo(tmp_path / "float.tif")


def test_animations_are_refused_and_still_ones_read(tmp_path: Path) -> None:
    views = [draw_view(SIZE, index=i) for i in range(3)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        views[0].save(path, save_all=True, append_images=views[1:])
        with pytest.raises(BrokenPhotoError, match="animation of 3 frames"):
            decode_photo(path)


def test_further_pages_of_a_tiff_are_ignored(tmp_path: Path) -> None:
    views = [draw_view(SIZE, index=i) for i in range(2)]
    views[0].save(tmp_path / "a.tif", save_all=True, append_images=views[1:])
    assert np.array_equal(np.asarray(decode_photo(tmp_path / "a.tif").rgb), np.asarray(views[0]))


@pytest.mark.parametrize("kind", [kind for kind in get_args(PhotoKind) if kind != "heic"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_cut_files_are_broken(kind: PhotoKind, share: float, tmp_path: Path) -> None:
    whole = write_photo(tmp_path / "whole", draw_view((192, 128)), kind=kind).read_bytes()
    path = tmp_path / f"cut{SUFFIXES[kind]}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BrokenPhotoError) as caught:
        decode_photo(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    if share == 0.0:
        assert caught.value.reason == "the file is empty (0 bytes)"


def test_a_cut_jpeg_says_how_much_is_there(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", draw_view((192, 128)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenPhotoError, match=r"truncated, about \d+ of 128 rows are there"):
        decode_photo(path)


def test_a_flipped_bit_that_the_decoder_tolerates_is_fine(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", draw_view((192, 128)))
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 0x10
    path.write_bytes(data)
    assert decode_photo(path).rgb.size == (192, 128)


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    decoded = decode_photo(write_photo(tmp_path / "jpeg.png", kind="jpeg"))
    assert decoded.trainer_ready


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"This is a text.", "not an image"),
        ("mac.jpg", bytes(4096), "not an image"),
        ("page.png", b"<!DOCTYPE html>", "not an image"),
    ],
)
def test_other_content_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenPhotoError, match=reason):
        decode_photo(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenPhotoError, match="no such file"):
        decode_photo(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BrokenPhotoError, match="it is not a file"):
        decode_photo(tmp_path / "folder.jpg")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ns_sparseattn.frames.decode.MAX_PIXELS", 2_000_000)
    path = write_photo(tmp_path / "a.png", Image.new("RGB", (1500, 1500)), kind="png")
    with pytest.raises(BrokenPhotoError, match="more than 2 million pixels"):
        frames.load(path)


def test_the_limit_of_pillow_is_put_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with allow_large_images(), allow_large_images():
        assert Image.MAX_IMAGE_PIXELS == 500_000_000
    assert before == Image.MAX_IMAGE_PIXELS


def test_heic_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BrokenPhotoError, match=r'pip install "ns_sparseattn\[heic\]"'):
        decode_photo(tmp_path / "a.heic")


def test_heic_keeps_its_exif(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif.")
    path = write_photo(tmp_path / "a.heic", kind="heic", exif=camera_exif(make="Phones"))
    assert decode_photo(path).exif.make == "Phones"


def test_a_file_that_changes_after_loading_is_named(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", draw_view((96, 64)))
    (frame,) = frames.load(path).frames
    write_photo(path, draw_view((64, 96)))
    with pytest.raises(BrokenPhotoError, match="changed from 96 x 64 to 64 x 96"):
        frames.read_rgb(frame)
