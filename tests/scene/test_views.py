# SPDX-License-Identifier: Apache-2.0
"""One camera at the origin of a 6 x 4 picture, focal length 4, principal point (3, 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ns_sparseattn.scene.views import Sightings, Views, find_sightings, frames_in_reach

FOCAL, CENTER_X, CENTER_Y = 4.0, 3.0, 2.0


def make_views(depth: Tensor, box: tuple[int, int, int, int] = (0, 0, 6, 4)) -> Views:
    projection = torch.tensor(
        [[FOCAL, 0, CENTER_X, 0], [0, FOCAL, CENTER_Y, 0], [0, 0, 1, 0]], dtype=torch.float64
    )
    x, y, z = projection
    planes = torch.stack([z, x - box[0] * z, box[2] * z - x, y - box[1] * z, box[3] * z - y])
    return Views(
        depth=depth[None],
        box=torch.tensor([box]),
        projection=projection[None],
        planes=planes[None],
    )


def at(u: float, v: float, depth: float) -> list[float]:
    """The point that projects to (u, v) at a depth."""
    return [(u - CENTER_X) / FOCAL * depth, (v - CENTER_Y) / FOCAL * depth, depth]


def look(views: Views, points: list[list[float]], *, source: int = 1) -> Sightings:
    return find_sightings(
        views,
        torch.tensor([0]),
        torch.tensor(points, dtype=torch.float64),
        torch.full((len(points),), source),
        depth_tolerance=0.02,
        edge_tolerance=0.05,
    )


def test_agreeing_points_are_seen() -> None:
    seen = look(
        make_views(torch.full((4, 6), 2.0)),
        [at(3, 2, 2.0), at(3, 2, 2.039), at(3, 2, 1.9615), at(3, 2, 2.05), at(3, 2, 1.95)],
    )
    assert seen.point.tolist() == [0, 1, 2]
    torch.testing.assert_close(seen.ratio, torch.tensor([1.0, 2 / 2.039, 2 / 1.9615]).double())


def test_border_belongs_to_the_photo_on_two_sides() -> None:
    points = [at(0, 0, 2), at(5.99, 3.99, 2), at(6, 2, 2), at(3, 4, 2), at(-0.01, 2, 2)]
    assert look(make_views(torch.full((4, 6), 2.0)), points).point.tolist() == [0, 1]


def test_padding_and_points_behind_are_not_seen() -> None:
    views = make_views(torch.full((4, 6), 2.0), box=(1, 0, 5, 4))
    points = [at(0.5, 2, 2), at(5.5, 2, 2), at(3, 2, -2), at(3, 2, 0), at(1.1, 2, 2)]
    assert look(views, points).point.tolist() == [4]


def test_the_source_is_left_out() -> None:
    views = make_views(torch.full((4, 6), 2.0))
    assert look(views, [at(3, 2, 2.0)], source=0).point.numel() == 0


def test_inverse_depth_is_interpolated_and_extrapolated() -> None:
    column = torch.arange(6) + 0.5
    depth = (1.0 / (0.5 + 0.005 * column)).expand(4, 6)
    u = [0.0, 0.25, 1.7, 5.9]
    seen = look(make_views(depth), [at(x, 1.3, 1.0 / (0.5 + 0.005 * x)) for x in u])
    assert seen.is_exact.all()
    torch.testing.assert_close(seen.ratio, torch.ones(4).double(), atol=1e-6, rtol=0.0)


def test_nearest_pixel_counts_at_edges() -> None:
    depth = torch.full((4, 6), 2.0)
    depth[:, 3:] = 3.0
    points = [at(2.9, 2, 2.0), at(2.9, 2, 3.0), at(3.1, 2, 3.0), at(1.4, 2, 2.0)]
    seen = look(make_views(depth), points)
    assert seen.point.tolist() == [0, 2, 3]
    assert seen.is_exact.tolist() == [False, False, True]


def test_invalid_pixels_see_nothing_but_their_neighbours_do() -> None:
    depth = torch.full((4, 6), 2.0)
    depth[:, 3:] = 0.0
    seen = look(make_views(depth), [at(2.9, 2, 2.0), at(3.1, 2, 2.0)])
    assert seen.point.tolist() == [0]
    assert seen.is_exact.tolist() == [False]


def test_frames_out_of_reach_are_not_looked_at() -> None:
    views = make_views(torch.ones(4, 6))

    def reach(points: list[list[float]]) -> int:
        return frames_in_reach(views, torch.tensor(points, dtype=torch.float64)).numel()

    assert reach([at(3, 2, 1)]) == 1
    assert reach([at(-5, 2, 1), at(-6, 2, 1.1)]) == 0
    assert reach([at(3, 2, -1), at(4, 2, -2)]) == 0
    # The box around two points on either side meets the frustum, although neither point does.
    assert reach([at(-5, 2, 1), at(11, 2, 1)]) == 1
