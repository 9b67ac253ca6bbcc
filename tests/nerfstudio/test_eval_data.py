# SPDX-License-Identifier: Apache-2.0
"""``--eval-data``: photos of a second folder are posed with the first and kept for evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from ns_sparseattn.nerfstudio import scene_cache
from ns_sparseattn.nerfstudio.dataparser import SparseVGGTDataParserConfig
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.pipeline import ProcessOptions, WeightsOptions, process
from ns_sparseattn.testing.photos import draw_view, write_photo

TRAIN = ("a.jpg", "left/0.jpg", "right/0.jpg")
EVAL = ("0.jpg", "a.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of which those in ``held out`` are to be evaluated on; names repeat in both."""
    names = (*TRAIN, *(f"held out/{name}" for name in EVAL))
    for index, name in enumerate(names):
        write_photo(tmp_path / "photos" / name, draw_view((96, 64), index=index))
        split = "eval" if name.startswith("held out/") else "train"
        mask = tmp_path / "masks" / split / name.removeprefix("held out/")
        write_photo(mask.with_suffix(".png"), draw_view((96, 64)), kind="one_bit")
    return tmp_path / "photos"


def files(parser: DataParserConfig, split: str) -> list[Path]:
    outputs = parser.setup().get_dataparser_outputs(split)
    assert len(outputs.cameras) == len(outputs.image_filenames)
    if outputs.mask_filenames is not None:
        assert len(outputs.mask_filenames) == len(outputs.image_filenames)
        assert all(path.is_file() for path in outputs.mask_filenames)
    return outputs.image_filenames


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("factor", [1, 2])
def test_both_parsers_split_as_the_folders_do(
    photos: Path, tmp_path: Path, split: str, factor: int
) -> None:
    scene = process(
        ProcessOptions(
            data=photos,
            eval_data=photos / "held out",
            output_dir=tmp_path / "scene",
            weights=WeightsOptions(weights="seeded-small", device="cpu"),
            frames=FrameOptions(long_side=56, masks=tmp_path / "masks"),
        )
    ).folder
    settings: dict[str, Any] = {"data": scene.root, "downscale_factor": factor}
    images = scene.images if factor == 1 else scene.images_by_factor[factor]
    names = TRAIN if split == "train" else EVAL
    expected = [images / ("train" if split == "train" else "eval") / name for name in names]
    parser = ColmapDataParserConfig(**settings, masks_path=Path("masks"))
    assert files(parser, split) == expected
    flat = files(NerfstudioDataParserConfig(**settings), split)
    assert sorted(path.stat().st_ino for path in flat) == sorted(
        path.stat().st_ino for path in expected
    )


def test_no_split_is_written_without_it(photos: Path, tmp_path: Path) -> None:
    scene = process(
        ProcessOptions(
            data=photos,
            output_dir=tmp_path / "scene",
            weights=WeightsOptions(weights="seeded-small", device="cpu"),
            frames=FrameOptions(long_side=56),
        )
    ).folder
    assert not list(scene.root.glob("*.txt"))
    assert not [key for key in json.loads(scene.transforms.read_text()) if "_filenames" in key]


def test_dataparser_takes_it_too(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This process plays all of those that parse one after the other.
    monkeypatch.setattr(scene_cache, "_made_here", set())
    parser = SparseVGGTDataParserConfig(
        data=photos,
        eval_data=photos / "held out",
        weights="seeded-small",
        long_side=56,
        refine="none",
    )
    assert len(files(parser, "train")) == len(TRAIN)
    assert len(files(parser, "val")) == len(EVAL)
    # Other photos to evaluate on, or none, make another scene.
    write_photo(photos / "held out" / "b.jpg", draw_view((96, 64), index=9))
    assert len(files(parser, "val")) == len(EVAL) + 1
