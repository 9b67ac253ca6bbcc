# SPDX-License-Identifier: Apache-2.0
"""Photos take the size that their model was published with."""

from __future__ import annotations

from pathlib import Path

import pytest

from ns_sparseattn import frames
from ns_sparseattn.frames.decode import decode_photo, read_upright_size
from ns_sparseattn.frames.sizing import Sizing
from ns_sparseattn.models.registry import MODELS
from ns_sparseattn.options import FrameOptions, SizingRule
from ns_sparseattn.testing.photos import HardCase, draw_view, write_hard_case, write_photo


@pytest.mark.parametrize(
    ("rule", "long_side", "size"),
    [
        ("auto", 518, (518, 392)),
        ("fit", 518, (518, 392)),
        # 255 000 pixels, and as many as go with a smaller side.
        ("area", 518, (574, 434)),
        ("area", 112, (126, 84)),
        ("cover", 518, (518, 392)),
        ("cover", 112, (112, 84)),
    ],
)
def test_network_size(tmp_path: Path, rule: SizingRule, long_side: int, size: object) -> None:
    photo = write_photo(tmp_path / "a.png", draw_view((640, 480)), kind="png")
    loaded = frames.load(photo, FrameOptions(resize=rule, long_side=long_side))
    assert loaded.network_size == size
    assert (loaded.usable_pixels() is None) == (loaded.frames[0].pixel_map.box[2:] == size)


def test_cover_gives_photos_of_all_shapes_one_size_without_padding(tmp_path: Path) -> None:
    write_hard_case(tmp_path, "portrait_landscape")
    loaded = frames.load(tmp_path, FrameOptions(resize="cover", long_side=112))
    assert loaded.usable_pixels() is None
    assert min(frame.pixel_map.visible_share for frame in loaded.frames) < 1
    fitted = frames.load(tmp_path, FrameOptions(long_side=112))
    usable = fitted.usable_pixels()
    assert usable is not None
    assert not usable.all()


def test_sizes_are_read_without_decoding(tmp_path: Path) -> None:
    cases: tuple[HardCase, ...] = ("formats", "exif_rotated")
    for case in cases:
        folder = write_hard_case(tmp_path / case, case)
        for photo in frames.load(folder).frames:
            assert read_upright_size(photo.path) == decode_photo(photo.path).rgb.size


def test_broken_photos_do_not_choose_the_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no photo")
    photo = write_photo(tmp_path / "b.png", draw_view((64, 48)), kind="png")
    options = FrameOptions(resize="cover")
    assert Sizing.of(options, [tmp_path / "a.png", photo]) == Sizing.of(options, [photo])
    assert Sizing.of(options, [tmp_path / "a.png"]).cover_size == (518, 518)


def test_models_have_their_published_rule() -> None:
    rules = {name: entry.sized(FrameOptions()).resize for name, entry in MODELS.items()}
    assert rules == {"vggt": "fit", "pi3": "area", "pi3x": "area", "mapanything": "cover"}
    assert MODELS["pi3"].sized(FrameOptions(resize="pad")).resize == "pad"
