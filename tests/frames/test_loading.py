# SPDX-License-Identifier: Apache-2.0
"""`frames.load` as a whole: order, sizes, broken files, and every hard case."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ns_sparseattn import frames
from ns_sparseattn.errors import BrokenPhotoError, BrokenPhotosError
from ns_sparseattn.frames import Frames
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.testing.photos import HardCase, draw_view, write_hard_case, write_photo

# Number of photos, width and height of the tensor (long side 56), at an ordinary size of 96 x 64.
LOADED: dict[HardCase, tuple[int, tuple[int, int]]] = {
    "degraded": (5, (56, 42)),
    "duplicates": (5, (56, 42)),
    "exif_rotated": (8, (56, 42)),
    "formats": (17, (56, 42)),
    "large_images": (2, (56, 42)),
    "mixed_sizes": (3, (56, 42)),
    "nested_tree": (6, (56, 42)),
    "portrait_landscape": (4, (56, 56)),
    "pure_rotation": (4, (56, 42)),
    "single_image": (1, (56, 42)),
    "two_identical": (2, (56, 42)),
    "two_images": (2, (56, 42)),
    "two_no_overlap": (2, (56, 42)),
    "two_scenes_mixed": (6, (56, 42)),
}
SMALL = FrameOptions(long_side=56)


@pytest.mark.parametrize("case", LOADED)
def test_hard_cases_load(case: HardCase, tmp_path: Path) -> None:
    num_photos, network_size = LOADED[case]
    loaded = frames.load(write_hard_case(tmp_path, case), SMALL)
    assert len(loaded) == num_photos
    assert loaded.network_size == network_size
    assert loaded.images.dtype == torch.uint8
    assert loaded.skipped == ()
    assert loaded.names == tuple(sorted(loaded.names, key=frames.natural_key))
    for frame in loaded.frames:
        assert frame.pixel_map.network_size == network_size
        assert frame.pixel_map.visible_share == 1.0
        assert frames.read_rgb(frame).shape == (*frame.size[::-1], 3)


def test_rotated_photos_show_the_upright_scene(tmp_path: Path) -> None:
    loaded = frames.load(write_hard_case(tmp_path, "exif_rotated"), SMALL)
    assert [frame.orientation for frame in loaded.frames] == list(range(1, 9))
    assert {frame.size for frame in loaded.frames} == {(96, 64)}
    upright = [write_photo(tmp_path / "u" / f"{i}.jpg", draw_view(index=i)) for i in range(8)]
    difference = loaded.images.float() - frames.load(upright, SMALL).images.float()
    assert float(difference.abs().mean()) < 2.0


def test_nested_photos_keep_their_folders(tmp_path: Path) -> None:
    loaded = frames.load(write_hard_case(tmp_path, "nested_tree"), SMALL)
    assert loaded.names[:3] == (
        "cam b/deeper/img_0.jpg",
        "cam b/deeper/img_1.jpg",
        "cam_a/img_0.jpg",
    )


@pytest.mark.parametrize("case", ["empty_folder", "video_only"])
def test_hopeless_cases_are_one_sentence(case: HardCase, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^The folder .* holds no photos[^\n]*\.$"):
        frames.load(write_hard_case(tmp_path, case), SMALL)


BROKEN = ("empty.jpg", "not_an_image.jpg", "trunc_half.jpg", "trunc_header.jpg")


def test_all_broken_photos_are_named_at_once(tmp_path: Path) -> None:
    write_hard_case(tmp_path, "corrupt")
    with pytest.raises(BrokenPhotosError, match="Cannot read 4 of 8 photos:") as caught:
        frames.load(tmp_path, SMALL)
    assert tuple(error.path.name for error in caught.value.broken) == BROKEN
    for name in BROKEN:
        assert f"{tmp_path / name}: " in str(caught.value)


def test_broken_photos_are_skipped_and_listed_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hard_case(tmp_path, "corrupt")
    loaded = frames.load(tmp_path, FrameOptions(long_side=56, skip_broken=True))
    assert loaded.names == ("img_0.jpg", "img_1.jpg", "img_2.jpg", "really_jpeg.png")
    assert all(frame.trainer_ready for frame in loaded.frames)
    skipped = {file.path.name: file.reason for file in loaded.skipped}
    assert set(skipped) == {*BROKEN, "notes.txt", "Thumbs.db"}
    assert skipped["empty.jpg"] == "the file is empty (0 bytes)"
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == len(BROKEN)
    assert f"Left out {tmp_path / 'empty.jpg'}: the file is empty (0 bytes)." in warnings


@pytest.mark.parametrize("skip_broken", [False, True])
def test_one_broken_photo_alone_is_an_error(skip_broken: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no photo")
    options = FrameOptions(skip_broken=skip_broken)
    with pytest.raises(BrokenPhotoError, match=r"^Cannot read .*a\.jpg: it is not an image"):
        frames.load(tmp_path, options)
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(BrokenPhotosError, match="Cannot read 2 of 2 photos"):
        frames.load(tmp_path, options)


def test_ten_broken_photos_are_named_at_most(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(BrokenPhotosError) as caught:
        frames.load(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert "9.jpg" in lines[10]
    assert lines[11].strip() == "and 2 more"
    assert len(caught.value.broken) == 12
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


def test_a_dangling_link_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(BrokenPhotoError, match="no such file or directory"):
        frames.load(tmp_path)


def test_a_text_is_not_a_photo(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(BrokenPhotoError, match="it is not an image"):
        frames.load(tmp_path / "notes.txt")


def test_network_pixels_are_those_of_each_photo_by_itself(tmp_path: Path) -> None:
    """Mixed sizes are padded with white, centred; the photo's own pixels stay the same."""
    landscape = write_photo(tmp_path / "a.png", draw_view((96, 64)), kind="png")
    portrait = write_photo(tmp_path / "b.png", draw_view((64, 96)), kind="png")
    both = frames.load(tmp_path, SMALL)
    assert both.network_size == (56, 56)
    for i, path in enumerate((landscape, portrait)):
        alone = frames.load(path, SMALL)
        x0, y0, x1, y1 = both.frames[i].pixel_map.box
        assert torch.equal(both.images[i, :, y0:y1, x0:x1], alone.images[0])
        padding = ~both.frames[i].pixel_map.valid_mask()
        assert int(padding.sum()) == 56 * 14
        assert bool((both.images[i][:, padding] == 255).all())
    assert both.frames[0].pixel_map.box == (0, 7, 56, 49)


def test_full_resolution_and_network_pixels_agree(tmp_path: Path) -> None:
    """A photo of network size is not resized, so that both ways give the same bytes."""
    loaded = frames.load(write_photo(tmp_path / "a.png", draw_view((56, 42)), kind="png"), SMALL)
    levels = frames.read_rgb(loaded.frames[0])
    assert np.array_equal(loaded.images[0].permute(1, 2, 0).numpy(), levels)


@pytest.mark.parametrize("rule", ["fit", "crop", "pad"])
def test_all_rules_load(rule: str, tmp_path: Path) -> None:
    write_hard_case(tmp_path, "portrait_landscape")
    loaded = frames.load(tmp_path, FrameOptions(long_side=56, resize=rule))  # type: ignore[arg-type]
    assert loaded.network_size == (56, 56)
    shares = [frame.pixel_map.visible_share for frame in loaded.frames]
    assert shares == ([1.0, 2 / 3, 1.0, 2 / 3] if rule == "crop" else [1.0] * 4)


def test_loading_is_deterministic_and_reports_progress(tmp_path: Path) -> None:
    write_hard_case(tmp_path, "formats")
    seen: list[tuple[int, int]] = []

    def load() -> Frames:
        return frames.load(tmp_path, SMALL, progress=lambda done, total: seen.append((done, total)))

    first, second = load(), load()
    assert seen == [(done, 17) for done in range(1, 18)] * 2
    assert first.frames == second.frames
    assert torch.equal(first.images, second.images)


def test_an_interrupt_stops_loading(tmp_path: Path) -> None:
    write_hard_case(tmp_path, "two_scenes_mixed")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frames.load(tmp_path, SMALL, progress=interrupt)


def test_importing_frames_is_light() -> None:
    heavy = ("nerfstudio", "pycolmap", "triton", "pillow_heif", "torchvision")
    code = f"import sys, ns_sparseattn.frames; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# The real awkward sets: number of photos and of other files listed.
REAL_CASES = {
    "degraded": (14, 0),
    "duplicates": (12, 0),
    "exif_rotated": (12, 0),
    "formats": (12, 0),
    "large_images": (3, 0),
    "mixed_sizes": (10, 0),
    "nested_tree": (9, 0),
    "portrait_landscape": (9, 0),
    "pure_rotation": (10, 0),
    "single_image": (1, 0),
    "two_identical": (2, 0),
    "two_images": (2, 0),
    "two_no_overlap": (2, 0),
    "two_scenes_mixed": (14, 0),
    "corrupt": (10, 6),
}


@pytest.mark.parametrize("case", REAL_CASES)
def test_real_hard_cases_load(case: str, shared: Path) -> None:
    options = FrameOptions(skip_broken=case == "corrupt")
    loaded = frames.load(shared / "data" / "hard" / case / "images", options)
    assert (len(loaded), len(loaded.skipped)) == REAL_CASES[case]
    assert max(loaded.network_size) == 518


def test_both_splits_need_a_photo(tmp_path: Path) -> None:
    write_photo(tmp_path / "train/a.jpg")
    (tmp_path / "held").mkdir()
    (tmp_path / "held/b.jpg").write_bytes(b"")
    options = FrameOptions(long_side=56, skip_broken=True)
    with pytest.raises(ValueError, match=r"No photo to evaluate on can be read\.$"):
        frames.load(tmp_path / "train", options, eval_data=tmp_path / "held")
    write_photo(tmp_path / "held/c.jpg")
    loaded = frames.load(tmp_path / "train", options, eval_data=tmp_path / "held")
    assert {frame.name: frame.is_eval for frame in loaded.frames} == {
        "train/a.jpg": False,
        "eval/c.jpg": True,
    }
