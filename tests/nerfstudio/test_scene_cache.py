# SPDX-License-Identifier: Apache-2.0
"""When the dataparser makes a scene, when it takes one from the cache, and where that is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ns_sparseattn.conditioning import KnownOptions
from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.export import is_scene_folder
from ns_sparseattn.export.output import SCENE_FORMAT
from ns_sparseattn.models.compute import InferenceOptions
from ns_sparseattn.nerfstudio import scene_cache
from ns_sparseattn.nerfstudio.scene_cache import CACHE_FOLDER, cached_scene
from ns_sparseattn.options import FrameOptions, SceneOptions
from ns_sparseattn.pipeline import AttentionOptions, ProcessOptions, WeightsOptions
from ns_sparseattn.refine import MatchOptions, RefineOptions
from ns_sparseattn.testing.photos import draw_view, write_photo

SMALL = {
    "weights": WeightsOptions(weights="seeded-small", device="cpu"),
    "frames": FrameOptions(long_side=56),
}


def options(photos: Path, **settings: Any) -> ProcessOptions:
    return ProcessOptions(data=photos, output_dir=Path(), **{**SMALL, **settings})


@pytest.fixture
def made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: Path
) -> Callable[..., tuple[Path, bool]]:
    """Ask for a scene while a stand-in makes it; return it and whether it had to be made."""
    runs: list[Path] = []

    def process(job: ProcessOptions) -> None:
        job.output_dir.mkdir(parents=True)
        manifest = job.output_dir / "manifest.json"
        manifest.write_text(json.dumps({"format": SCENE_FORMAT}))
        runs.append(job.output_dir)

    monkeypatch.setattr(scene_cache, "_process_apart", process)
    monkeypatch.setattr(scene_cache, "_made_here", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def ask(
        folder: Path = photos, *, cache_dir: Path | None = None, **settings: Any
    ) -> tuple[Path, bool]:
        num_runs = len(runs)
        scene = cached_scene(options(folder, **settings), cache_dir=cache_dir)
        assert is_scene_folder(scene)
        return scene, len(runs) > num_runs

    return ask


Ask = Callable[..., tuple[Path, bool]]


def test_scene_is_made_once_beside_the_photos(made: Ask, photos: Path) -> None:
    scene, is_new = made()
    assert is_new
    assert scene.parent == photos / CACHE_FOLDER
    assert made() == (scene, False)


def test_cache_folder_is_where_the_user_says(made: Ask, photos: Path, tmp_path: Path) -> None:
    scene, is_new = made(cache_dir=tmp_path / "some/where")
    assert is_new
    assert scene.parent == tmp_path / "some/where"
    assert not (photos / CACHE_FOLDER).exists()
    assert made(cache_dir=tmp_path / "some/where") == (scene, False)


def test_read_only_photos_have_their_scene_in_the_users_cache(
    made: Ask, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_mkdir = Path.mkdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.is_relative_to(photos):
            raise PermissionError(13, "Permission denied", str(path))
        real_mkdir(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        scene, is_new = made()
    assert is_new
    assert scene.parent == tmp_path / "home/ns_sparseattn/scenes"
    # It still counts when the folder can be written again.
    assert made() == (scene, False)


def test_file_in_the_place_of_the_cache_is_left_alone(
    made: Ask, photos: Path, tmp_path: Path
) -> None:
    (photos / CACHE_FOLDER).write_text("mine")
    scene, _ = made()
    assert scene.is_relative_to(tmp_path / "home")
    assert (photos / CACHE_FOLDER).read_text() == "mine"


def test_no_place_to_write_is_an_error_that_names_the_option(made: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReconstructionError, match="Set `cache_dir` to a folder"):
        made(cache_dir=tmp_path / "file")


def change_bytes(photos: Path) -> None:
    write_photo(photos / "img_3.jpg", draw_view((96, 64), index=20))


def change_bytes_but_neither_size_nor_name(photos: Path) -> None:
    path = photos / "img_3.jpg"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def add_photo(photos: Path) -> None:
    write_photo(photos / "sub/img_10.jpg", draw_view((96, 64), index=10))


def remove_photo(photos: Path) -> None:
    (photos / "img_8.jpg").unlink()


def rename_photo(photos: Path) -> None:
    (photos / "img_8.jpg").rename(photos / "img_9.jpg")


@pytest.mark.parametrize(
    "change",
    [
        change_bytes,
        change_bytes_but_neither_size_nor_name,
        add_photo,
        remove_photo,
        rename_photo,
    ],
)
def test_other_photos_make_another_scene(
    made: Ask, photos: Path, change: Callable[[Path], None]
) -> None:
    before, _ = made()
    change(photos)
    after, is_new = made()
    assert is_new
    assert after != before


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"frames": FrameOptions(long_side=70)}, id="long_side"),
        pytest.param({"frames": FrameOptions(long_side=56, resize="pad")}, id="resize"),
        pytest.param({"reference": "first"}, id="reference"),
        pytest.param({"scene": SceneOptions(max_points=100)}, id="max_points"),
        pytest.param({"weights": WeightsOptions(weights="seeded")}, id="weights"),
        pytest.param(
            {"attention": AttentionOptions(attention="block-sparse", density=0.5)}, id="attention"
        ),
        pytest.param({"refine": RefineOptions(refine="none")}, id="refine"),
        pytest.param({"refine": RefineOptions(camera_model="OPENCV")}, id="camera_model"),
        pytest.param({"inference": InferenceOptions(precision="bf16")}, id="precision"),
    ],
)
def test_other_options_make_another_scene(made: Ask, settings: dict[str, Any]) -> None:
    before, _ = made()
    after, is_new = made(**settings)
    assert is_new
    assert after != before
    assert made() == (before, False)


def test_what_changes_nothing_but_speed_makes_no_other_scene(made: Ask) -> None:
    scene, _ = made()
    other_device = WeightsOptions(weights="seeded-small", device="auto")
    assert made(weights=other_device) == (scene, False)
    assert made(inference=InferenceOptions(frames_per_chunk=2)) == (scene, False)
    match = MatchOptions(match_threads=1)
    assert made(refine=RefineOptions(accept_untrusted=True, match=match)) == (scene, False)


def test_files_that_are_no_photos_make_no_other_scene(made: Ask, photos: Path) -> None:
    scene, _ = made()
    (photos / "notes.txt").write_text("Taken on Sunday.")
    (photos / "clip.mp4").write_bytes(bytes(8))
    (photos / ".DS_Store").write_bytes(bytes(8))
    assert made() == (scene, False)


def test_touched_and_moved_photos_keep_their_scene(made: Ask, photos: Path, tmp_path: Path) -> None:
    scene, _ = made()
    os.utime(photos / "img_0.jpg", (1, 1))
    assert made() == (scene, False)
    moved = photos.rename(tmp_path / "moved")
    assert made(moved) == (moved / CACHE_FOLDER / scene.name, False)


def test_damaged_index_is_made_again(made: Ask, photos: Path) -> None:
    scene, _ = made()
    (photos / CACHE_FOLDER / "hashes.json").write_text('{"cut sh')
    assert made() == (scene, False)


def test_masks_that_are_used_belong_to_the_scene(made: Ask, photos: Path) -> None:
    without, _ = made()
    masks = photos / "masks"
    for i in range(9):
        write_photo(masks / f"img_{i}.png", draw_view((96, 64)), kind="one_bit")
    frames = FrameOptions(long_side=56, masks=masks)
    scene, is_new = made(frames=frames)
    assert is_new
    assert scene != without
    write_photo(masks / "other.png", draw_view((96, 64)), kind="one_bit")
    assert made(frames=frames) == (scene, False)
    write_photo(masks / "img_0.png", draw_view((96, 64), seed=1), kind="one_bit")
    assert made(frames=frames)[1]


def test_what_is_known_belongs_to_the_scene_by_its_content(made: Ask, tmp_path: Path) -> None:
    without, _ = made()
    depth, poses = tmp_path / "depth", tmp_path / "transforms.json"
    depth.mkdir()
    (depth / "img_0.npy").write_bytes(b"one")
    poses.write_text("one")
    known = KnownOptions(poses=poses, depth=depth, intrinsics="exif")
    scene, is_new = made(known=known)
    assert is_new
    assert scene != without
    moved = replace(known, poses=Path(shutil.copyfile(poses, tmp_path / "copy.json")))
    assert made(known=moved) == (scene, False)
    assert made(known=replace(known, metric_poses=True))[1]
    (depth / "img_0.npy").write_bytes(b"two")
    assert made(known=known)[1]
    poses.write_text("two")
    assert made(known=known)[1]


def test_all_files_of_a_known_model_belong_to_the_scene(made: Ask, tmp_path: Path) -> None:
    for name in ("cameras", "images"):
        (tmp_path / f"{name}.txt").write_text("one")
    known = KnownOptions(poses=tmp_path / "images.txt")
    scene, _ = made(known=known)
    (tmp_path / "notes.txt").write_text("none of the model's")
    assert made(known=known) == (scene, False)
    (tmp_path / "cameras.txt").write_text("two")
    assert made(known=known)[1]


def test_local_weights_are_known_by_their_content(made: Ask, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    weights = WeightsOptions(weights=str(path))
    scene, _ = made(weights=weights)
    moved = shutil.copyfile(path, tmp_path / "copy.safetensors")
    assert made(weights=replace(weights, weights=str(moved))) == (scene, False)
    path.write_bytes(b"two")
    assert made(weights=weights)[1]


def test_photos_that_cannot_be_used_are_an_error_before_anything_runs(
    made: Ask, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photos"):
        made(tmp_path / "empty")
    with pytest.raises(ValueError, match="must be a folder of photos"):
        made(tmp_path / "nowhere")


def test_evaluation_uses_a_scene_that_is_there(made: Ask, photos: Path) -> None:
    scene, _ = made()
    scene_cache._made_here.clear()
    assert cached_scene(options(photos), is_evaluation=True) == scene


def test_evaluation_refuses_a_scene_that_had_to_be_made_again(made: Ask, photos: Path) -> None:
    scene, _ = made()
    shutil.rmtree(scene)
    scene_cache._made_here.clear()
    # Evaluation parses the training images first.
    assert made() == (scene, True)
    with pytest.raises(ReconstructionError, match="Its coordinates may differ from the trained"):
        cached_scene(options(photos), is_evaluation=True)


CALL = """
import sys
from pathlib import Path
from ns_sparseattn.nerfstudio.scene_cache import cached_scene
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.pipeline import ProcessOptions, WeightsOptions

# No guard for the main module: the pipeline's process must not run this file again.
print("SCENE", cached_scene(ProcessOptions(
    data=Path(sys.argv[1]), output_dir=Path(), weights=WeightsOptions(weights="seeded-small"),
    frames=FrameOptions(long_side=56),
)))
"""


def test_processes_that_ask_at_once_run_the_pipeline_once(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "call.py"
    script.write_text(CALL)
    calls = [
        subprocess.Popen(
            [sys.executable, script, photos],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    outputs = [call.communicate(timeout=300) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    printed = [output for output, _ in outputs]
    assert sum("All DONE" in output for output in printed) == 1
    scenes = {output.partition("SCENE ")[2].strip() for output in printed}
    assert len(scenes) == 1
    assert is_scene_folder(Path(scenes.pop()))


def test_failure_of_the_pipeline_is_one_sentence_and_leaves_no_scene(photos: Path) -> None:
    (photos / "img_4.jpg").write_bytes(b"")
    with pytest.raises(ReconstructionError, match="No scene could be made of .*img_4.jpg") as error:
        cached_scene(options(photos))
    assert "the file is empty" in str(error.value)
    assert "--skip-broken True" in str(error.value)
    assert {path.suffix for path in (photos / CACHE_FOLDER).iterdir()} <= {".json", ".lock"}


def test_pipeline_leaves_the_callers_state_alone(photos: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    cached_scene(options(photos))
    assert torch.equal(torch.rand(1), expected)
