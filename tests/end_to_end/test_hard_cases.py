# SPDX-License-Identifier: Apache-2.0
"""Awkward folders: each gives a right scene, or one clear sentence and nothing at the output.

The network is untrained, so names, sizes, cameras, files and sentences are judged here, not
geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ns_sparseattn.errors import BrokenPhotoError
from ns_sparseattn.frames import natural_key
from ns_sparseattn.options import FrameOptions, SceneOptions
from ns_sparseattn.testing.photos import (
    HardCase,
    camera_exif,
    draw_view,
    write_hard_case,
    write_photo,
)

from .conftest import LONG_SIDE, WrittenScene, leftovers

SIZE = (96, 64)
SMALL = FrameOptions(long_side=LONG_SIDE)

MakeScene = Callable[..., WrittenScene]


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[HardCase], Path]:
    """Write the photos of a case."""
    return lambda case: write_hard_case(tmp_path / "photos", case, size=SIZE)


def names_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refuse(make_scene: MakeScene, folder: Path, sentence: str) -> str:
    """Expect an error with a sentence, and nothing beside the photos."""
    beside = set(folder.parent.iterdir())
    with pytest.raises(ValueError, match=sentence) as caught:
        make_scene(folder)
    assert set(folder.parent.iterdir()) == beside
    return str(caught.value)


def test_corrupt_files_are_all_named_and_nothing_is_written(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("corrupt")
    message = refuse(make_scene, folder, r"Cannot read 4 of 8 photos")
    for name in ("empty.jpg", "not_an_image.jpg", "trunc_half.jpg", "trunc_header.jpg"):
        assert name in message
    assert "img_0.jpg" not in message


def test_corrupt_files_can_be_left_out_and_are_listed(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(
        photos("corrupt"), frames=FrameOptions(long_side=LONG_SIDE, skip_broken=True)
    )
    assert set(written.sizes) == {"img_0.jpg", "img_1.jpg", "img_2.jpg", "really_jpeg.png"}
    skipped = {Path(entry["path"]).name for entry in written.manifest["skipped"]}
    assert {"empty.jpg", "trunc_half.jpg", "notes.txt"} <= skipped
    assert "Left out of the folder: empty.jpg (the file is empty (0 bytes))" in written.notes
    # The mislabelled JPEG is a copy of the first photo under another name.
    assert "really_jpeg.png of img_0.jpg" in written.notes


def test_one_broken_photo_alone_is_named(make_scene: MakeScene, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"")
    with pytest.raises(BrokenPhotoError, match=r"Cannot read .*broken\.jpg: the file is empty"):
        make_scene(path)
    assert not (tmp_path / "scene").exists()


def test_degraded_photos_stay_in_and_those_that_show_nothing_are_named(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("degraded")
    written = make_scene(folder)
    assert set(written.sizes) == names_of(folder)
    assert "Photos that show nothing cannot be placed: blank.jpg." in written.notes


def test_duplicates_stay_in_and_are_named(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("duplicates"))
    assert len(written.sizes) == 5
    assert "copies of others add nothing: img_0_copy.jpg of img_0.jpg." in written.notes


def test_empty_folder_is_refused_in_one_sentence(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    message = refuse(make_scene, photos("empty_folder"), "holds no photos: it is empty")
    assert "\n" not in message


def test_missing_folder_is_refused_in_one_sentence(make_scene: MakeScene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no file or folder .*nowhere"):
        make_scene(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_rotated_photos_come_out_upright_with_one_camera(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("exif_rotated"))
    assert written.sizes == {f"img_{i}.jpg": SIZE for i in range(1, 9)}
    assert set(written.cameras.values()) == {1}
    how = {photo["name"]: photo["how"] for photo in written.manifest["photos"]}
    # Only the upright photo keeps its bytes.
    assert how.pop("img_1.jpg") != "upright copy"
    source = written.root.parent / "photos" / "img_1.jpg"
    assert (written.root / "images/img_1.jpg").read_bytes() == source.read_bytes()
    for name in how:
        assert (written.root / "images" / name).read_bytes() != source.read_bytes()


def test_every_format_becomes_one_that_trainers_read(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("formats")
    written = make_scene(folder)
    assert len(written.sizes) == len(names_of(folder)) == 17
    assert set(written.sizes.values()) == {SIZE}
    assert "with space ä.jpg" in written.sizes
    assert {Path(name).suffix.lower() for name in written.sizes} <= {
        ".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp",
    }  # fmt: skip
    # Transparency is a mask.
    assert (written.root / "masks").is_dir()


def test_large_photos_keep_their_size(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("large_images"))
    assert written.sizes == {f"img_{i}.jpg": (1536, 1024) for i in range(2)}
    (camera,) = written.model.cameras.values()
    assert (camera.principal_point_x, camera.principal_point_y) == (768, 512)


def test_mixed_sizes_get_a_camera_for_each_size(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("mixed_sizes"))
    assert written.sizes == {"img_0.jpg": (96, 64), "img_1.jpg": (48, 32), "img_2.jpg": (30, 20)}
    assert len(set(written.cameras.values())) == 3


def test_mixed_sizes_cannot_share_one_camera(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("mixed_sizes")
    with pytest.raises(ValueError, match="needs photos of one size"):
        make_scene(folder, scene=SceneOptions(camera_mode="single"))
    assert set(folder.parent.iterdir()) == {folder}


def test_nested_folders_keep_photos_of_the_same_base_name_apart(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("nested_tree")
    written = make_scene(folder)
    assert set(written.sizes) == names_of(folder)
    for name in written.sizes:
        copied = (written.root / "images" / name).read_bytes()
        assert copied == (folder / name).read_bytes()
    # Sorted as people do, folder by folder.
    sources = [photo["source"] for photo in written.manifest["photos"]]
    assert sources == sorted(sources, key=natural_key)


def test_portrait_and_landscape_photos_keep_their_shape(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("portrait_landscape"))
    assert list(written.sizes.values()) == [(96, 64), (64, 96), (96, 64), (64, 96)]
    assert written.cameras["img_0.jpg"] == written.cameras["img_2.jpg"]
    assert written.cameras["img_0.jpg"] != written.cameras["img_1.jpg"]


def test_pure_rotation_gives_a_scene_of_all_photos(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    assert len(make_scene(photos("pure_rotation")).sizes) == 4


def test_single_photo_gives_one_camera_and_points_that_are_called_unchecked(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("single_image"))
    assert (written.model.num_images(), len(written.model.cameras)) == (1, 1)
    assert len(written.model.points3D) > 0
    assert "One photo alone: no second view can confirm its depth" in written.notes


def test_single_photo_may_be_given_as_a_file(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    assert list(make_scene(photos("single_image") / "img_0.jpg").sizes) == ["img_0.jpg"]


def test_two_identical_photos_are_both_kept_with_a_note(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("two_identical"))
    assert list(written.sizes) == ["img_0.jpg", "img_1.jpg"]
    assert "All photos show the same picture" in written.notes
    assert "nothing can be triangulated" in written.notes


@pytest.mark.parametrize("case", ["two_images", "two_no_overlap"])
def test_two_photos_are_enough_for_a_scene(
    make_scene: MakeScene, photos: Callable[[HardCase], Path], case: HardCase
) -> None:
    written = make_scene(photos(case))
    assert list(written.sizes) == ["img_0.jpg", "img_1.jpg"]
    assert "All photos show the same picture" not in written.notes


def test_two_scenes_in_one_folder_give_a_scene_of_all_photos(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    assert len(make_scene(photos("two_scenes_mixed")).sizes) == 6


def test_video_is_refused_with_how_to_extract_its_frames(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("video_only")
    for given in (folder, folder / "clip.mp4"):
        message = refuse(make_scene, given, "video input is not supported yet")
        assert "ffmpeg -i clip.mp4" in message
        assert "\n" not in message


def test_video_beside_photos_is_left_out_with_a_note(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    folder = photos("two_images")
    (folder / "clip.mp4").write_bytes(bytes(64))
    written = make_scene(folder)
    assert list(written.sizes) == ["img_0.jpg", "img_1.jpg"]
    assert "Left out of the folder: clip.mp4 (a video)." in written.notes


def test_cameras_are_told_apart_by_exif(make_scene: MakeScene, tmp_path: Path) -> None:
    for i, model in enumerate(("Model 1", "Model 1", "Model 2")):
        write_photo(
            tmp_path / f"photos/img_{i}.jpg",
            draw_view(SIZE, index=i),
            exif=camera_exif(model=model),
        )
    cameras = make_scene(tmp_path / "photos").cameras
    assert cameras["img_0.jpg"] == cameras["img_1.jpg"] != cameras["img_2.jpg"]


def test_untrained_weights_are_called_unverified(
    make_scene: MakeScene, photos: Callable[[HardCase], Path]
) -> None:
    written = make_scene(photos("two_images"))
    assert "The weights are unverified" in written.notes
    assert written.manifest["weights"]["verified"] is False
    assert written.manifest["notes"] == list(written.result.notes)
    assert not leftovers(written.root.parent)
