# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_sparseattn.evaluate.alignment import trajectory_error, umeyama

from .conftest import turn


def cloud(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)))


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-2, 1e2),
    angle=st.floats(0, 360),
    seed=st.integers(0, 1000),
    shift=st.floats(-100, 100),
)
def test_a_known_similarity_is_found(scale: float, angle: float, seed: int, shift: float) -> None:
    source, rotation = cloud(seed=seed), turn((1, -2, 0.5), angle)
    translation = torch.tensor([shift, 1.0, -shift], dtype=torch.float64)
    target = scale * source @ rotation.T + translation
    found = umeyama(source, target)
    assert found.scale == pytest.approx(scale, rel=1e-9)
    torch.testing.assert_close(found.rotation, rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.apply(source), target)
    torch.testing.assert_close(found.inverse().apply(target), source)


def test_the_rotation_is_never_a_reflection() -> None:
    source = cloud()
    mirrored = source * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert float(torch.linalg.det(umeyama(source, mirrored).rotation)) == pytest.approx(1.0)


def test_nothing_fits_better_than_what_is_found() -> None:
    source, target = cloud(seed=1), cloud(seed=2)
    found = umeyama(source, target)
    best = float((found.apply(source) - target).square().sum())
    for angle, scale in ((0.5, 1.0), (0.0, 1.01), (0.0, 0.99)):
        points = scale * found.apply(source) @ turn((0, 1, 1), angle).T
        shifted = points - points.mean(0) + target.mean(0)
        assert float((shifted - target).square().sum()) > best


def test_errors_by_hand() -> None:
    # One diagonal of a square longer by a tenth, the other shorter by as much: no similarity does
    # better than none at all, and each corner is left off by a tenth.
    square = torch.tensor([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    reference = square * torch.tensor([1.1, 0.9, 1.0], dtype=torch.float64)
    error, similarity = trajectory_error(square, reference)
    assert similarity.scale == pytest.approx(1.0)
    assert error.rmse == pytest.approx(0.1)
    assert [error.mean, error.median, error.max] == pytest.approx([0.1] * 3)
    assert error.extent == pytest.approx(2.2)
    assert error.rmse_share == pytest.approx(0.1 / 2.2)


def test_an_estimate_at_one_place_is_put_into_the_middle() -> None:
    reference = cloud()
    error, similarity = trajectory_error(torch.ones(8, 3, dtype=torch.float64), reference)
    assert similarity.scale == 0.0
    spread = (reference - reference.mean(0)).square().sum(-1).mean().sqrt()
    assert error.rmse == pytest.approx(float(spread))


def test_cameras_on_a_line_have_no_error_when_they_are_right() -> None:
    line = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    error, _ = trajectory_error(line @ turn((0, 0, 1), 40).T, line)
    assert error.rmse == pytest.approx(0.0, abs=1e-12)
