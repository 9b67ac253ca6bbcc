# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ns_sparseattn.geometry import (
    camera_centers,
    invert_rigid,
    nearest_rotation,
    pixel_centers,
    project,
    quaternion_to_rotation,
    transform_points,
    unproject,
)

# The first call of an operation may take long on a busy machine.
steady = settings(deadline=None, derandomize=True)

coordinate = st.floats(-100.0, 100.0)
unit_interval = st.floats(-1.0, 1.0)
quaternions = st.tuples(unit_interval, unit_interval, unit_interval, unit_interval).filter(
    lambda q: sum(x * x for x in q) > 1e-2
)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def rigid_transforms(draw: st.DrawFn) -> Tensor:
    rotation = quaternion_to_rotation(tensor(draw(quaternions)))
    translation = tensor(draw(st.tuples(coordinate, coordinate, coordinate)))
    return torch.cat([rotation, translation[:, None]], dim=1)


points = st.tuples(coordinate, coordinate, coordinate).map(tensor)


@st.composite
def intrinsics(draw: st.DrawFn) -> Tensor:
    fx, fy = draw(st.floats(10.0, 1e4)), draw(st.floats(10.0, 1e4))
    return tensor([[fx, 0.0, draw(coordinate)], [0.0, fy, draw(coordinate)], [0.0, 0.0, 1.0]])


@steady
@given(rigid_transforms())
def test_inverse_of_inverse(transform: Tensor) -> None:
    torch.testing.assert_close(invert_rigid(invert_rigid(transform)), transform)


@steady
@given(rigid_transforms(), points)
def test_inverse_undoes(transform: Tensor, point: Tensor) -> None:
    moved = transform_points(transform, point)
    torch.testing.assert_close(
        transform_points(invert_rigid(transform), moved), point, atol=1e-9, rtol=1e-9
    )


@steady
@given(rigid_transforms())
def test_camera_center_is_the_cameras_origin(cam_from_world: Tensor) -> None:
    center = transform_points(cam_from_world, camera_centers(cam_from_world))
    torch.testing.assert_close(center, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0.0)


@steady
@given(points, intrinsics(), st.floats(1e-3, 1e3))
def test_unproject_then_project(point: Tensor, camera: Tensor, depth: float) -> None:
    pixel = point[:2]
    lifted = unproject(pixel, tensor(depth), camera)
    again, again_depth = project(lifted, camera)
    assert float(again_depth) == depth
    torch.testing.assert_close(again, pixel, atol=1e-7, rtol=1e-9)


def test_point_on_the_axis_hits_the_principal_point() -> None:
    camera = tensor([[100.0, 0.0, 32.0], [0.0, 110.0, 24.0], [0.0, 0.0, 1.0]])
    pixel, depth = project(tensor([[0.0, 0.0, 5.0], [1.0, 2.0, 4.0]]), camera)
    assert pixel.tolist() == [[32.0, 24.0], [57.0, 79.0]]
    assert depth.tolist() == [5.0, 4.0]


def test_points_behind_the_camera_keep_their_negative_depth() -> None:
    pixel, depth = project(tensor([[1.0, 1.0, -2.0], [1.0, 1.0, 0.0]]), torch.eye(3).double())
    assert depth.tolist() == [-2.0, 0.0]
    assert bool(torch.isfinite(pixel).all())


def test_pixel_centres_are_at_half_integers() -> None:
    centers = pixel_centers(2, 3)
    assert centers.shape == (2, 3, 2)
    assert centers[0, 0].tolist() == [0.5, 0.5]
    assert centers[1, 2].tolist() == [2.5, 1.5]


@steady
@given(quaternions, st.floats(0.1, 10.0))
def test_quaternion_of_any_length_is_a_rotation(q: tuple[float, ...], length: float) -> None:
    rotation = quaternion_to_rotation(tensor(q))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double())
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
    torch.testing.assert_close(quaternion_to_rotation(length * tensor(q)), rotation)
    torch.testing.assert_close(quaternion_to_rotation(-tensor(q)), rotation)


def test_quaternion_about_each_axis() -> None:
    half = math.sqrt(0.5)
    quarter_turns = quaternion_to_rotation(
        tensor([[half, half, 0, 0], [half, 0, half, 0], [half, 0, 0, half]])
    )
    expected = tensor(
        [
            [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
            [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
            [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        ]
    )
    torch.testing.assert_close(quarter_turns, expected)


@steady
@given(quaternions, st.lists(unit_interval, min_size=9, max_size=9))
def test_nearest_rotation_recovers_a_disturbed_one(
    q: tuple[float, ...], noise: list[float]
) -> None:
    rotation = quaternion_to_rotation(tensor(q))
    torch.testing.assert_close(nearest_rotation(1.7 * rotation), rotation)
    disturbed = rotation + 0.05 * tensor(noise).reshape(3, 3)
    nearest = nearest_rotation(disturbed)
    assert float((nearest - disturbed).norm()) <= float((rotation - disturbed).norm()) + 1e-12


def test_nearest_rotation_of_a_reflection_is_no_reflection() -> None:
    nearest = nearest_rotation(torch.diag(tensor([1.0, 1.0, -0.1])))
    torch.testing.assert_close(nearest, torch.eye(3).double())
