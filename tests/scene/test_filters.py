# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from ns_sparseattn.frames import Frames, PixelMap
from ns_sparseattn.options import SceneOptions
from ns_sparseattn.prediction import Prediction
from ns_sparseattn.scene.filters import (
    confidence_threshold,
    depth_edges,
    find_candidates,
    valid_depth,
)
from ns_sparseattn.testing.stubs import stub_frame, stub_frames


def make_prediction(depth: torch.Tensor, confidence: torch.Tensor | None = None) -> Prediction:
    num_frames = depth.shape[0]
    return Prediction(
        cam_from_world=torch.eye(3, 4).repeat(num_frames, 1, 1),
        intrinsics=torch.eye(3).repeat(num_frames, 1, 1),
        depth=depth,
        confidence=torch.ones_like(depth) if confidence is None else confidence,
    )


def one_frame(masks: torch.Tensor | None = None) -> Frames:
    """A photo of 28 x 14 network pixels, padded by 14 rows below."""
    frame = stub_frame("a.jpg", (56, 28))
    frames = stub_frames([frame])
    padded = PixelMap(
        original_size=(56, 28), resized_size=(28, 14), shift=(0, 0), network_size=(28, 28)
    )
    object.__setattr__(frame, "pixel_map", padded)
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    return Frames(frames=frames.frames, images=images, masks=masks)


def test_only_usable_pixels_keep_their_depth() -> None:
    depth = torch.full((1, 28, 28), 2.0)
    bad = [float("nan"), float("inf"), 0.0, -1.0, 1e-45]
    depth[0, 0, : len(bad)] = torch.tensor(bad)
    confidence = torch.ones_like(depth)
    confidence[0, 1, 0] = float("nan")
    masks = torch.ones(1, 28, 28, dtype=torch.bool)
    masks[0, 2, :] = False
    prediction = make_prediction(depth, confidence)
    before = depth.clone()

    valid = valid_depth(prediction, one_frame(masks), torch.tensor([True]))

    expected = torch.full((1, 28, 28), 2.0)
    expected[0, 14:] = 0.0
    expected[0, 0, : len(bad)] = 0.0
    expected[0, 1, 0] = 0.0
    expected[0, 2] = 0.0
    torch.testing.assert_close(valid, expected)
    torch.testing.assert_close(depth, before, equal_nan=True)


def test_a_frame_without_a_pose_has_no_valid_pixel() -> None:
    prediction = make_prediction(torch.ones(1, 28, 28))
    assert not bool(valid_depth(prediction, one_frame(), torch.tensor([False])).any())


@pytest.mark.parametrize(
    ("percentile", "num_kept"), [(0.0, 100), (25.0, 75), (99.0, 1), (100.0, 1)]
)
def test_percentile_counts_valid_pixels_only(percentile: float, num_kept: int) -> None:
    confidence = torch.arange(200.0).reshape(1, 10, 20)
    depth = (confidence < 100).float()
    threshold = confidence_threshold(confidence, depth, percentile)
    assert int(((confidence >= threshold) & (depth > 0)).sum()) == num_kept


def test_constant_confidence_drops_nothing() -> None:
    assert confidence_threshold(torch.ones(1, 4, 4), torch.ones(1, 4, 4), 50.0) == 1.0


def test_without_a_valid_pixel_there_is_no_threshold() -> None:
    assert confidence_threshold(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), 50.0) == -math.inf


def test_edges_are_both_sides_of_a_step() -> None:
    depth = torch.full((6, 6), 1.0)
    depth[:, 3:] = 1.2
    edges = depth_edges(depth, 0.05)
    assert edges[0].tolist() == [False, False, True, True, False, False]
    assert not bool(depth_edges(depth, 0.25).any())


def test_invalid_neighbours_make_no_edge() -> None:
    depth = torch.full((5, 5), 1.0)
    depth[2, 2] = 0.0
    assert not bool(depth_edges(depth, 0.05).any())


def test_candidates_are_confident_pixels_off_edges() -> None:
    depth = torch.full((1, 28, 28), 1.0)
    depth[0, :, 14:] = 2.0
    confidence = torch.ones(1, 28, 28)
    confidence[0, 0] = 0.5
    candidates = find_candidates(
        make_prediction(depth, confidence), depth, 1.0, SceneOptions(), limit=10_000
    )
    assert len(candidates) == 27 * 26
    assert float(candidates.pixel[:, 1].min()) == 1.5
    assert not {13.5, 14.5} & set(candidates.pixel[:, 0].tolist())


@pytest.mark.parametrize("limit", [50, 333, 2000])
def test_candidates_are_bounded_and_spread(limit: int) -> None:
    depth = torch.ones(4, 28, 42)
    candidates = find_candidates(make_prediction(depth), depth, 0.0, SceneOptions(), limit=limit)
    assert len(candidates) == pytest.approx(limit, rel=0.1)
    per_frame = torch.bincount(candidates.frame, minlength=4)
    assert int(per_frame.min()) >= 0.7 * limit / 4
    # Every quarter of the picture gets its share.
    quarters = (candidates.pixel[:, 0] > 21).long() * 2 + (candidates.pixel[:, 1] > 14).long()
    assert int(torch.bincount(quarters, minlength=4).min()) >= 0.7 * limit / 4
