# SPDX-License-Identifier: Apache-2.0
"""Photos and depth maps cut to one of MapAnything's sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn.frames.cover import (
    SIZES_518,
    choose_size,
    cover_image,
    plan_cover,
    resize_depth,
)


@pytest.mark.parametrize(
    ("photos", "size"),
    [
        ([(640, 480)], (518, 392)),
        ([(480, 640)], (392, 518)),
        ([(1920, 1080), (1080, 1920)], (518, 392)),
        ([(100, 100)], (518, 518)),
        ([(900, 100)], (518, 168)),
        ([(100, 900)], (252, 518)),
    ],
)
def test_size_follows_the_mean_shape(photos: list[tuple[int, int]], size: tuple[int, int]) -> None:
    assert choose_size(photos) == size


def test_sizes_are_whole_patches_near_their_shape() -> None:
    for aspect, (width, height) in SIZES_518.items():
        assert width % 14 == height % 14 == 0
        assert width / height == pytest.approx(aspect, abs=1e-3)


@pytest.mark.parametrize("photo", [(640, 480), (480, 640), (1001, 333), (3, 2), (518, 392)])
def test_photos_cover_the_tensor(photo: tuple[int, int]) -> None:
    plan = plan_cover(*photo, (518, 392))
    assert plan.network_size == (518, 392)
    assert bool(plan.valid_mask().all())
    # One side fits exactly, the other is cut on both sides alike.
    extra = [plan.resized_size[axis] - plan.network_size[axis] for axis in range(2)]
    assert min(extra) == 0
    for axis in range(2):
        assert abs(-plan.shift[axis] - extra[axis] / 2) <= 0.5


def test_shrinking_and_enlarging_use_other_filters() -> None:
    generator = np.random.default_rng(0)
    for size in ((200, 100), (20, 10)):
        photo = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        plan = plan_cover(*size, (56, 28))
        kind = Image.Resampling.LANCZOS if size[0] > 56 else Image.Resampling.BICUBIC
        wanted = torch.tensor(np.asarray(photo.resize((56, 28), kind))).permute(2, 0, 1)
        assert torch.equal(cover_image(photo, plan), wanted)


def test_depth_is_taken_and_never_mixed() -> None:
    depth = np.arange(1, 61, dtype=np.float64).reshape(6, 10)
    plan = plan_cover(10, 6, (20, 8))
    found = resize_depth(depth, plan)
    assert found.shape == (8, 20)
    assert found.dtype == torch.float32
    assert set(found.flatten().tolist()) <= set(depth.ravel().tolist())
    # Twice the size, two rows cut above and below.
    assert torch.equal(found[:, ::2], found[:, 1::2])
    assert torch.equal(found[0, ::2], torch.from_numpy(depth[1]).float())


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one photo"):
        choose_size([])
    with pytest.raises(ValueError, match="at least 1 pixel, got 0 x 5"):
        plan_cover(0, 5, (518, 392))
    with pytest.raises(ValueError, match=r"photo's size \(10, 6\), got \(6, 10\)"):
        resize_depth(np.ones((10, 6)), plan_cover(10, 6, (20, 8)))
