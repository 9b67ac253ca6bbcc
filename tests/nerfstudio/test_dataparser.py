# SPDX-License-Identifier: Apache-2.0
"""The dataparser gives what nerfstudio's own ``colmap`` dataparser gives on the same scene."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.plugins.registry_dataparser import discover_dataparsers

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.models import MODELS
from ns_sparseattn.nerfstudio import dataparser, scene_cache
from ns_sparseattn.nerfstudio.dataparser import SparseVGGTDataParserConfig, process_options
from ns_sparseattn.nerfstudio.scene_cache import CACHE_FOLDER
from ns_sparseattn.options import FrameOptions, SceneOptions
from ns_sparseattn.pipeline import AttentionOptions, ProcessOptions
from ns_sparseattn.testing.photos import draw_view, write_photo

from .conftest import write_views

NUM_VIEWS = 9


def config(photos: Path, **settings: Any) -> SparseVGGTDataParserConfig:
    return SparseVGGTDataParserConfig(
        **{
            "data": photos,
            "weights": "seeded-small",
            "long_side": 112,
            "refine": "none",
            **settings,
        }
    )


def parse(parser: ColmapDataParserConfig, split: str = "train") -> DataparserOutputs:
    return parser.setup().get_dataparser_outputs(split)


def scenes(photos: Path) -> list[Path]:
    return [path for path in (photos / CACHE_FOLDER).iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that have been parsed once."""
    photos = write_views(tmp_path_factory.mktemp("parsed") / "photos", NUM_VIEWS)
    parse(config(photos))
    # Evaluation is refused in the process that made the scene, and this one plays all processes.
    scene_cache._made_here.clear()
    return photos


def test_outputs_are_those_of_the_colmap_parser(parsed: Path) -> None:
    (scene,) = scenes(parsed)
    for split in ("train", "val", "test"):
        ours = parse(config(parsed), split)
        theirs = parse(ColmapDataParserConfig(data=scene), split)
        assert ours.image_filenames == theirs.image_filenames
        for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height"):
            assert torch.equal(getattr(ours.cameras, name), getattr(theirs.cameras, name))
        assert torch.equal(ours.dataparser_transform, theirs.dataparser_transform)
        assert ours.dataparser_scale == theirs.dataparser_scale
        for name in ("points3D_xyz", "points3D_rgb"):
            assert torch.equal(ours.metadata[name], theirs.metadata[name])
        assert len(ours.metadata["points3D_xyz"]) > 0


def test_options_of_the_colmap_parser_are_passed_on(parsed: Path) -> None:
    settings: dict[str, Any] = {"orientation_method": "none", "scale_factor": 3.0}
    ours = parse(config(parsed, **settings, downscale_factor=2))
    theirs = parse(ColmapDataParserConfig(data=scenes(parsed)[0], **settings, downscale_factor=2))
    assert torch.equal(ours.cameras.camera_to_worlds, theirs.cameras.camera_to_worlds)
    assert ours.image_filenames == theirs.image_filenames
    assert ours.image_filenames[0].parent.name == "images_2"
    assert int(ours.cameras.width[0]) == 48


@pytest.mark.parametrize(
    ("settings", "num_train", "num_eval"),
    [
        pytest.param({}, 7, 2, id="interval_8"),
        pytest.param({"eval_interval": 3}, 6, 3, id="interval_3"),
        pytest.param({"eval_mode": "fraction", "train_split_fraction": 0.5}, 5, 4, id="fraction"),
        pytest.param({"eval_mode": "all"}, 9, 9, id="all"),
    ],
)
def test_splits(parsed: Path, settings: dict[str, Any], num_train: int, num_eval: int) -> None:
    for split, expected in (("train", num_train), ("val", num_eval), ("test", num_eval)):
        outputs = parse(config(parsed, **settings), split)
        assert len(outputs.image_filenames) == len(outputs.cameras) == expected


def test_second_call_reads_the_cache(parsed: Path) -> None:
    (scene,) = scenes(parsed)
    before = (scene / "manifest.json").stat()
    parse(config(parsed), "val")
    assert scenes(parsed) == [scene]
    after = (scene / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_single_photo_serves_for_training_and_evaluation(tmp_path: Path) -> None:
    photos = write_views(tmp_path / "photos", 1)
    for split in ("train", "val"):
        assert len(parse(config(photos), split).image_filenames) == 1


def test_masks_are_passed_on_and_named_in_the_outputs(tmp_path: Path) -> None:
    photos = write_views(tmp_path / "photos", 3)
    for i in range(3):
        write_photo(tmp_path / f"masks/img_{i}.png", draw_view((96, 64)), kind="one_bit")
    outputs = parse(config(photos, photo_masks=tmp_path / "masks", eval_mode="all"))
    assert outputs.mask_filenames is not None
    assert [path.name for path in outputs.mask_filenames] == [f"img_{i}.png" for i in range(3)]
    assert all(path.is_file() for path in outputs.mask_filenames)


def test_summary_names_no_next_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parse(config(write_views(tmp_path / "photos", 2)))
    printed = capfd.readouterr()
    assert "All DONE" in printed.out
    assert "Next:" not in printed.out
    assert "load photos" in printed.err


def test_weights_that_ship_see_photos_at_their_own_size(tmp_path: Path) -> None:
    photos = write_views(tmp_path / "photos", 3)
    outputs = parse(config(photos, weights="tiny", commercial=True, long_side=None))
    assert len(outputs.image_filenames) == 3 - 1
    (manifest,) = (photos / CACHE_FOLDER).glob("*/manifest.json")
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    assert facts["weights"]["name"] == "tiny"
    assert facts["options"]["frames"]["long_side"] is None


def test_bad_options_are_refused_before_anything_runs(tmp_path: Path) -> None:
    photos = write_views(tmp_path / "photos", 1)
    with pytest.raises(ValueError, match="`density` must be above 0 and at most 1, got 2"):
        parse(config(photos, attention="block-sparse", density=2.0))
    assert not (photos / CACHE_FOLDER).exists()


def test_every_own_option_reaches_the_pipeline(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "eval_data": tmp_path / "held",
        "weights": "seeded",
        "commercial": True,
        "device": "cpu",
        "attention": "block-sparse",
        "density": 0.25,
        "mass": 0.75,
        "reference": "img_1.jpg",
        "intrinsics": "exif",
        "poses": tmp_path / "poses",
        "metric_poses": True,
        "depth": tmp_path / "depth",
        "depth_unit": 0.5,
        "photo_masks": tmp_path,
        "skip_broken": True,
        "resize": "crop",
        "long_side": 280,
        "camera_mode": "single",
        "max_points": 17,
        "refine": "full",
        "accept_untrusted": True,
    }
    inherited, all_options = (
        {field.name for field in dataclasses.fields(config_class)}
        for config_class in (ColmapDataParserConfig, SparseVGGTDataParserConfig)
    )
    own = all_options - inherited
    assert own - {"cache_dir"} == set(settings)
    reached = repr(process_options(config(tmp_path, **settings)))
    default = SparseVGGTDataParserConfig()
    for name, value in settings.items():
        assert value != getattr(default, name)
        assert f"{'masks' if name == 'photo_masks' else name}={value!r}" in reached


def test_choices_and_defaults_are_those_of_the_pipeline(tmp_path: Path) -> None:
    # The parser's module may not import the pipeline, so it repeats them.
    ours = get_type_hints(SparseVGGTDataParserConfig)
    for name, owner in (
        ("attention", AttentionOptions),
        ("resize", FrameOptions),
        ("camera_mode", SceneOptions),
    ):
        assert get_args(ours[name]) == get_args(get_type_hints(owner)[name])
    defaults = process_options(SparseVGGTDataParserConfig(data=tmp_path))
    assert defaults == ProcessOptions(data=tmp_path, output_dir=Path())


def test_a_scene_that_photos_do_not_confirm_is_kept_but_not_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write_views(tmp_path / "photos", 3)
    doubtful = config(photos, refine="fast")
    for _ in range(2):  # Made, then taken from the cache.
        with pytest.raises(ReconstructionError, match="cannot be trusted: .*accept-untrusted True"):
            parse(doubtful)
    (scene,) = scenes(photos)
    accepted = dataclasses.replace(doubtful, accept_untrusted=True)
    assert len(parse(accepted).image_filenames) == 2
    assert "cannot be trusted" in caplog.text
    assert scenes(photos) == [scene]
    # Another mode is another scene; nobody has looked at that one.
    assert len(parse(config(photos)).image_filenames) == 2
    assert len(scenes(photos)) == 2


def test_config_survives_the_file_that_nerfstudio_writes(tmp_path: Path) -> None:
    before = config(tmp_path, cache_dir=tmp_path / "cache", density=0.5)
    # As nerfstudio writes and reads config.yml.
    after = yaml.load(yaml.dump(before), Loader=yaml.Loader)
    assert after == before
    assert isinstance(after, SparseVGGTDataParserConfig)
    assert after.setup().config == before


@pytest.mark.parametrize("model", list(MODELS))
def test_each_model_has_a_parser_of_its_own(model: str, tmp_path: Path) -> None:
    specification = getattr(dataparser, f"sparse_{model}_data")
    found = dataclasses.replace(specification.config, data=tmp_path)
    assert process_options(found).model == model
    # The model is no option of the command line.
    assert "model" not in {field.name for field in dataclasses.fields(found)}
    after = yaml.load(yaml.dump(found), Loader=yaml.Loader)
    assert after == found
    assert process_options(after).model == model


def test_nerfstudio_discovers_it() -> None:
    found, descriptions = discover_dataparsers()
    assert isinstance(found["sparse-vggt-data"], SparseVGGTDataParserConfig)
    assert "VGGT" in descriptions["sparse-vggt-data"]
    assert isinstance(all_dataparsers["sparse-vggt-data"], SparseVGGTDataParserConfig)
    assert {"nerfstudio-data", "colmap"} <= set(all_dataparsers)


def test_module_imports_nothing_that_can_fail() -> None:
    code = (
        "import json, sys\n"
        "import nerfstudio.plugins.registry_dataparser\n"
        "import nerfstudio.data.dataparsers.colmap_dataparser\n"
        "before = set(sys.modules)\n"
        "import ns_sparseattn.nerfstudio.dataparser\n"
        "print('NEW', json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout.partition("NEW")[2]) == [
        "ns_sparseattn",
        "ns_sparseattn.nerfstudio",
        "ns_sparseattn.nerfstudio.dataparser",
    ]
