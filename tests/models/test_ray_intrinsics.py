# SPDX-License-Identifier: Apache-2.0
"""Intrinsics from rays: cameras of known focal length under noise, outliers and weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ns_sparseattn.geometry import pixel_centers, unproject
from ns_sparseattn.models.ray_intrinsics import (
    IntrinsicsFit,
    fit_intrinsics,
    least_squares_intrinsics,
)

HEIGHT, WIDTH = 98, 140
FREE = IntrinsicsFit(is_centered=False)


def _intrinsics(focal_x: float, focal_y: float, shift: tuple[float, float] = (0, 0)) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0], matrix[1, 1] = focal_x, focal_y
    matrix[0, 2], matrix[1, 2] = WIDTH / 2 + shift[0], HEIGHT / 2 + shift[1]
    return matrix


def _points(intrinsics: Tensor, seed: int = 0) -> Tensor:
    """Points of a bumpy surface in the camera, ``[1, H, W, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 4 * torch.rand(HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return unproject(pixel_centers(HEIGHT, WIDTH), depth, intrinsics)[None]


def _noise(points: Tensor, deviation: float, seed: int = 1) -> Tensor:
    """Turn rays by normal noise in their slopes; the depth stays."""
    generator = torch.Generator().manual_seed(seed)
    noise = deviation * torch.randn(points.shape, generator=generator, dtype=points.dtype)
    noise[..., 2] = 0
    return points + noise * points[..., 2:]


def _spoil(points: Tensor, share: float, seed: int = 2) -> Tensor:
    """Replace a share of the points by points whose rays lean to the right and down."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(points.shape[:-1], generator=generator) < share
    wild = 1 + 5 * torch.rand(points.shape, generator=generator, dtype=points.dtype)
    return torch.where(wrong.unsqueeze(-1), wild, points)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (9.0, -4.0)])
def test_exact_points_give_the_camera_back(shift: tuple[float, float]) -> None:
    camera = _intrinsics(120.0, 131.0, shift)
    torch.testing.assert_close(
        fit_intrinsics(_points(camera), fit=FREE)[0], camera.float(), rtol=1e-6, atol=1e-4
    )
    torch.testing.assert_close(
        least_squares_intrinsics(_points(camera), is_centered=False)[0],
        camera,
        rtol=1e-6,
        atol=1e-4,
    )
    if shift == (0.0, 0.0):
        torch.testing.assert_close(fit_intrinsics(_points(camera))[0], camera.float())


@pytest.mark.parametrize("focal", [40.0, 120.0, 900.0])
@pytest.mark.parametrize("fit", [IntrinsicsFit(), FREE], ids=["centered", "free"])
def test_noise_and_outliers_hardly_move_the_focal_length(focal: float, fit: IntrinsicsFit) -> None:
    camera = _intrinsics(focal, 1.1 * focal)
    # A pixel of noise in every ray.
    noisy = _spoil(_noise(_points(camera), 1 / focal), 0.2)
    found = fit_intrinsics(noisy, fit=fit)[0]
    assert float(found[0, 0]) == pytest.approx(focal, rel=3e-3)
    assert float(found[1, 1]) == pytest.approx(1.1 * focal, rel=3e-3)
    assert float(found[0, 2]) == pytest.approx(WIDTH / 2, abs=0.1)
    # Plain least squares is useless here, which is why it is not what we use.
    plain = least_squares_intrinsics(noisy, is_centered=fit.is_centered)[0]
    assert abs(float(plain[0, 0]) / focal - 1) > 0.3


def test_noise_does_not_shorten_the_focal_length() -> None:
    # Narrow views: noise of ten pixels is a fifth of the spread of the rays.
    camera = _intrinsics(900.0, 900.0)
    noisy = _noise(_points(camera), 10 / 900)
    assert float(fit_intrinsics(noisy)[0, 0, 0]) == pytest.approx(900.0, rel=0.01)
    assert float(least_squares_intrinsics(noisy, is_centered=True)[0, 0, 0]) < 0.97 * 900


def test_confidence_decides_between_two_cameras() -> None:
    left, right = _points(_intrinsics(100.0, 100.0)), _points(_intrinsics(150.0, 150.0))
    generator = torch.Generator().manual_seed(3)
    is_left = torch.rand(1, HEIGHT, WIDTH, generator=generator) < 0.5
    mixed = torch.where(is_left.unsqueeze(-1), left, right)
    for trusted, focal in ((is_left, 100.0), (~is_left, 150.0)):
        confidence = torch.where(trusted, 1.0, 0.01)
        found = fit_intrinsics(mixed, confidence)[0]
        assert float(found[0, 0]) == pytest.approx(focal, rel=1e-4)


def test_frames_of_one_camera_share_their_intrinsics() -> None:
    cameras = [_intrinsics(100.0, 100.0), _intrinsics(104.0, 104.0), _intrinsics(200.0, 200.0)]
    points = torch.cat([_points(camera, seed) for seed, camera in enumerate(cameras)])
    points[:2] = _noise(points[:2], 0.02)
    own = fit_intrinsics(points)
    shared = fit_intrinsics(points, camera_ids=[7, 7, 3])
    assert torch.equal(shared[0], shared[1])
    assert torch.equal(shared[2], own[2])
    assert float(shared[0, 0, 0]) == pytest.approx(102.0, rel=5e-3)
    assert float(own[0, 0, 0]) == pytest.approx(100.0, rel=5e-3)
    assert float(own[1, 1, 1]) == pytest.approx(104.0, rel=5e-3)


def test_points_behind_the_camera_and_not_finite_ones_do_not_count() -> None:
    camera = _intrinsics(120.0, 120.0)
    points = _points(camera)
    points[0, ::3] *= -1
    points[0, 1::3, ::2] = math.nan
    points[0, :, ::7, 2] = 0
    torch.testing.assert_close(fit_intrinsics(points)[0], camera.float(), rtol=1e-5, atol=1e-4)


def test_weights_of_zero_are_replaced_by_equal_ones() -> None:
    camera = _intrinsics(120.0, 120.0)
    found = fit_intrinsics(_points(camera), torch.zeros(1, HEIGHT, WIDTH))
    torch.testing.assert_close(found[0], camera.float(), rtol=1e-5, atol=1e-4)


def test_rays_that_do_not_spread_have_no_finite_focal_length() -> None:
    rays = torch.tensor([0.0, 0.0, 1.0]).expand(1, 8, 8, 3)
    assert not bool(torch.isfinite(fit_intrinsics(rays)[0, 0, 0]))
    assert not bool(torch.isfinite(fit_intrinsics(-rays)[0, 0, 0]))


def test_large_images_are_sampled() -> None:
    camera = _intrinsics(120.0, 131.0)
    fit = IntrinsicsFit(max_samples=300)
    torch.testing.assert_close(
        fit_intrinsics(_points(camera), fit=fit)[0], camera.float(), rtol=1e-5, atol=1e-4
    )


def test_wrong_inputs_are_refused() -> None:
    rays = torch.ones(2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"`rays` must have shape \[F, H, W, 3\]"):
        fit_intrinsics(rays[0])
    with pytest.raises(ValueError, match=r"`confidence` must have shape \[2, 4, 5\]"):
        fit_intrinsics(rays, torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match="`camera_ids` must have one number for each of 2 frames"):
        fit_intrinsics(rays, camera_ids=[1])
    with pytest.raises(ValueError, match="`cutoff` must be positive"):
        IntrinsicsFit(cutoff=0)
