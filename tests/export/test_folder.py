# SPDX-License-Identifier: Apache-2.0
"""A scene folder appears whole or not at all, and is the same whenever it is written."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.export import SceneFolder, folder, is_scene_folder, read_colmap, write_scene
from ns_sparseattn.export import staging as staging_module
from ns_sparseattn.frames import Frames
from ns_sparseattn.options import ExportOptions
from ns_sparseattn.scene.types import Scene

OVERWRITE = ExportOptions(overwrite=True)
STEPS = ["write_colmap", "_write_nerfstudio", "write_photos", "write_json", "_facts"]
"""Functions of the module that write one part each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    root: Path
    frames: Frames
    scene: Scene

    @property
    def output(self) -> Path:
        return self.root / "out/scene"

    def write(
        self, output: Path | None = None, options: ExportOptions | None = None
    ) -> SceneFolder:
        return write_scene(
            self.scene,
            self.frames,
            output or self.output,
            options or ExportOptions(),
            manifest={"model": "made up"},
            config={"data": self.root},
        )


@pytest.fixture
def given(
    tmp_path: Path, make_photo: Any, load_photos: Callable[..., Frames], make_scene: Any
) -> Input:
    make_photo(tmp_path / "photos/left/0.jpg", seed=1)
    make_photo(tmp_path / "photos/right/0.jpg", seed=2, orientation=6)
    make_photo(tmp_path / "photos/deep.tif", seed=3, mode="I;16")
    make_photo(tmp_path / "masks/left/0.png", seed=4, mode="1")
    frames = load_photos(tmp_path / "photos", tmp_path / "masks")
    return Input(root=tmp_path, frames=frames, scene=make_scene(frames))


def snapshot(root: Path) -> dict[str, bytes]:
    """Return the content of every file, hidden ones too; folders have none."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(root.rglob("*"))
    }


def test_layout(given: Input) -> None:
    written = given.write(options=ExportOptions(num_downscales=1, colmap_text=True))
    assert written == SceneFolder.at(
        given.output, num_downscales=1, has_masks=True, has_colmap_text=True, has_config=True
    )
    assert {path.name for path in given.output.iterdir()} == {
        "colmap",
        "config.json",
        "images",
        "images_2",
        "manifest.json",
        "masks",
        "masks_2",
        "sparse_pc.ply",
        "transforms.json",
    }
    for value in vars(written).values():
        for path in value.values() if isinstance(value, dict) else [value or written.root]:
            assert path.exists()
    assert (written.colmap / "rigs.bin").is_file()
    assert written.colmap_text is not None
    assert (written.colmap_text / "points3D.txt").is_file()
    assert is_scene_folder(given.output)
    assert [path.name for path in given.output.parent.iterdir()] == ["scene"]


def test_without_config_and_smaller_copies(given: Input) -> None:
    options = ExportOptions(num_downscales=0)
    written = write_scene(given.scene, given.frames, given.output, options, manifest={})
    assert written.config is None
    assert not written.images_by_factor
    assert not (given.output / "config.json").exists()
    assert not (given.output / "images_2").exists()


def test_manifest_says_what_was_written(given: Input) -> None:
    manifest = json.loads(given.write().manifest.read_text())
    assert manifest["model"] == "made up"
    assert manifest["format"] == "ns_sparseattn scene"
    assert manifest["num_points"] == len(given.scene.points)
    assert set(manifest["contents"]) == {path.name for path in given.output.iterdir()}
    by_source = {photo["source"]: photo for photo in manifest["photos"]}
    assert by_source["left/0.jpg"]["how"] == "link"
    assert by_source["left/0.jpg"]["flat_name"] == "left__0.jpg"
    assert by_source["right/0.jpg"]["reason"] == "EXIF orientation 6"
    assert (by_source["right/0.jpg"]["width"], by_source["right/0.jpg"]["height"]) == (45, 61)
    assert by_source["deep.tif"]["name"] == "deep.png"


def test_model_has_the_names_of_the_files(given: Input) -> None:
    written = given.write()
    names = [image.name for image in read_colmap(written.root).images]
    assert names == ["deep.png", "left/0.jpg", "right/0.jpg"]
    assert all((written.images / name).is_file() for name in names)


def test_writing_twice_gives_the_same_bytes(given: Input) -> None:
    before = snapshot(given.root / "photos")
    options = ExportOptions(colmap_text=True)
    one = given.write(given.root / "a", options)
    two = given.write(given.root / "b", options)
    assert snapshot(one.root) == snapshot(two.root)
    assert snapshot(given.root / "photos") == before


def test_photos_without_a_pose_are_left_out(given: Input, caplog: pytest.LogCaptureFixture) -> None:
    points = given.scene.points
    keep = points.obs_image < 2
    points = dataclasses.replace(
        points,
        obs_point=points.obs_point[keep],
        obs_image=points.obs_image[keep],
        obs_xy=points.obs_xy[keep],
    )
    scene = dataclasses.replace(given.scene, images=given.scene.images[:2], points=points)
    written = dataclasses.replace(given, scene=scene).write()
    assert "1 of 3 photos have no pose" in caplog.text
    assert not (written.images / "right").exists()


def test_scene_must_fit_the_frames(given: Input) -> None:
    image = dataclasses.replace(given.scene.images[0], name="other.png")
    scene = dataclasses.replace(given.scene, images=(image, *given.scene.images[1:]))
    with pytest.raises(ValueError, match=r"images of `frames` only, got 'other.png'"):
        dataclasses.replace(given, scene=scene).write()
    cameras = tuple(dataclasses.replace(camera, width=7) for camera in given.scene.cameras)
    scene = dataclasses.replace(given.scene, cameras=cameras)
    with pytest.raises(ValueError, match=r"size of the photo, 61 x 45, got 7 x 45"):
        dataclasses.replace(given, scene=scene).write()
    assert not given.output.parent.exists()


def test_reserved_manifest_entries(given: Input) -> None:
    with pytest.raises(ValueError, match=r"got \['photos'\]"):
        write_scene(
            given.scene, given.frames, given.output, ExportOptions(), manifest={"photos": 1}
        )


def test_trainers_limits_are_logged(
    given: Input, make_photo: Any, load_photos: Callable[..., Frames], make_scene: Any, caplog: Any
) -> None:
    make_photo(given.root / "large/a.png", (3300, 8))
    frames = load_photos(given.root / "large")
    scene = make_scene(frames, num_points=0)
    write_scene(scene, frames, given.output, ExportOptions(num_downscales=1), manifest={})
    assert "The scene has no points" in caplog.text
    assert "look for images_4" in caplog.text


def test_train_command_is_quoted(tmp_path: Path) -> None:
    at = SceneFolder.at(tmp_path / "my scene")
    assert at.train_command() == f"ns-train splatfacto --data '{tmp_path}/my scene'"
    assert at.train_command("nerfacto").startswith("ns-train nerfacto --data ")


def fail_at(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Let a step do its work and then fail."""
    real = getattr(folder, step)

    def work_and_fail(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(folder, step, work_and_fail)


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_run_leaves_nothing(
    given: Input, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = snapshot(given.root)
    fail_at(monkeypatch, step, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        given.write()
    assert snapshot(given.root) == before


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_run_leaves_the_old_scene(
    given: Input, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    given.write()
    before = snapshot(given.root)
    fail_at(monkeypatch, step, RuntimeError("out of luck"))
    with pytest.raises(RuntimeError, match="out of luck"):
        given.write(options=OVERWRITE)
    assert snapshot(given.root) == before


def test_failing_rename_puts_the_old_scene_back(
    given: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.write()
    before = snapshot(given.root)
    real = os.rename

    def fail_for_new(source: Path, target: Path) -> None:
        if ".tmp-" in Path(source).name:
            raise OSError(errno.EIO, "input/output error")
        real(source, target)

    monkeypatch.setattr(staging_module.os, "rename", fail_for_new)
    with pytest.raises(ReconstructionError, match=r"could not be written to .*input/output error"):
        given.write(options=OVERWRITE)
    assert snapshot(given.root) == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (PermissionError(errno.EACCES, "denied", "/x/y"), "no permission to write /x/y"),
        (OSError(errno.EIO, "input/output error"), "input/output error"),
    ],
)
@pytest.mark.parametrize("step", STEPS)
def test_system_errors_are_one_sentence(
    given: Input, monkeypatch: pytest.MonkeyPatch, step: str, error: OSError, message: str
) -> None:
    before = snapshot(given.root)
    fail_at(monkeypatch, step, error)
    with pytest.raises(ReconstructionError, match=message) as raised:
        given.write()
    assert str(raised.value).startswith(f"The scene could not be written to {given.output}: ")
    assert "\n" not in str(raised.value)
    assert snapshot(given.root) == before


def test_overwrite_replaces_everything(given: Input) -> None:
    given.write(options=ExportOptions(num_downscales=2))
    written = given.write(options=dataclasses.replace(OVERWRITE, num_downscales=1))
    assert not (written.root / "images_4").exists()
    assert [path.name for path in given.output.parent.iterdir()] == ["scene"]
    with pytest.raises(ValueError, match="--overwrite"):
        given.write()


def test_empty_folder_is_filled(given: Input) -> None:
    given.output.mkdir(parents=True)
    given.write()
    assert is_scene_folder(given.output)


def test_folder_that_was_filled_meanwhile_is_kept(
    given: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folder.write_photos

    def write_and_interfere(*args: Any, **kwargs: Any) -> Any:
        given.output.mkdir()
        (given.output / "mine.txt").write_text("mine")
        return real(*args, **kwargs)

    monkeypatch.setattr(folder, "write_photos", write_and_interfere)
    with pytest.raises(ReconstructionError, match="filled by somebody else"):
        given.write()
    assert snapshot(given.output.parent) == {"scene": b"", "scene/mine.txt": b"mine"}


_KILLED_RUN = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import torch
    from ns_sparseattn.export import folder, staging, write_scene
    from ns_sparseattn.options import ExportOptions

    root, step = Path(sys.argv[1]), sys.argv[2]
    scene, frames = torch.load(root / "input.pt", weights_only=False)
    if step == "between renames":
        real = os.rename
        def rename(source, target):
            if ".tmp-" in Path(source).name:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.rename = rename
    else:
        def die(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(staging if step == "rmtree" else folder, step, die)
        if step == "rmtree":
            staging.shutil.rmtree = die
    write_scene(scene, frames, root / "out/scene", ExportOptions(overwrite=True), manifest={})
    """
)


@pytest.mark.parametrize("step", ["write_photos", "between renames", "rmtree"])
def test_killed_run_leaves_a_complete_scene(given: Input, step: str) -> None:
    old = snapshot(given.write().root)
    torch.save((given.scene, given.frames), given.root / "input.pt")
    run = subprocess.run(
        [sys.executable, "-c", _KILLED_RUN, str(given.root), step], check=False, timeout=120
    )
    assert run.returncode == -signal.SIGKILL
    leftovers = [path for path in given.output.parent.iterdir() if path.name.startswith(".scene.")]
    assert leftovers
    complete = [path for path in given.output.parent.iterdir() if is_scene_folder(path)]
    assert complete
    if step == "write_photos":
        assert snapshot(given.output) == old

    # The next run first puts things in order, even if it then finds nothing to do.
    with pytest.raises(ValueError, match="already holds a scene"):
        given.write()
    assert [path.name for path in given.output.parent.iterdir()] == ["scene"]
    assert is_scene_folder(given.output)
    given.write(options=OVERWRITE)
    assert snapshot(given.output) == old
    assert [path.name for path in given.output.parent.iterdir()] == ["scene"]


def test_killed_first_run_leaves_no_scene(given: Input) -> None:
    torch.save((given.scene, given.frames), given.root / "input.pt")
    run = subprocess.run(
        [sys.executable, "-c", _KILLED_RUN, str(given.root), "_facts"], check=False, timeout=120
    )
    assert run.returncode == -signal.SIGKILL
    assert not given.output.exists()
    given.write()
    assert [path.name for path in given.output.parent.iterdir()] == ["scene"]


def test_work_in_progress_of_others_is_left_alone(given: Input) -> None:
    others: list[Path] = []
    real = folder.write_photos

    with pytest.MonkeyPatch.context() as patch:

        def check_in_between(*args: Any, **kwargs: Any) -> Any:
            staging_module.remove_leftovers(given.output)
            others.extend(given.output.parent.iterdir())
            return real(*args, **kwargs)

        patch.setattr(folder, "write_photos", check_in_between)
        given.write()
    assert [path.name.startswith(".scene.tmp-") for path in others] == [True]
    assert is_scene_folder(given.output)


def test_only_our_own_leftovers_are_removed(given: Input) -> None:
    parent = given.output.parent
    names = [".scene.tmp-mine", ".scene2.tmp-1-0123abcd", ".scene.old", "scene.tmp-1-0123abcd"]
    for name in names:
        (parent / name).mkdir(parents=True)
    (parent / ".scene.tmp-1-0123abcd").mkdir()
    given.write()
    assert {path.name for path in parent.iterdir()} == {"scene", *names}
