# SPDX-License-Identifier: Apache-2.0
"""Losses: least at the truth, and in the proportions that they promise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from training.cameras import look_at
from training.losses import (
    LossConfig,
    attention_loss,
    camera_loss,
    dense_loss,
    geometry_loss,
    matching_loss,
    track_loss,
)
from training.network import PatchHeads
from training.targets import Targets, make_targets
from training.world import Views

CONFIG = LossConfig()


def seen(encodings: torch.Tensor, *, has_scale: bool = True) -> Targets:
    """Return targets of which the camera loss needs the encodings alone."""
    batch = encodings.shape[0]
    empty = torch.empty(batch, 0)
    return Targets(
        cam_from_world=empty,
        intrinsics=empty,
        encodings=encodings,
        depth=empty,
        points_in_world=empty,
        valid=empty,
        scale=empty,
        has_scale=torch.full((batch,), has_scale),
    )


def test_the_camera_loss_is_zero_at_the_truth_and_counts_the_last_iteration_most() -> None:
    target = torch.randn(2, 3, 9)
    exact = target.expand(4, -1, -1, -1)
    assert float(camera_loss(exact, seen(target), CONFIG)) == 0.0
    losses = []
    for iteration in range(4):
        wrong = exact.clone()
        wrong[iteration, ..., 0] += 1.0
        losses.append(float(camera_loss(wrong, seen(target), CONFIG)))
    for earlier, later in zip(losses[:-1], losses[1:], strict=True):
        assert earlier / later == pytest.approx(CONFIG.camera_decay, rel=1e-5)


def test_the_camera_loss_is_robust() -> None:
    target = seen(torch.zeros(1, 1, 9))
    small, large = (
        float(camera_loss(torch.full((1, 1, 1, 9), size), target, CONFIG)) for size in (1.0, 2.0)
    )
    # Twice the error costs about twice as much, not four times.
    assert large / small == pytest.approx(2.0, rel=0.02)


def test_scenes_without_a_scale_do_not_count() -> None:
    good, bad = seen(torch.zeros(1, 2, 9)), seen(torch.full((1, 2, 9), 1e5), has_scale=False)
    both = dataclasses.replace(
        good,
        encodings=torch.cat([good.encodings, bad.encodings]),
        has_scale=torch.cat([good.has_scale, bad.has_scale]),
    )
    guess = torch.full((4, 2, 2, 9), 0.5)
    alone = float(camera_loss(guess[:, :1], good, CONFIG))
    assert float(camera_loss(guess, both, CONFIG)) == pytest.approx(alone)
    assert float(camera_loss(guess[:, :1], bad, CONFIG)) == 0.0


def test_the_best_confidence_follows_from_the_error() -> None:
    error = torch.full((1, 1, 6, 6, 1), 0.05)
    valid = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    raw = torch.zeros(1, 1, 6, 6, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        dense_loss(error, 1 + raw.exp(), valid, CONFIG).backward()
        optimizer.step()
    # c e - alpha log c is least at c = alpha / e; the error is even, so its gradient adds nothing.
    expected = CONFIG.confidence_price / 0.05
    torch.testing.assert_close(
        1 + raw.detach().exp(), torch.full_like(raw, expected), rtol=0.02, atol=0
    )


def test_the_dense_loss_sees_edges_and_ignores_what_is_not_valid() -> None:
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    confidence = torch.ones(1, 1, 8, 8)
    even = torch.full((1, 1, 8, 8, 1), 0.5)
    striped = even * (1 - 2 * (torch.arange(8) % 2))[None, None, None, :, None]
    assert float(dense_loss(even, confidence, valid, CONFIG)) == pytest.approx(0.5)
    assert float(dense_loss(striped, confidence, valid, CONFIG)) == pytest.approx(0.5 + 1.0)
    valid[..., 4:, :] = False
    even[..., 4:, :, :] = torch.nan
    even.requires_grad_()
    loss = dense_loss(even, confidence, valid, CONFIG)
    assert float(loss.detach()) == pytest.approx(0.5)
    loss.backward()
    assert even.grad is not None
    assert bool(even.grad.isfinite().all())
    assert float(dense_loss(even.detach(), confidence, valid & False, CONFIG)) == 0.0


def test_matching_is_learnt_from_features_that_know_their_place(views: Views) -> None:
    targets = make_targets(views.choose(torch.tensor([[2, 3, 4]]).expand(40, -1)))
    place = targets.points_in_world[:, :, 4::8, 4::8].flatten(2, 3)
    generator = torch.Generator().manual_seed(0)
    waves = 4.0 * torch.randn(3, 32, generator=generator)
    features = torch.cat([(place @ waves).sin(), (place @ waves).cos()], dim=-1)
    torch.manual_seed(0)
    head, blind = PatchHeads(64, 1), torch.zeros_like(features)
    chance = float(matching_loss(blind, targets, head, 1, CONFIG).detach())
    # 48 patches: without features every one is as likely.
    assert chance == pytest.approx(torch.tensor(48.0).log().item(), rel=1e-3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        matching_loss(features, targets, head, 1, CONFIG).backward()
        optimizer.step()
    wrong = features.roll(5, dims=2)
    assert float(matching_loss(features, targets, head, 1, CONFIG).detach()) < 0.6 * chance
    assert float(matching_loss(features, targets, head, 1, CONFIG).detach()) < float(
        matching_loss(
            torch.cat([features[:, :1], wrong[:, 1:]], 1), targets, head, 1, CONFIG
        ).detach()
    )


@pytest.fixture
def wall() -> Targets:
    """One metre before a wall with 90 degrees of view, then a quarter metre to the right.

    That moves everything to the left by an eighth of the image, which is a patch of 8 pixels.
    """
    center = torch.tensor([[[0.0, 0.0, 0.0], [0.25, 0.0, 0.0]]])
    intrinsics = torch.tensor([[32.0, 0, 32], [0, 32, 32], [0, 0, 1]]).expand(1, 2, 3, 3)
    views = Views(
        images=torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8),
        depth=torch.ones(1, 2, 64, 64),
        cam_from_world=look_at(center, center + torch.tensor([0.0, 1.0, 0.0]), torch.zeros(1, 2)),
        intrinsics=intrinsics,
    )
    return make_targets(views)


def test_tracks_are_zero_at_the_truth_alone(wall: Targets) -> None:
    heads, tokens = PatchHeads(8, 1), torch.randn(1, 2, 64, 8)
    torch.nn.init.zeros_(heads.place.weight)
    with torch.no_grad():
        heads.place.bias.copy_(torch.tensor([0.125, 0.0]))
        assert float(track_loss(tokens, wall, heads, CONFIG)) < 1e-8
        heads.place.bias.copy_(torch.tensor([0.0, 0.0]))
        wrong = float(track_loss(tokens, wall, heads, CONFIG))
    assert wrong == pytest.approx(0.125 - CONFIG.huber / 2, rel=1e-4)


def test_attention_is_right_in_the_first_frame_at_the_right_patch(wall: Targets) -> None:
    # Two special tokens and 64 patches a frame; every token has a channel of its own.
    num_tokens = 66
    key = torch.eye(2 * num_tokens).view(1, 2, num_tokens, -1)

    def loss(frame: int, columns: int) -> float:
        row, column = torch.arange(64) // 8, torch.arange(64) % 8
        target = row * 8 + (column + columns).clamp(max=7)
        query = torch.zeros(1, 2, 64, 2 * num_tokens)
        query[:, 1] = 100.0 * key[0, frame, 2 + target]
        return float(attention_loss(query, key, wall, 1, CONFIG))

    right = loss(0, 1)
    # The middle pixel of an even patch is half a pixel off its middle: a little goes to others.
    assert right < 1.2
    for frame, columns in ((0, 0), (0, 2), (1, 1), (1, 0)):
        assert loss(frame, columns) > right + 4.0


def test_rays_and_points_are_those_of_the_first_camera(wall: Targets) -> None:
    # Seen from the middle of the first camera, patches of 8 pixels lie at eighths of a metre.
    columns = (torch.arange(8) * 8 + 4.5 - 32.0) / 32.0
    y, x = torch.meshgrid(columns, columns, indexing="ij")
    point = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 0.0]])
    rays = (point / point.norm(dim=-1, keepdim=True)).expand(2, -1, -1)
    centers = (shift / wall.scale)[:, None].expand(-1, 64, -1)
    points = (point + shift[:, None]) / wall.scale
    answer = torch.cat([rays, centers, points], dim=-1)[None]
    heads = PatchHeads(9, 2)
    for layer in range(2):
        heads.geometry[layer] = torch.nn.Identity()
    assert float(geometry_loss([answer, answer], wall, heads, CONFIG)) < 1e-6
    for channel in range(9):
        wrong = answer.clone()
        wrong[..., channel] += 0.3
        loss = float(geometry_loss([answer, wrong], wall, heads, CONFIG))
        assert loss == pytest.approx((0.3 - CONFIG.huber / 2) / 3 / 2, rel=1e-3)
