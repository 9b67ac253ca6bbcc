# SPDX-License-Identifier: Apache-2.0
"""The command ``ns-sparseattn``: exit codes, what goes to which stream, and where scenes may go."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from ns_sparseattn import cli, console, pipeline
from ns_sparseattn.export import is_scene_folder
from ns_sparseattn.testing.photos import draw_view, write_hard_case, write_photo

SMALL = (
    *("--weights", "seeded-small", "--device", "cpu", "--long-side", "56"),
    # Photos this small and poses this wrong are not for trusting (tests/refine/test_commands.py).
    *("--refine", "none"),
)


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run ``ns-sparseattn`` in this process."""
    logger = logging.getLogger("ns_sparseattn")
    before = logger.handlers, logger.level, logger.propagate

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ns-sparseattn", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    monkeypatch.setenv("COLUMNS", "200")
    yield run
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_hard_case(tmp_path / "photos", "two_images")


def process(photos: Path, scene: Path, *arguments: str) -> tuple[str, ...]:
    paths = ("--data", str(photos), "--output-dir", str(scene))
    return ("process", "vggt", *paths, *SMALL, *arguments)


def test_success_is_0_with_a_summary_on_stdout_and_progress_on_stderr(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    outcome = command(*process(photos, tmp_path / "my scene"))
    assert outcome.code == 0
    assert "2 images posed, 1 camera, " in outcome.out
    assert "Weights seeded-small, licence: none" in outcome.out
    assert "Note: The weights are unverified" in outcome.out
    # Of two photos, nerfstudio's default split would leave none to evaluate on.
    path = f"'{tmp_path / 'my scene'}'"
    split = "nerfstudio-data --eval-mode interval"
    assert f"Next: ns-train splatfacto --data {path} {split}\n" in outcome.out
    assert "load photos" in outcome.err
    assert "Traceback" not in outcome.err
    assert is_scene_folder(tmp_path / "my scene")


@pytest.mark.parametrize(
    ("num_photos", "parser"),
    [
        pytest.param(1, " nerfstudio-data --eval-mode all --auto-scale-poses False", id="1"),
        pytest.param(9, " nerfstudio-data --eval-mode interval", id="9"),
        pytest.param(10, "", id="10"),
    ],
)
def test_next_command_can_train_on_few_photos(
    command: Command, tmp_path: Path, num_photos: int, parser: str
) -> None:
    for i in range(num_photos):
        write_photo(tmp_path / f"photos/img_{i}.jpg", draw_view((48, 32), index=i))
    outcome = command(*process(tmp_path / "photos", tmp_path / "scene"))
    expected = f"Next: ns-train splatfacto --data {tmp_path / 'scene'}{parser}\n"
    assert expected in outcome.out


def test_photos_to_evaluate_on_need_no_option_for_training(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    write_photo(tmp_path / "held/img_9.jpg", draw_view((96, 64), index=9))
    arguments = process(photos, tmp_path / "scene", "--eval-data", str(tmp_path / "held"))
    outcome = command(*arguments)
    assert outcome.code == 0
    assert "3 images posed" in outcome.out
    assert f"Next: ns-train splatfacto --data {tmp_path / 'scene'}\n" in outcome.out
    # The scene may lie in neither folder.
    outcome = command(*process(photos, tmp_path / "held/scene", "--eval-data", f"{tmp_path}/held"))
    assert outcome.code == 1
    assert "must not lie in the folder of photos" in outcome.err


@pytest.mark.parametrize(
    ("choice", "policy"),
    [
        pytest.param("paper-s50", "paper (ratio 0.5, cdf 0.7)", id="s50"),
        pytest.param("paper-s75", "paper (ratio 0.8, cdf 0.5)", id="s75"),
        pytest.param("auto", "auto frame-only", id="auto"),
    ],
)
def test_attention_can_be_chosen_by_name(
    command: Command, photos: Path, tmp_path: Path, choice: str, policy: str
) -> None:
    outcome = command(*process(photos, tmp_path / "scene", "--attention", choice))
    assert outcome.code == 0
    assert f"Global attention: {policy}, mean density" in outcome.out


def test_quiet_without_verbose_and_talkative_with_it(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    assert "INFO" not in command(*process(photos, tmp_path / "a")).err
    outcome = command(*process(photos, tmp_path / "b", "--verbose"))
    assert "Loaded 2 photos" in outcome.err
    assert "peak memory" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(("--data", "/nowhere"), "There is no file or folder /nowhere.", id="data"),
        pytest.param(
            ("--weights", "vggt-1b", "--commercial"),
            "The licence of the weights vggt-1b (CC BY-NC 4.0) forbids commercial use",
            id="commercial",
        ),
        pytest.param(("--weights", "nothing.pt"), "There are no weights nothing.pt", id="weights"),
        pytest.param(("--device", "cuda:99"), "`device` is 'cuda:99'", id="device"),
        pytest.param(("--device", "abacus"), "`device` must be auto, cpu, cuda", id="device_name"),
        pytest.param(("--masks", "/nowhere"), "The folder of masks /nowhere", id="masks"),
    ],
)
def test_error_of_the_user_is_1_with_one_sentence_on_stderr(
    command: Command, photos: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = command(*process(photos, tmp_path / "scene"), *arguments)
    assert outcome.code == 1
    assert outcome.out == ""
    assert f"Error: {sentence}" in outcome.err
    assert "Traceback" not in outcome.err
    assert set(tmp_path.iterdir()) == {photos}


def test_verbose_shows_where_an_error_comes_from(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    outcome = command(*process(photos / "none", tmp_path / "scene", "--verbose"))
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "Error: There is no file or folder" in outcome.err


def test_broken_photos_come_with_the_flag_that_leaves_them_out(
    command: Command, tmp_path: Path
) -> None:
    folder = write_hard_case(tmp_path / "photos", "corrupt")
    outcome = command(*process(folder, tmp_path / "scene"))
    assert outcome.code == 1
    assert "Add --skip-broken to leave such files out." in outcome.err
    outcome = command(*process(folder, tmp_path / "scene", "--skip-broken"))
    assert outcome.code == 0
    assert "4 images posed" in outcome.out
    # A single file cannot be left out.
    outcome = command(*process(folder / "empty.jpg", tmp_path / "other"))
    assert outcome.code == 1
    assert "--skip-broken" not in outcome.err


def test_a_twin_without_distortion_is_written_judged_and_compared(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    scene, twin = tmp_path / "scene", tmp_path / "scene/undistorted"
    outcome = command(*process(photos, scene, "--undistort", "--world", "model"))
    assert outcome.code == 0
    assert f"Without lens distortion: {twin}" in outcome.out
    assert "No camera has lens distortion" in outcome.err
    outcome = command("evaluate", twin, "--reference", scene)
    assert outcome.code == 0
    assert "2 of 2 images, 1 pair;" in outcome.out
    outcome = command("compare", scene, twin)
    assert outcome.code == 0
    assert "second: scene folder" in outcome.out
    outcome = command("undistort", photos, tmp_path / "twin")
    assert outcome.code == 1
    assert "must be a scene folder" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ("--attention", "block-sparse", "--density", "2"),
            "`density` must be above 0 and at most 1, got 2.",
            id="range",
        ),
        pytest.param(("--density", "0.3"), "have no effect", id="no_effect"),
        pytest.param(
            ("--attention", "paper-s50", "--mass", "0.9"),
            "have no effect with `attention` paper-s50; set block-sparse.",
            id="no_effect_on_preset",
        ),
        pytest.param(("--attention", "block-sparse"), "density", id="nothing_set"),
        pytest.param(("--long-side", "100"), "must be a multiple of the patch size", id="multiple"),
        pytest.param(("--max-points", "many"), "max-points", id="type"),
        pytest.param(("--camera-mode", "guess"), "camera-mode", id="choice"),
        pytest.param(("--no-such-flag",), "no-such-flag", id="unknown"),
        # The model's property, not the user's choice.
        pytest.param(("--patch-size", "14"), "patch-size", id="patch_size"),
    ],
)
def test_unusable_command_line_is_2(
    command: Command, photos: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = command(*process(photos, tmp_path / "scene"), *arguments)
    assert outcome.code == 2
    assert words in outcome.out + outcome.err
    assert "dummy" not in outcome.err
    assert "Traceback" not in outcome.err
    assert set(tmp_path.iterdir()) == {photos}


def test_missing_arguments_are_2(command: Command) -> None:
    assert command().code == 2
    assert command("process", "vggt").code == 2


def test_scene_is_replaced_only_when_asked(command: Command, photos: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert command(*process(photos, scene)).code == 0
    first = (scene / "manifest.json").stat().st_ino
    outcome = command(*process(photos, scene))
    assert outcome.code == 1
    assert "add --overwrite to replace it" in outcome.err
    assert (scene / "manifest.json").stat().st_ino == first
    assert command(*process(photos, scene, "--overwrite")).code == 0
    assert (scene / "manifest.json").stat().st_ino != first


def test_folder_of_somebody_else_is_never_replaced(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.tex").write_text("...")
    outcome = command(*process(photos, tmp_path / "thesis", "--overwrite"))
    assert outcome.code == 1
    assert "must be empty or a scene written by this tool" in outcome.err
    assert (tmp_path / "thesis/draft.tex").is_file()
    assert command(*process(photos, photos, "--overwrite")).code == 1
    assert command(*process(photos, photos / "scene", "--overwrite")).code == 1


def test_failed_overwrite_leaves_the_old_scene(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = tmp_path / "scene"
    assert command(*process(photos, scene)).code == 0
    first = (scene / "manifest.json").read_bytes()
    (photos / "img_2.jpg").write_bytes(b"")
    assert command(*process(photos, scene, "--overwrite")).code == 1
    assert (scene / "manifest.json").read_bytes() == first


def test_interrupt_is_130_without_a_traceback(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "load_model", interrupt)
    outcome = command(*process(photos, tmp_path / "scene"))
    assert outcome.code == 130
    assert "Interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "scene").exists()


def test_bug_keeps_its_traceback(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "process", lambda *args, **kwargs: {}["no such key"])
    with pytest.raises(KeyError):
        command(*process(photos, tmp_path / "scene"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param((), ("process", "evaluate", "compare", "undistort", "doctor"), id="all"),
        pytest.param(
            ("process",),
            ("--data", "--output-dir", "--weights", "--density", "--masks", "--overwrite"),
            id="process",
        ),
        pytest.param(("doctor",), ("Print versions",), id="doctor"),
        pytest.param(("evaluate",), ("--reference", "--photos"), id="evaluate"),
        pytest.param(("undistort",), ("--num-downscales", "PINHOLE"), id="undistort"),
        pytest.param(("compare",), ("side by side", "--json"), id="compare"),
    ],
)
def test_help_is_0_and_names_the_flags(
    command: Command, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = command(*arguments, "--help")
    assert outcome.code == 0
    for word in words:
        assert word in outcome.out


def test_doctor_reports_versions_and_is_0(command: Command) -> None:
    outcome = command("doctor")
    assert outcome.code == 0
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert {"ns_sparseattn", "python", "torch", "nerfstudio", "pycolmap", "device"} <= set(rows)
    assert "Missing" not in outcome.out


def test_demo_renders_its_own_photos_and_makes_a_scene(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ns_sparseattn.demo", "--output-dir", "demo", "--num-views", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "2 images posed" in result.stdout
    assert "Network: tiny, which ships with this package" in result.stdout
    assert "Poses: " in result.stdout
    assert is_scene_folder(tmp_path / "demo/scene")
    manifest = json.loads((tmp_path / "demo/scene/manifest.json").read_text(encoding="utf-8"))
    assert manifest["weights"]["name"] == "tiny"
    assert not any("unverified" in note for note in manifest["notes"])
    with Image.open(tmp_path / "demo/scene.png") as picture:
        assert picture.size == (1200, 600)


def test_module_is_the_same_command(tmp_path: Path, photos: Path) -> None:
    arguments = process(photos, tmp_path / "scene")
    result = subprocess.run(
        [sys.executable, "-m", "ns_sparseattn", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "2 images posed" in result.stdout


def test_missing_weights_without_a_network_say_how_to_get_them(
    ns_sparseattn: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, photos: Path
) -> None:
    result = ns_sparseattn(
        *("process", "vggt", "--data", photos, "--output-dir", tmp_path / "scene"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Error: The weights facebook/VGGT-1B are not in the local cache" in result.stderr
    assert "hf download facebook/VGGT-1B" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "scene").exists()
