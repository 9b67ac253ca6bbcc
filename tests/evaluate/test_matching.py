# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest

from ns_sparseattn.evaluate.matching import match_names, match_times


@pytest.mark.parametrize(
    ("first", "second", "pairs", "rule"),
    [
        pytest.param(
            ["b.jpg", "a.jpg"], ["a.jpg", "b.jpg"], ((1, 0), (0, 1)), "whole name", id="order"
        ),
        pytest.param(["a.png"], ["a.heic"], ((0, 0),), "name without suffix", id="suffix"),
        pytest.param(["./x\\a.jpg"], ["x/a.jpg"], ((0, 0),), "whole name", id="slashes"),
        pytest.param(
            ["l__0.jpg", "r__0.jpg"],
            ["l/0.jpg", "r/0.jpg"],
            ((0, 0), (1, 1)),
            "name with folders joined by __",
            id="flat_names_of_a_scene",
        ),
        pytest.param(
            ["a.jpg"], ["dslr/a.jpg"], ((0, 0),), "file name without folders", id="folder"
        ),
        pytest.param(
            ["000001.jpg"],
            ["000001"],
            ((0, 0),),
            "name without suffix",
            id="numbers",
        ),
        pytest.param(
            ["train/a.png", "eval/b.png"],
            ["a.jpg", "b.jpg"],
            ((0, 0), (1, 1)),
            "file name without folders and suffix",
            id="folder_and_suffix",
        ),
        # Nested names repeat as file names, but whole names tell them apart.
        pytest.param(
            ["l/0.jpg", "r/0.jpg"],
            ["r/0.jpg", "l/0.jpg"],
            ((1, 0), (0, 1)),
            "whole name",
            id="nested",
        ),
        # Only one whole name agrees, where all file names do.
        pytest.param(
            ["a.jpg", "x/b.jpg"],
            ["a.jpg", "y/b.jpg"],
            ((0, 0), (1, 1)),
            "file name without folders",
            id="most_images_win",
        ),
    ],
)
def test_names(
    first: Sequence[str], second: Sequence[str], pairs: tuple[tuple[int, int], ...], rule: str
) -> None:
    match = match_names(first, second)
    assert (match.pairs, match.rule) == (pairs, rule)


def test_an_ambiguous_name_is_not_guessed() -> None:
    with pytest.raises(ValueError, match=r"file name without folders: 0\.jpg stands for several"):
        match_names(["left/0.jpg", "right/0.jpg"], ["0.jpg"])


def test_names_that_repeat_in_one_model_alone_do_no_harm() -> None:
    assert match_names(["l/9.jpg", "r/9.jpg", "l/1.jpg"], ["1.jpg"]).pairs == ((2, 0),)


def test_models_of_other_photos_are_named() -> None:
    with pytest.raises(ValueError, match=r"no image in common: one has a\.jpg, .* b\.jpg"):
        match_names(["a.jpg"], ["b.jpg"])


def test_times_go_to_the_nearest_pose_and_no_pose_is_used_twice() -> None:
    # Both images are nearest to the second pose; the nearer one gets it, the other the first.
    match = match_times(["rgb/10.015.png", "rgb/10.020.png"], ["10.001", "10.021", "11.0"])
    assert match.pairs == ((0, 0), (1, 1))


def test_times_farther_than_the_limit_do_not_match() -> None:
    assert match_times(["1.00.png", "2.0.png"], ["1.019", "2.021"]).pairs == ((0, 0),)
    assert match_times(["2.0.png"], ["2.021"], max_difference_s=0.03).pairs == ((0, 0),)


@pytest.mark.parametrize(
    "name", ["1311868169.163", "a/1311868169.163.png", "1311868169.163000.jpg"]
)
def test_stamps_with_and_without_a_suffix(name: str) -> None:
    assert match_times([name], ["1311868169.1631"], max_difference_s=0.001).pairs == ((0, 0),)


def test_names_that_are_no_times_are_named() -> None:
    with pytest.raises(ValueError, match=r"named by their time in seconds.*got IMG_1\.jpg"):
        match_times(["IMG_1.jpg"], ["1.0"])


def test_times_of_another_recording_are_named() -> None:
    with pytest.raises(ValueError, match=r"No image is within 0\.02 s.*5\.000000.*1\.000000"):
        match_times(["5.0.png"], ["1.0", "2.0"])
