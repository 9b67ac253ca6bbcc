# SPDX-License-Identifier: Apache-2.0
"""Shared surface by reprojection, and the choice of views."""

from __future__ import annotations

import pytest
import torch

from training.cameras import look_at
from training.draws import Draws
from training.overlap import choose_views, measure_overlap
from training.world import Views


def before_a_wall(places: list[float]) -> Views:
    """Cameras with 90 degrees of view, one metre before a wall, at places along it."""
    center = torch.tensor([[[x, 0.0, 0.0] for x in places]])
    target = center + torch.tensor([0.0, 1.0, 0.0])
    count = len(places)
    intrinsics = torch.tensor([[32.0, 0, 32], [0, 32, 32], [0, 0, 1]]).expand(1, count, 3, 3)
    return Views(
        images=torch.zeros(1, count, 3, 64, 64, dtype=torch.uint8),
        depth=torch.ones(1, count, 64, 64),
        cam_from_world=look_at(center, target, torch.zeros(1, count)),
        intrinsics=intrinsics,
    )


def test_overlap_of_cameras_before_a_wall_is_what_geometry_says() -> None:
    # They see two metres of it each.
    overlap = measure_overlap(before_a_wall([0.0, 0.5, 1.0, 3.0]), grid=16)[0]
    expected = torch.tensor(
        [[1.0, 0.75, 0.5, 0.0], [0.75, 1.0, 0.75, 0.0], [0.5, 0.75, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    torch.testing.assert_close(overlap, expected, atol=0.07, rtol=0)


def test_what_is_behind_something_does_not_count() -> None:
    views = before_a_wall([0.0, 0.0])
    views.depth[0, 1, :, :32] = 0.5
    overlap = measure_overlap(views, grid=16)[0]
    assert abs(float(overlap[0, 1]) - 0.5) < 0.01
    assert abs(float(overlap[1, 0]) - 0.5) < 0.01


def test_a_view_without_depth_overlaps_with_nothing() -> None:
    views = before_a_wall([0.0, 0.0])
    views.depth[0, 1] = 0.0
    overlap = measure_overlap(views)[0]
    assert overlap[0, 1] == 0
    assert overlap[1, 0] == 0
    assert overlap[1, 1] == 0


def test_chosen_views_are_different_and_share_enough_with_an_earlier_one(views: Views) -> None:
    overlap = measure_overlap(views)
    mutual = torch.minimum(overlap, overlap.mT)
    chosen = choose_views(overlap, 4, Draws(0, "t", torch.arange(40)), least=0.3)
    good = 0
    for scene, members in enumerate(chosen.tolist()):
        assert len(set(members)) == 4
        shared = [
            max(float(mutual[scene, view, earlier]) for earlier in members[:place])
            for place, view in enumerate(members)
            if place
        ]
        good += min(shared) >= 0.3
    # In a few scenes no path shares as much.
    assert good >= 34


def test_a_view_that_shares_nothing_is_taken_last() -> None:
    overlap = measure_overlap(before_a_wall([0.0, 0.5, 1.0, 9.0]), grid=16).repeat(20, 1, 1)
    chosen = choose_views(overlap, 3, Draws(0, "t", torch.arange(20)), least=0.3)
    assert 3 not in chosen.unique().tolist()
    chosen = choose_views(overlap, 4, Draws(0, "t", torch.arange(20)), least=0.3)
    assert chosen[:, 3].unique().tolist() == [3]


def test_near_copies_are_taken_after_views_that_share_enough() -> None:
    overlap = measure_overlap(before_a_wall([0.0, 0.001, 0.5, 0.501]), grid=16).repeat(20, 1, 1)
    chosen = choose_views(overlap, 2, Draws(0, "t", torch.arange(20)), least=0.3)
    assert bool(((chosen[:, 0] < 2) != (chosen[:, 1] < 2)).all())


def test_more_views_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_frames` must be at most 2, got 3"):
        choose_views(torch.ones(1, 2, 2), 3, Draws(0, "t", torch.arange(1)), least=0.1)
