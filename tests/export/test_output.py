# SPDX-License-Identifier: Apache-2.0
"""Where a scene may be written is decided before anything is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ns_sparseattn.export import check_output, is_scene_folder, read_manifest
from ns_sparseattn.frames import Frames
from ns_sparseattn.options import ExportOptions

KEEP = ExportOptions()
OVERWRITE = ExportOptions(overwrite=True)


@pytest.fixture
def photos(tmp_path: Path, make_photo: Any) -> Path:
    make_photo(tmp_path / "photos/sub/a.png")
    return tmp_path / "photos"


@pytest.fixture
def old_scene(tmp_path: Path) -> Path:
    folder = tmp_path / "scene"
    folder.mkdir()
    manifest = {"format": "ns_sparseattn scene", "contents": ["manifest.json", "images"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "images").mkdir()
    return folder


def test_missing_and_empty_folders_are_fine(tmp_path: Path, photos: Path) -> None:
    assert check_output(tmp_path / "new/deep/scene", photos, KEEP) == tmp_path / "new/deep/scene"
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert check_output(tmp_path / "empty", photos, KEEP) == tmp_path / "empty"


def test_paths_are_resolved(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_output(Path("scene"), Path("photos"), KEEP) == tmp_path / "scene"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_output(Path("link"), photos, KEEP) == tmp_path / "real"


@pytest.mark.parametrize("options", [KEEP, OVERWRITE])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("photos", "must not be the folder of photos"),
        ("photos/out", "must not lie in the folder of photos"),
        ("photos/sub", "must not lie in the folder of photos"),
        (".", "must not hold the folder of photos"),
        ("alias", "must not be the folder of photos"),
        ("alias/out", "must not lie in the folder of photos"),
    ],
)
def test_output_and_photos_may_not_overlap(
    tmp_path: Path, photos: Path, output: str, message: str, options: ExportOptions
) -> None:
    (tmp_path / "alias").symlink_to(photos)
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / output, photos, options)


def test_hidden_folder_among_the_photos_is_fine(photos: Path) -> None:
    target = photos / ".ns_sparseattn/abc"
    assert check_output(target, photos, KEEP) == target


def test_folder_of_loaded_photos_is_protected(
    tmp_path: Path, photos: Path, load_photos: Callable[..., Frames]
) -> None:
    frames = load_photos(photos)
    for folder in (photos, photos / "sub", tmp_path):
        with pytest.raises(ValueError, match="must not hold the photos"):
            check_output(folder, frames, OVERWRITE)
        with pytest.raises(ValueError, match="must not hold the photos"):
            check_output(folder, [frames.frames[0].path], OVERWRITE)
        with pytest.raises(ValueError, match="must not hold the photos"):
            check_output(folder, frames.frames[0].path, OVERWRITE)
    assert check_output(tmp_path / "scene", frames, KEEP) == tmp_path / "scene"


def test_folder_of_linked_photos_and_of_masks_is_protected(
    tmp_path: Path, photos: Path, make_photo: Any, load_photos: Callable[..., Frames]
) -> None:
    make_photo(tmp_path / "masks/sub/a.png", mode="L")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.png").symlink_to(photos / "sub/a.png")
    for frames, folders in (
        (load_photos(photos, tmp_path / "masks"), ["masks"]),
        (load_photos(tmp_path / "links"), ["links", "photos"]),
    ):
        for folder in folders:
            with pytest.raises(ValueError, match="must not hold the photos"):
                check_output(tmp_path / folder, frames, OVERWRITE)


def test_file_in_the_way(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "scene").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder, got the file"):
        check_output(tmp_path / "scene", photos, OVERWRITE)
    with pytest.raises(ValueError, match="must be writable"):
        check_output(tmp_path / "scene/deeper", photos, OVERWRITE)


@pytest.mark.parametrize("options", [KEEP, OVERWRITE])
@pytest.mark.parametrize("manifest", [None, "{}", "[]", "no json", '{"format": "other"}'])
def test_folders_of_others_are_never_replaced(
    tmp_path: Path, photos: Path, options: ExportOptions, manifest: str | None
) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene/thesis.txt").write_text("mine")
    if manifest is not None:
        (tmp_path / "scene/manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="empty or a scene written by this tool"):
        check_output(tmp_path / "scene", photos, options)


def test_scene_is_replaced_on_request_only(photos: Path, old_scene: Path) -> None:
    with pytest.raises(ValueError, match="already holds a scene.*--overwrite"):
        check_output(old_scene, photos, KEEP)
    (old_scene / ".DS_Store").touch()
    assert check_output(old_scene, photos, OVERWRITE) == old_scene


def test_files_that_were_added_to_a_scene_are_not_lost(photos: Path, old_scene: Path) -> None:
    (old_scene / "outputs").mkdir()
    with pytest.raises(ValueError, match="holds outputs, which this tool did not write"):
        check_output(old_scene, photos, OVERWRITE)


def test_photos_in_the_scene_to_replace_are_not_lost(
    old_scene: Path, make_photo: Any, load_photos: Callable[..., Frames]
) -> None:
    make_photo(old_scene / "images/a.png")
    with pytest.raises(ValueError, match="must not hold the folder of photos"):
        check_output(old_scene, old_scene / "images", OVERWRITE)
    with pytest.raises(ValueError, match="must not hold the photos"):
        check_output(old_scene, load_photos(old_scene / "images"), OVERWRITE)


def test_current_folder_is_not_replaced(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/deeper").mkdir(parents=True)
    for folder in ("here", "here/deeper"):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(ValueError, match="the current folder"):
            check_output(tmp_path / "here", photos, KEEP)


def test_mount_points_are_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match="mount point.*such as /proc/scene"):
        check_output(Path("/proc"), photos, KEEP)


def test_parent_must_be_writable(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no permission to write in"):
        check_output(tmp_path / "a/b/scene", photos, KEEP)


def test_manifest_tells_a_scene_folder(tmp_path: Path, old_scene: Path) -> None:
    assert is_scene_folder(old_scene)
    assert (read_manifest(old_scene) or {})["contents"] == ["manifest.json", "images"]
    assert not is_scene_folder(tmp_path)
    assert read_manifest(tmp_path / "nowhere") is None
