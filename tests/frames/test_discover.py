# SPDX-License-Identifier: Apache-2.0
"""Which files are photos, their names and order, and what is said if there are none."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_sparseattn.frames import natural_key
from ns_sparseattn.frames.discover import find_photos


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def _names(source: object, **options: object) -> list[str]:
    return [photo.name for photo in find_photos(source, **options).photos]  # type: ignore[arg-type]


def test_natural_order() -> None:
    ordered = [
        "1.jpg",
        "2.jpg",
        "10.jpg",
        "a/9.jpg",
        "a/10.jpg",
        "a 1/1.jpg",
        "DSC_1.jpg",
        "dsc_2.jpg",
        "DSC_03.jpg",
        "img1_2.jpg",
        "img1_10.jpg",
        "img01_11.jpg",
        "img2.jpg",
    ]
    shuffled = ordered.copy()
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == ordered


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet="aA01²٣ _./", max_size=8), max_size=8))
def test_any_names_can_be_ordered(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_a_folder_is_searched_with_its_sub_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "b.PNG", "cam b/deeper/1.jpg", "cam_a/10.jpg", "cam_a/9.JPEG", "ä.tif")
    assert _names(tmp_path) == [
        "b.PNG",
        "cam b/deeper/1.jpg",
        "cam_a/9.JPEG",
        "cam_a/10.jpg",
        "ä.tif",
    ]
    assert _names(str(tmp_path)) == _names(tmp_path)


def test_hidden_files_and_thumbnail_folders_are_not_seen(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "._a.jpg", ".ns_sparseattn/x.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg")
    found = find_photos(tmp_path)
    assert [photo.name for photo in found.photos] == ["a.jpg"]
    assert found.skipped == ()


def test_a_hidden_folder_that_is_asked_for_is_searched(tmp_path: Path) -> None:
    assert _names(_touch(tmp_path / ".cache", "a.jpg")) == ["a.jpg"]


def test_other_files_are_listed_with_their_kind(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "README.txt", "Thumbs.db", "a.MOV", "a.NEF", "sub/no_suffix")
    skipped = {file.path.name: file.reason for file in find_photos(tmp_path).skipped}
    assert skipped == {
        "README.txt": "not a photo",
        "Thumbs.db": "not a photo",
        "a.MOV": "a video",
        "a.NEF": "a camera raw file; develop it to JPEG, PNG or TIFF to use it",
        "no_suffix": "not a photo",
    }


def test_a_folder_of_masks_inside_is_left_out(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "masks/a.png")
    assert _names(tmp_path, exclude=tmp_path / "sub" / ".." / "masks") == ["a.jpg", "masks/a.png"]
    assert _names(tmp_path, exclude=tmp_path / "masks") == ["a.jpg"]


def test_a_list_is_named_by_its_common_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "x/a/10.jpg", "x/a/9.jpg", "x/b/1.jpg")
    files = [tmp_path / "x/b/1.jpg", str(tmp_path / "x/a/10.jpg"), tmp_path / "x/a/../a/9.jpg"]
    assert _names(files) == ["a/9.jpg", "a/10.jpg", "b/1.jpg"]
    assert _names(files[1:]) == ["9.jpg", "10.jpg"]


def test_relative_and_absolute_paths_may_be_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert _names([Path("a.jpg"), tmp_path / "b.jpg"]) == ["a.jpg", "b.jpg"]


def test_a_single_file_is_named_by_itself(tmp_path: Path) -> None:
    _touch(tmp_path, "x/only.weird")
    assert _names(tmp_path / "x/only.weird") == ["only.weird"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    photos = _touch(tmp_path / "photos", "a.jpg")
    folder = _touch(tmp_path / "scene", "b.jpg")
    (folder / "linked").symlink_to(photos)
    (folder / "again").symlink_to(photos)
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "c.jpg").symlink_to(photos / "a.jpg")
    assert _names(folder) == ["again/a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], r"holds no photos: it is empty\.$"),
        ([".hidden.jpg"], r"holds no photos: it is empty\.$"),
        (["sub/deeper/notes.txt"], r"holds no photos, only 1 other file \(notes\.txt\)\.$"),
        (["a.txt", "b.txt"], r"holds no photos, only 2 other files \(such as a\.txt\)\.$"),
        (
            ["a.txt", "clip.MP4"],
            r"clip\.MP4 is a video, .*not supported yet: .*ffmpeg -i clip\.MP4",
        ),
        (["a.NEF", "b.nef"], r"camera raw files \(such as a\.NEF\) .*develop them to JPEG"),
    ],
)
def test_a_folder_without_photos_is_one_sentence(
    names: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_photos(_touch(tmp_path, *names))


def test_sub_folders_without_files_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="it is empty"):
        find_photos(tmp_path)


def test_impossible_sources_are_named(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "clip.mov", "raw.dng", "x/b.jpg")
    with pytest.raises(ValueError, match=r"There is no file or folder .*gone\.$"):
        find_photos(tmp_path / "gone")
    with pytest.raises(ValueError, match="list of photos is empty"):
        find_photos([])
    with pytest.raises(ValueError, match="must name files, got the folder"):
        find_photos([tmp_path])
    with pytest.raises(ValueError, match="each file once"):
        find_photos([tmp_path / "a.jpg", tmp_path / "x" / ".." / "a.jpg"])
    with pytest.raises(ValueError, match="is a video, and video input is not supported yet"):
        find_photos(tmp_path / "clip.mov")
    with pytest.raises(ValueError, match="camera raw file; develop it"):
        find_photos([tmp_path / "raw.dng"])


def test_photos_to_evaluate_on_come_last_under_names_of_their_own(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a/1.jpg", "held/2.jpg", "held/10.jpg", "held/notes.txt")
    found = find_photos(tmp_path, eval_data=tmp_path / "held")
    assert [photo.name for photo in found.photos] == [
        "train/a/1.jpg",
        "train/b.jpg",
        "eval/2.jpg",
        "eval/10.jpg",
    ]
    assert [photo.is_eval for photo in found.photos] == [False, False, True, True]
    assert [file.path.name for file in found.skipped] == ["notes.txt"]
    # The other way round, and from a list and a file.
    assert _names(tmp_path / "held", eval_data=tmp_path)[-2:] == ["eval/a/1.jpg", "eval/b.jpg"]
    files = [tmp_path / "b.jpg", tmp_path / "held/2.jpg"]
    assert _names(files[:1], eval_data=files[1]) == ["train/b.jpg", "eval/2.jpg"]


def test_no_photo_is_both_trained_and_evaluated_on(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(ValueError, match="must not be the photos to train on"):
        find_photos(tmp_path, eval_data=tmp_path / "x/..")
    with pytest.raises(ValueError, match=r"a\.jpg must be trained or evaluated on, not both\.$"):
        find_photos(tmp_path, eval_data=tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="There is no file or folder"):
        find_photos(tmp_path, eval_data=tmp_path / "gone")


def test_folder_of_masks_cannot_be_that_of_the_photos(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="must not hold photos and their masks alike"):
        find_photos(tmp_path, exclude=tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    try:
        with open(path, "wb"):
            pass
    except OSError:
        pytest.skip("This file system takes UTF-8 names only.")
    with pytest.raises(ValueError, match="must be valid UTF-8"):
        find_photos(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="The superuser may read everything.")
def test_folders_that_cannot_be_listed_are_named(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(ValueError, match="locked cannot be listed: permission denied"):
            find_photos(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_listing_errors_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ValueError, match=r"cannot be listed: permission denied\.$"):
        find_photos(tmp_path)
