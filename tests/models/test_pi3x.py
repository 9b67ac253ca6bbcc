# SPDX-License-Identifier: Apache-2.0
"""Behaviour of Pi3X: scale, what it can be told and what that changes, refused input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan, BlockSparsePolicy
from ns_sparseattn.geometry import quaternion_to_rotation
from ns_sparseattn.models.compute import InferenceOptions
from ns_sparseattn.models.pi3_conditions import (
    Pi3XConditions,
    ScaledConditions,
    slopes_of_intrinsics,
    slopes_of_rays,
)
from ns_sparseattn.models.pi3_config import Pi3XConfig, spread_injections
from ns_sparseattn.models.pi3x import Pi3X
from ns_sparseattn.models.priors import FramePrior
from ns_sparseattn.models.seeded import make_seeded_pi3x
from ns_sparseattn.prediction import Prediction

from .pi3_models import TINY_PI3X

FP32 = InferenceOptions(precision="fp32")
CPU = torch.device("cpu")
FIELDS = ("cam_from_world", "depth", "confidence")


@pytest.fixture(scope="module")
def pi3x() -> Pi3X:
    return make_seeded_pi3x(TINY_PI3X)


def _poses(num_frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    quaternions = torch.randn(num_frames, 4, generator=generator)
    quaternions[:, 0] += 3
    translations = torch.randn(num_frames, 3, 1, generator=generator)
    return torch.cat([quaternion_to_rotation(quaternions), translations], dim=-1)


def _depth(num_frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    depth = 1 + 4 * torch.rand(num_frames, 56, 84, generator=generator)
    depth[:, :10] = 0
    return depth


def _camera() -> Tensor:
    return torch.tensor([[70.0, 0, 40], [0, 65, 30], [0, 0, 1]])


def _all_priors() -> list[FramePrior | None]:
    return [
        FramePrior(intrinsics=_camera(), depth=depth, cam_from_world=pose)
        for depth, pose in zip(_depth(), _poses(), strict=True)
    ]


def _assert_same(found: Prediction, wanted: Prediction, tolerance: float = 2e-5) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=tolerance, atol=tolerance
        )


def _differs(found: Prediction, other: Prediction) -> bool:
    return not torch.allclose(found.depth, other.depth, rtol=1e-4, atol=1e-4)


def test_prediction_is_metric(pi3x: Pi3X, images: Tensor) -> None:
    prediction = pi3x.predict(images, priors=_all_priors(), options=FP32)
    assert prediction.scale == "metric"
    assert prediction.depth.shape == (4, 56, 84)
    assert [stage.name for stage in prediction.stages] == [
        "encoder",
        "priors",
        "attention",
        "points",
        "confidence",
        "camera",
        "scale",
    ]
    assert prediction.notes == ()
    with torch.no_grad():
        output = pi3x(images, options=FP32)
    assert output.metric_scale is not None
    assert float(output.metric_scale) > 0


@pytest.mark.parametrize("num_frames", [1, 3])
def test_chunks_do_not_change_values(pi3x: Pi3X, images: Tensor, num_frames: int) -> None:
    whole = InferenceOptions(precision="fp32", frames_per_chunk=4, head_frames_per_chunk=4)
    parts = InferenceOptions(
        precision="fp32", frames_per_chunk=num_frames, head_frames_per_chunk=num_frames
    )
    _assert_same(
        pi3x.predict(images, priors=_all_priors(), options=parts),
        pi3x.predict(images, priors=_all_priors(), options=whole),
    )


def test_autograd_computes_the_same_values_and_reaches_every_weight(images: Tensor) -> None:
    model = make_seeded_pi3x(TINY_PI3X)
    conditions = Pi3XConditions.from_priors(_all_priors()[:2], 2, 56, 84)
    output = model(images[:2], conditions=conditions, options=FP32)
    with torch.no_grad():
        expected = model(images[:2], conditions=conditions, options=FP32)
    for name in ("local_points", "confidence_logits", "world_from_cam", "metric_scale"):
        torch.testing.assert_close(
            getattr(output, name), getattr(expected, name), rtol=2e-5, atol=2e-5
        )
    (output.points_in_world.sum() + output.confidence_logits.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_scenes_of_a_batch_are_told_their_own(pi3x: Pi3X, images: Tensor) -> None:
    scenes = images.unflatten(0, (2, 2))
    conditions = Pi3XConditions(
        depth=_depth().unflatten(0, (2, 2)),
        has_depth=torch.tensor([[True, False], [False, False]]),
        ray_slopes=slopes_of_intrinsics(_camera(), 56, 84).expand(2, 2, 56, 84, 2),
        has_rays=torch.tensor([[False, True], [True, True]]),
        cam_from_world=_poses().unflatten(0, (2, 2)),
        has_pose=torch.tensor([[True, True], [True, False]]),
    )
    with torch.no_grad():
        together = pi3x(scenes, conditions=conditions, options=FP32)
        for scene in range(2):
            alone = pi3x(
                scenes[scene],
                conditions=Pi3XConditions(
                    **{
                        f.name: getattr(conditions, f.name)[scene : scene + 1]
                        for f in dataclasses.fields(conditions)
                    }
                ),
                options=FP32,
            )
            for name in ("local_points", "confidence_logits", "world_from_cam", "metric_scale"):
                torch.testing.assert_close(
                    getattr(together, name)[scene], getattr(alone, name)[0], rtol=2e-5, atol=2e-5
                )


@pytest.mark.parametrize("name", ["intrinsics", "depth", "cam_from_world"])
def test_each_prior_changes_the_result(pi3x: Pi3X, images: Tensor, name: str) -> None:
    told = [FramePrior(**{name: getattr(prior, name)}) for prior in _all_priors() if prior]
    plain = pi3x.predict(images, options=FP32)
    everyone = pi3x.predict(images, priors=told, options=FP32)
    some = pi3x.predict(images, priors=[told[0], None, told[2], FramePrior()], options=FP32)
    assert _differs(everyone, plain)
    assert _differs(some, plain)
    assert _differs(some, everyone)


def test_knowing_nothing_is_telling_nothing(pi3x: Pi3X, images: Tensor) -> None:
    plain = pi3x.predict(images, options=FP32)
    for priors in ([None] * 4, [FramePrior()] * 4):
        assert torch.equal(pi3x.predict(images, priors=priors, options=FP32).depth, plain.depth)


def test_priors_do_not_depend_on_scale_nor_on_the_world(pi3x: Pi3X, images: Tensor) -> None:
    def with_poses(poses: Tensor, depth_scale: float | None) -> Prediction:
        priors = [
            FramePrior(
                cam_from_world=pose, depth=None if depth_scale is None else depth_scale * depth
            )
            for pose, depth in zip(poses, _depth(), strict=True)
        ]
        return pi3x.predict(images, priors=priors, options=FP32)

    def scaled(factor: float) -> Tensor:
        return torch.cat([_poses()[..., :3], factor * _poses()[..., 3:]], dim=-1)

    turn, shift = _poses(1)[0, :, :3], torch.tensor([[3.0], [-1], [2]])
    moved = torch.cat([_poses()[..., :3] @ turn, _poses()[..., :3] @ shift + _poses()[..., 3:]], -1)
    alone, together = with_poses(_poses(), None), with_poses(_poses(), 1.0)
    _assert_same(with_poses(scaled(7.0), None), alone)
    _assert_same(with_poses(scaled(7.0), 7.0), together)
    _assert_same(with_poses(moved, None), alone)
    # Beside depth, distances between cameras do say something.
    assert _differs(with_poses(scaled(7.0), 1.0), together)


def test_cameras_that_stand_still_are_not_blown_up() -> None:
    poses = torch.eye(4)[:3].repeat(1, 3, 1, 1)
    poses[0, 1:, 0, 3] = torch.tensor([0.001, -0.002])
    told = ScaledConditions.of(Pi3XConditions(cam_from_world=poses), 1, 3, CPU)
    assert told.cam_from_world is not None
    torch.testing.assert_close(told.cam_from_world[0, :, 0, 3], torch.tensor([0, 0.001, -0.002]))


def test_distances_are_measured_from_the_first_posed_frame() -> None:
    poses = torch.eye(4)[:3].repeat(1, 4, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([100.0, 1, 3, 5])
    conditions = Pi3XConditions(
        cam_from_world=poses, has_pose=torch.tensor([[False, True, True, True]])
    )
    told = ScaledConditions.of(conditions, 1, 4, CPU)
    assert told.cam_from_world is not None
    expected = torch.tensor([0.0, 2 / 3, 4 / 3])
    torch.testing.assert_close(told.cam_from_world[0, 1:, 0, 3], expected)


def test_a_single_pose_is_not_told_and_the_user_learns_so(pi3x: Pi3X, images: Tensor) -> None:
    priors = [None, FramePrior(cam_from_world=_poses()[0]), None, None]
    prediction = pi3x.predict(images, priors=priors, options=FP32)
    assert torch.equal(prediction.depth, pi3x.predict(images, options=FP32).depth)
    assert "Only one frame came with a pose" in prediction.notes[0]


def test_rays_and_intrinsics_say_the_same(pi3x: Pi3X, images: Tensor) -> None:
    slopes = slopes_of_intrinsics(_camera(), 56, 84)
    rays = torch.nn.functional.normalize(torch.cat([slopes, torch.ones(56, 84, 1)], dim=-1), dim=-1)
    # The centre of the first pixel is at (0.5, 0.5).
    torch.testing.assert_close(slopes[0, 0], torch.tensor([-39.5 / 70, -29.5 / 65]))
    torch.testing.assert_close(slopes_of_rays(rays), slopes, rtol=1e-5, atol=1e-6)
    _assert_same(
        pi3x.predict(images, priors=[FramePrior(rays=3 * rays)] * 4, options=FP32),
        pi3x.predict(images, priors=[FramePrior(intrinsics=_camera())] * 4, options=FP32),
    )


def test_wrong_conditions_are_refused(pi3x: Pi3X, images: Tensor) -> None:
    with pytest.raises(ValueError, match="`priors` must have one entry for each of 4 frames"):
        pi3x.predict(images, priors=[FramePrior(depth=_depth()[0])])
    priors = [None, FramePrior(depth=torch.ones(5, 6)), None, None]
    with pytest.raises(ValueError, match=r"`priors\[1\]\.depth` must have shape \[56, 84\]"):
        pi3x.predict(images, priors=priors)
    with pytest.raises(ValueError, match=r"`conditions\.depth` must have shape \[1, 4, 56, 84\]"):
        pi3x(images, conditions=Pi3XConditions(depth=torch.ones(1, 3, 56, 84)))
    conditions = Pi3XConditions(cam_from_world=_poses()[None], has_pose=torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"`conditions\.has_pose` must have a integer or boolean"):
        pi3x(images, conditions=conditions)


def test_a_network_without_the_parts_can_be_told_nothing(images: Tensor) -> None:
    model = make_seeded_pi3x(dataclasses.replace(TINY_PI3X, has_conditions=False))
    assert model.predict(images, options=FP32).depth.shape == (4, 56, 84)
    with pytest.raises(ValueError, match="its weights lack the parts for rays, depth and poses"):
        model.predict(images, priors=_all_priors(), options=FP32)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`inject_layers` must lie in \[0, 36\), got \(1, 36\)"):
        Pi3XConfig(inject_layers=(1, 36))
    with pytest.raises(ValueError, match="`metric_dim` must be `metric_heads` times"):
        Pi3XConfig(metric_dim=100)


def test_injections_are_spread_as_published() -> None:
    assert spread_injections(36, 5) == Pi3XConfig().inject_layers
    assert spread_injections(4, 1) == (1,)
    assert spread_injections(2, 2) == (1, 1)


@pytest.mark.parametrize("has_priors", [False, True])
def test_a_plan_that_keeps_all_blocks_is_dense(
    pi3x: Pi3X, images: Tensor, has_priors: bool
) -> None:
    priors = _all_priors() if has_priors else None
    everything = AttentionPlan(default=BlockSparsePolicy(max_density=1.0, backend="reference"))
    kept = pi3x.predict(images, priors=priors, plan=everything, options=FP32)
    _assert_same(kept, pi3x.predict(images, priors=priors, options=FP32))
    assert kept.attention
    assert all(stats.policy != "dense" and stats.density == 1.0 for stats in kept.attention)
