# SPDX-License-Identifier: Apache-2.0
"""Masks are matched by name, have the size of the upright photo, and black means ignore."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn import frames
from ns_sparseattn.frames import Frames
from ns_sparseattn.frames.masks import read_mask_file
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.testing.photos import draw_view, write_photo

SIZE = (96, 64)


def _half(size: tuple[int, int] = SIZE) -> Image.Image:
    """A mask that uses the left half."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def _write_mask(path: Path, mask: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (_half() if mask is None else mask).save(path)
    return path


def _load(tmp_path: Path, **options: object) -> Frames:
    masks = tmp_path / "masks"
    return frames.load(tmp_path / "imgs", FrameOptions(masks=masks, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg.png", "a.jpg", "a.PNG", "A.png", "a.tif", "a.bmp", "a.jpeg"]
)
def test_masks_are_matched_by_name(name: str, tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/sub/a.jpg", draw_view(SIZE))
    path = _write_mask(tmp_path / "masks/sub" / name)
    (frame,) = _load(tmp_path).frames
    assert frame.mask_path == path
    mask = frames.read_mask(frame)
    assert mask is not None
    assert mask[:, :47].all()
    assert not mask[:, 49:].any()


def test_the_most_specific_name_wins(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    for name in ("a.png", "a.bmp", "a.jpg", "a.jpg.png"):
        _write_mask(tmp_path / "masks" / name)
    for name in ("a.jpg.png", "a.jpg", "a.png", "a.bmp"):
        (frame,) = _load(tmp_path).frames
        assert frame.mask_path == tmp_path / "masks" / name
        (tmp_path / "masks" / name).unlink()


def test_network_masks_follow_the_photos(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view((640, 480)))
    write_photo(tmp_path / "imgs/b.jpg", draw_view((480, 640)))
    _write_mask(tmp_path / "masks/a.png", _half((640, 480)))
    loaded = _load(tmp_path)
    assert loaded.masks is not None
    valid = torch.stack([frame.pixel_map.valid_mask() for frame in loaded.frames])
    assert loaded.masks.shape == (2, 518, 518)
    assert torch.equal(loaded.masks[0], valid[0] & (torch.arange(518) < 259))
    # A photo without a mask is used whole, but its padding never is.
    assert torch.equal(loaded.masks[1], valid[1])
    assert frames.read_mask(loaded.frames[1]) is None


def test_photos_without_masks_and_masks_without_photos_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        write_photo(tmp_path / f"imgs/{name}.jpg", draw_view(SIZE))
    _write_mask(tmp_path / "masks/a.png")
    _write_mask(tmp_path / "masks/other/z.png")
    with caplog.at_level(logging.INFO, logger="ns_sparseattn"):
        _load(tmp_path)
    messages = [(record.levelname, record.message) for record in caplog.records]
    assert ("INFO", "2 of 3 photos have no mask and are used whole: b.jpg, c.jpg.") in messages
    assert ("WARNING", "1 masks match no photo: other/z.png.") in messages


def test_a_mask_that_leaves_nothing_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    _write_mask(tmp_path / "masks/a.png", Image.new("L", SIZE))
    loaded = _load(tmp_path)
    assert loaded.masks is not None
    assert not bool(loaded.masks.any())
    assert "The masks leave nothing of 1 photos: a.jpg." in caplog.messages


def test_masks_that_match_nothing_are_an_error(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    with pytest.raises(ValueError, match="The folder of masks .*masks does not exist"):
        _load(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="The folder of masks .*masks holds no images"):
        _load(tmp_path)
    _write_mask(tmp_path / "masks/mask_of_a.png")
    with pytest.raises(ValueError, match=r"a\.jpg should have the mask a\.png, .*mask_of_a\.png"):
        _load(tmp_path)


def test_the_photos_are_not_their_own_masks(tmp_path: Path) -> None:
    write_photo(tmp_path / "masks/a.jpg", draw_view(SIZE))
    with pytest.raises(ValueError, match="must not be that of the photos"):
        frames.load([tmp_path / "masks/a.jpg"], FrameOptions(masks=tmp_path / "masks"))


def test_masks_inside_the_photo_folder_are_no_photos(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", draw_view(SIZE))
    _write_mask(tmp_path / "masks/a.png")
    loaded = frames.load(tmp_path, FrameOptions(masks=tmp_path / "masks"))
    assert loaded.names == ("a.jpg",)
    assert loaded.skipped == ()


def test_a_mask_of_another_size_names_both(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    _write_mask(tmp_path / "masks/a.png", _half((48, 32)))
    with pytest.raises(ValueError, match=r"a\.png has 48 x 32 pixels, its photo has 96 x 64\.$"):
        _load(tmp_path)


def test_masks_belong_to_the_upright_photo(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE), orientation=6)
    _write_mask(tmp_path / "masks/a.png")
    assert _load(tmp_path).frames[0].size == SIZE
    _write_mask(tmp_path / "masks/a.png", _half((64, 96)))
    with pytest.raises(ValueError, match="before its EXIF rotation, turn it upright"):
        _load(tmp_path)


def test_a_broken_mask_is_named_even_when_broken_photos_are_skipped(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    write_photo(tmp_path / "imgs/b.jpg", draw_view(SIZE))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"The mask .*a\.png cannot be read: it is not an image"):
        _load(tmp_path, skip_broken=True)


def _as(mode: str, levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("high", [1, 128, 255])
def test_everything_but_black_is_used(mode: str, high: int, tmp_path: Path) -> None:
    expected = np.zeros((4, 6), dtype=np.bool_)
    expected[1:3, 2:5] = True
    levels = expected * (255 if mode == "1" else high)
    _as(mode, levels).save(tmp_path / "m.png")
    assert np.array_equal(read_mask_file(tmp_path / "m.png", (6, 4)), expected)


def test_16_bit_and_colour_masks(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert read_mask_file(tmp_path / "deep.png", (3, 1)).tolist() == [[False, True, True]]
    colours = np.array([[[0, 0, 0], [0, 0, 1], [9, 0, 0]]], dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    assert read_mask_file(tmp_path / "colours.png", (3, 1)).tolist() == [[False, True, True]]


def test_transparent_pixels_of_a_mask_are_ignored(tmp_path: Path) -> None:
    rgba = np.full((1, 2, 4), 255, dtype=np.uint8)
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "m.png")
    assert read_mask_file(tmp_path / "m.png", (2, 1)).tolist() == [[False, True]]


def test_noise_of_a_jpeg_mask_is_not_used(tmp_path: Path) -> None:
    # A slanted edge, so that the compression's blocks do not follow it.
    used = np.add.outer(np.arange(64), np.arange(96)) < 80
    path = _write_mask(tmp_path / "m.jpg", _as("L", used * 255))
    with Image.open(path) as stored:
        assert (np.asarray(stored)[~used] > 0).any()
    assert (read_mask_file(path, SIZE) == used).mean() > 0.99


def test_mask_file_and_transparency_are_combined(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.png", draw_view(SIZE), kind="rgba")
    _write_mask(tmp_path / "masks/a.png")
    loaded = _load(tmp_path)
    mask = frames.read_mask(loaded.frames[0])
    assert mask is not None
    assert not mask[:, :16].any()
    assert mask[:, 16:48].all()
    assert not mask[:, 48:].any()
    assert loaded.masks is not None
    share = float(loaded.masks.float().mean()) / loaded.frames[0].pixel_map.visible_share
    assert share == pytest.approx(1 / 3, abs=0.02)


def test_names_that_differ_by_suffix_alone_matter_for_masks(tmp_path: Path) -> None:
    write_photo(tmp_path / "imgs/a.jpg", draw_view(SIZE))
    write_photo(tmp_path / "imgs/a.png", draw_view(SIZE, index=1), kind="png")
    assert frames.load(tmp_path / "imgs").names == ("a.jpg", "a.png")
    _write_mask(tmp_path / "masks/a.jpg.png")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would share one mask"):
        _load(tmp_path)
    write_photo(tmp_path / "imgs/a.png", draw_view(SIZE, index=1), kind="rgba")
    with pytest.raises(ValueError, match="would share one mask"):
        frames.load(tmp_path / "imgs")
