# SPDX-License-Identifier: Apache-2.0
"""The attention report: its numbers, its pictures, its folder, and the command."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn import cli, console
from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    BlockMap,
    BlockSparsePolicy,
    DensePolicy,
    FramePolicy,
    TokenLayout,
    record_kept_mass,
)
from ns_sparseattn.attention_report import (
    REPORT_NAME,
    AttentionReport,
    Report,
    make_report,
    write_report,
)
from ns_sparseattn.attention_report import folder as report_folder
from ns_sparseattn.attention_report.block_picture import draw_block_map
from ns_sparseattn.models import MODELS
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.pipeline import AttentionOptions, ProcessOptions, WeightsOptions
from ns_sparseattn.testing.photos import draw_view, write_photo
from ns_sparseattn.testing.recipe import make_qkv

TOKENS = TokenLayout(num_frames=4, num_special=5, grid_height=12, grid_width=16)
PLAN = AttentionPlan(
    default=DensePolicy(),
    layers={
        0: FramePolicy(),
        1: BlockSparsePolicy(max_density=(0.25, 0.5), coarse=False),
        2: BlockSparsePolicy(mass=0.6, coarse=True),
    },
)


@pytest.fixture(scope="module")
def measured() -> tuple[Report, BlockMap, dict[int, Any]]:
    """A report of four layers under four policies, and the map of layer 2."""
    run = AttentionRun(PLAN, TOKENS, 4)
    with record_kept_mass(patterns_of=[2], num_queries=64) as masses:
        for layer in range(4):
            run.attend(
                layer, *make_qkv(f"report/{layer}", (1, 2, TOKENS.num_tokens, 32), strength=1)
            )
    pattern: Any = masses[2].pattern
    return make_report(run.stats, masses), pattern.block_map, dict(masses)


def test_numbers_are_those_of_the_layers(
    measured: tuple[Report, BlockMap, dict[int, Any]],
) -> None:
    report, block_map, masses = measured
    frame, fixed, by_mass, dense = report.layers
    assert [layer.layer for layer in report.layers] == [0, 1, 2, 3]
    assert [layer.lists is None for layer in report.layers] == [True, False, False, True]
    for head in dense.heads:
        assert head.density_min == head.density_max == head.kept_mass_mean == 1.0
        assert head.relative_error < 1e-6
        assert head.kept_mass_with_coarse_mean is None
    for head in frame.heads:
        assert head.density_min == head.density_max == pytest.approx(0.25)
    # Six rows of twelve blocks: 3 and 6 of them, and the special tokens' 20 keys of 788.
    assert fixed.lists is not None
    assert fixed.lists.num_key_blocks == 12
    assert {n: count for n, count in enumerate(fixed.lists.counts) if count} == {3: 6, 6: 6}
    for head, share in zip(fixed.heads, (0.25, 0.5), strict=True):
        assert head.density_median == pytest.approx((768 * share + 20) / 788)
        assert head.density_min == head.density_max == pytest.approx(head.density_mean)
    assert by_mass.lists is not None
    assert sum(n * count for n, count in enumerate(by_mass.lists.counts)) == len(block_map.columns)
    for head in by_mass.heads:
        kept = masses[2]
        assert head.kept_mass_mean == pytest.approx(float(kept.mass[0, head.head].mean()))
        assert head.kept_mass_p5 == pytest.approx(float(kept.mass[0, head.head].quantile(0.05)))
        assert head.kept_mass_with_coarse_mean is not None
        assert head.kept_mass_mean < head.kept_mass_with_coarse_mean < 1
        assert head.relative_error == pytest.approx(float(kept.relative_error[0, head.head]))
        assert head.density_min <= head.density_median <= head.density_max


def test_layers_that_were_not_measured_are_named() -> None:
    run = AttentionRun(AttentionPlan.dense(), TOKENS, 1)
    with pytest.raises(ValueError, match="`stats` must hold at least one layer"):
        make_report(run.stats, {})
    run.attend(0, *make_qkv("report", (1, 2, TOKENS.num_tokens, 32), strength=1))
    with pytest.raises(ValueError, match="Layer 0 was not measured"):
        make_report(run.stats, {})


@pytest.mark.parametrize("max_side", [3, 7, 100])
def test_a_picture_of_a_map_shows_the_share_of_its_blocks(max_side: int) -> None:
    mask = torch.rand(1, 2, 9, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    block_map = BlockMap.from_mask(mask, num_full_q_blocks=2, num_sink_k_blocks=3)
    full = block_map.to_mask()[0, 1].double()
    picture = draw_block_map(block_map, 1, max_side=max_side)
    height, width = min(9, max_side), min(20, max_side)
    assert picture.shape == (height, width)
    rows, columns = torch.arange(9) * height // 9, torch.arange(20) * width // 20
    for i in range(height):
        for j in range(width):
            cell = full[rows == i][:, columns == j]
            assert float(picture[i, j]) == pytest.approx(float(cell.mean()))


def _content(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / REPORT_NAME).read_text(encoding="utf-8"))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def written(
    measured: tuple[Report, BlockMap, dict[int, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the report."""
    report, block_map, _ = measured
    target = tmp_path_factory.mktemp("written") / "report"
    files = write_report(report, target, facts={"model": "none"}, map_of=(2, block_map))
    assert files[0] == REPORT_NAME
    assert sorted(path.name for path in target.iterdir()) == sorted(files)
    return target


def test_a_folder_has_the_numbers_and_pictures_that_are_not_blank(
    measured: tuple[Report, BlockMap, dict[int, Any]], written: Path
) -> None:
    content = _content(written)
    assert content["model"] == "none"
    assert content["pictures"] == [
        "block-maps-layer-02.png",
        "heads.png",
        "list-lengths.png",
        "times.png",
    ]
    assert [len(layer["heads"]) for layer in content["layers"]] == [2, 2, 2, 2]
    assert content["layers"][1]["kept_mass"]["mean"] == measured[0].layers[1].kept_mass.mean
    assert content["layers"][3]["lists"] is None
    for name in content["pictures"]:
        pixels = _pixels(written / name)
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_same_numbers_give_the_same_bytes(
    measured: tuple[Report, BlockMap, dict[int, Any]], written: Path, tmp_path: Path
) -> None:
    report, block_map, _ = measured
    write_report(report, tmp_path / "b", facts={"model": "none"}, map_of=(2, block_map))
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_failure_leaves_what_was_there(
    measured: tuple[Report, BlockMap, dict[int, Any]],
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(written, tmp_path / "old")

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(report_folder, "draw_times", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="disk is full"):
            write_report(measured[0], tmp_path / name, facts={}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name for path in (tmp_path / "old").iterdir()} == {
        path.name for path in written.iterdir()
    }
    assert _content(tmp_path / "old")["model"] == "none"


def test_facts_must_not_hide_numbers(
    measured: tuple[Report, BlockMap, dict[int, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must not use the entries"):
        write_report(measured[0], tmp_path / "other", facts={"layers": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "photos"
    for i in range(5):
        write_photo(folder / f"img_{i}.jpg", draw_view((96, 64), index=i))
    return folder


def _options(photos: Path, output_dir: Path, **options: Any) -> AttentionReport:
    return AttentionReport(
        data=photos,
        output_dir=output_dir,
        long_side=112,
        weights=WeightsOptions(weights="seeded-small", device="cpu"),
        num_queries=32,
        **options,
    )


HALF = AttentionOptions(attention="block-sparse", density=0.5)


def test_a_run_on_photos_reports_all_layers(photos: Path, tmp_path: Path) -> None:
    report, files = _options(photos, tmp_path / "report", attention=HALF).run()
    content = _content(tmp_path / "report")
    assert [layer["layer"] for layer in content["layers"]] == list(range(len(report.layers)))
    for layer in content["layers"]:
        assert layer["policy"] == "block-sparse (density 0.5, coarse)"
        assert 0.5 < layer["density"] < 0.75, "half of the patches' blocks, and all special tokens"
        assert 0 < layer["selection_ms"] < layer["time_ms"]
        assert layer["kept_mass"]["num_queries"] == 32
        assert 0 < layer["kept_mass"]["p5"] <= layer["kept_mass"]["mean"] < 1
        assert layer["kept_mass"]["mean"] < layer["kept_mass"]["mean_with_coarse"]
        assert 0 < layer["kept_mass"]["relative_error"] < 1
    assert content["photos"] == [f"img_{i}.jpg" for i in range(5)]
    assert content["weights"]["name"] == "seeded-small"
    assert "unverified" in content["notes"][0]
    middle = len(report.layers) // 2
    assert f"block-maps-layer-{middle:02d}.png" in files


@pytest.mark.parametrize("model", [name for name in MODELS if name != "vggt"])
def test_every_model_can_be_reported_on(photos: Path, tmp_path: Path, model: str) -> None:
    options = AttentionOptions(attention="balanced")
    _options(photos, tmp_path / "report", model=model, attention=options, max_frames=2).run()
    content = _content(tmp_path / "report")
    assert content["model"] == model
    policies = [layer["policy"] for layer in content["layers"]]
    assert any(policy.startswith("block-sparse") for policy in policies)
    assert len([name for name in content["pictures"] if name.startswith("block-maps")]) == 1


def test_some_photos_spread_over_the_folder_may_do(photos: Path, tmp_path: Path) -> None:
    _options(photos, tmp_path / "report", attention=HALF, max_frames=2, map_layer=0).run()
    content = _content(tmp_path / "report")
    assert content["photos"] == ["img_0.jpg", "img_2.jpg"]
    assert content["num_photos_found"] == 5
    assert "block-maps-layer-00.png" in content["pictures"]


def test_a_dense_run_has_neither_lists_nor_maps(photos: Path, tmp_path: Path) -> None:
    _options(photos, tmp_path / "report").run()
    content = _content(tmp_path / "report")
    assert content["pictures"] == ["heads.png", "times.png"]
    assert all(layer["kept_mass"]["mean"] == 1.0 for layer in content["layers"])
    with pytest.raises(ValueError, match=r"`map_layer` must be .*one of \[\], got 1"):
        _options(photos, tmp_path / "other", map_layer=1).run()
    assert not (tmp_path / "other").exists()


def test_reports_are_replaced_only_if_asked_and_other_folders_never(
    photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "report"
    _options(photos, target, max_frames=1).run()
    with pytest.raises(ValueError, match="already holds a report, .* add --overwrite"):
        _options(photos, target).run()
    _options(photos, target, max_frames=2, overwrite=True).run()
    assert len(_content(target)["photos"]) == 2
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"with notes.txt in it: choose another"):
        _options(photos, target, overwrite=True).run()
    with pytest.raises(ValueError, match="must not lie in the folder of photos"):
        _options(photos, photos / "report").run()
    with pytest.raises(ValueError, match="img_0.jpg.* in it: choose another"):
        _options(photos, photos, overwrite=True).run()
    assert len(list(photos.iterdir())) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_frames": 0}, "`max_frames` must be between 1"),
        ({"num_queries": 0}, "`num_queries` must be between 1"),
        ({"map_layer": -1}, "`map_layer` must be between 0"),
        ({"long_side": 100}, "multiple of the patch size"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttentionReport(data=Path("photos"), output_dir=Path("report"), **options)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run ``ns-sparseattn attention-report`` in this process."""
    logger = logging.getLogger("ns_sparseattn")
    before = logger.handlers, logger.level, logger.propagate

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        arguments = ("ns-sparseattn", "attention-report", *arguments)
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    monkeypatch.setenv("COLUMNS", "200")
    yield run
    logger.handlers, logger.level, logger.propagate = before


SMALL = ("--weights", "seeded-small", "--device", "cpu", "--long-side", "56")


def test_the_command_says_what_was_kept(
    command: Callable[..., tuple[int, str, str]], photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "my report"
    sparse = ("--attention", "block-sparse", "--mass", "0.9", "--num-queries", "16")
    code, out, err = command("--data", photos, "--output-dir", target, *SMALL, *sparse)
    assert code == 0, err
    assert "4 global layers of 2 heads: mean density" in out
    assert "Least is kept by layer" in out
    assert f"Report: {target} (attention-report.json, " in out
    assert _content(target)["attention"] == {
        "attention": "block-sparse",
        "coarse": True,
        "density": None,
        "mass": 0.9,
    }


def test_the_command_shows_errors_as_sentences(
    command: Callable[..., tuple[int, str, str]], photos: Path, tmp_path: Path
) -> None:
    code, out, err = command("--data", "/nowhere", "--output-dir", tmp_path / "report", *SMALL)
    assert code == 1
    assert out == ""
    assert "There is no file or folder /nowhere." in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_measured", [False, True], ids=["not-measured", "measured"])
def test_scenes_show_kept_mass_if_it_was_measured(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_measured: bool,
) -> None:
    # Would outlast this test.
    monkeypatch.setattr(console, "set_up_logging", lambda **_: None)
    options = ProcessOptions(
        data=photos,
        output_dir=tmp_path / "scene",
        weights=WeightsOptions(weights="seeded-small", device="cpu"),
        attention=HALF,
        frames=FrameOptions(long_side=112),
    )
    with record_kept_mass(num_queries=16) if is_measured else nullcontext():
        result = console.show_process(options, verbose=False)
    manifest = json.loads((result.folder.root / "manifest.json").read_text(encoding="utf-8"))
    for layer, stats in zip(manifest["attention"], result.attention, strict=True):
        if is_measured:
            assert stats.kept_mass is not None
            assert layer["kept_mass"]["mean"] == stats.kept_mass.mean
        else:
            assert layer["kept_mass"] is None
    assert ("mean kept mass 0." in capsys.readouterr().out) == is_measured
