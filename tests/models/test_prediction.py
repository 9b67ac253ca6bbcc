# SPDX-License-Identifier: Apache-2.0
"""What all models return."""

from __future__ import annotations

import math

import torch

from ns_sparseattn.prediction import Prediction


def _prediction(confidence: torch.Tensor) -> Prediction:
    num_frames = len(confidence)
    return Prediction(
        cam_from_world=torch.eye(4)[:3].expand(num_frames, 3, 4),
        intrinsics=torch.eye(3).expand(num_frames, 3, 3),
        depth=torch.ones_like(confidence),
        confidence=confidence,
    )


def test_confidence_ranks_count_what_is_lower() -> None:
    confidence = torch.tensor([[[3.0, -1.0, 7.0]], [[3.0, math.nan, math.inf]]])
    rank = _prediction(confidence).confidence_rank()
    torch.testing.assert_close(rank * 6, torch.tensor([[[2.0, 1, 4]], [[2, 0, 5]]]))


def test_confidence_ranks_do_not_depend_on_the_scale_of_a_model() -> None:
    confidence = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0))
    plain = _prediction(confidence).confidence_rank()
    assert torch.equal(_prediction(1 + (5 * confidence).exp()).confidence_rank(), plain)
    assert 0.0 == float(plain.min()) < float(plain.max()) < 1.0


def test_scale_is_relative_unless_a_model_says_otherwise() -> None:
    assert _prediction(torch.ones(1, 2, 2)).scale == "relative"
