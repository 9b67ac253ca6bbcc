# SPDX-License-Identifier: Apache-2.0
"""Behaviour of Pi3: chunks, batches, precision, order of frames, attention plans, refused input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan, BlockSparsePolicy
from ns_sparseattn.geometry import (
    invert_rigid,
    pixel_centers,
    quaternion_to_rotation,
    unproject,
)
from ns_sparseattn.models.block import Attention, BlockConfig
from ns_sparseattn.models.compute import InferenceOptions
from ns_sparseattn.models.pi3 import Pi3, Pi3Output
from ns_sparseattn.models.pi3_config import Pi3Config
from ns_sparseattn.models.rope import grid_positions, rope_table
from ns_sparseattn.models.seeded import make_seeded_pi3
from ns_sparseattn.prediction import Prediction

from .pi3_models import TINY_PI3

FP32 = InferenceOptions(precision="fp32")
FIELDS = ("cam_from_world", "depth", "confidence")


@pytest.fixture(scope="module")
def pi3() -> Pi3:
    return make_seeded_pi3(TINY_PI3)


def _assert_same(found: Prediction, wanted: Prediction, tolerance: float) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=tolerance, atol=tolerance
        )


def test_prediction_has_the_promised_shapes(pi3: Pi3, images: Tensor) -> None:
    prediction = pi3.predict(images, options=FP32)
    assert prediction.cam_from_world.shape == (4, 3, 4)
    assert prediction.intrinsics.shape == (4, 3, 3)
    assert prediction.depth.shape == prediction.confidence.shape == (4, 56, 84)
    assert prediction.scale == "relative"
    for name in (*FIELDS, "intrinsics"):
        value = getattr(prediction, name)
        assert value.dtype == torch.float32
        assert not value.requires_grad
    rotations = prediction.cam_from_world[:, :, :3]
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4))
    assert bool((prediction.depth > 0).all())
    assert bool(((prediction.confidence > 0) & (prediction.confidence < 1)).all())
    assert torch.equal(prediction.intrinsics[:, 0, 2], torch.full((4,), 42.0))
    assert [stage.name for stage in prediction.stages] == [
        "encoder",
        "attention",
        "points",
        "confidence",
        "camera",
    ]
    assert [stats.layer for stats in prediction.attention] == [0, 1]


@pytest.mark.parametrize("num_frames", [1, 3])
def test_chunks_do_not_change_values(pi3: Pi3, images: Tensor, num_frames: int) -> None:
    whole = InferenceOptions(precision="fp32", frames_per_chunk=4, head_frames_per_chunk=4)
    parts = InferenceOptions(
        precision="fp32", frames_per_chunk=num_frames, head_frames_per_chunk=num_frames
    )
    _assert_same(pi3.predict(images, options=parts), pi3.predict(images, options=whole), 2e-5)


def test_autograd_computes_the_same_values_and_reaches_every_weight(images: Tensor) -> None:
    model = make_seeded_pi3(TINY_PI3)
    output = model(images[:2], options=FP32)
    with torch.no_grad():
        expected = model(images[:2], options=InferenceOptions(precision="fp32", frames_per_chunk=1))
    for name in ("local_points", "confidence_logits", "world_from_cam"):
        torch.testing.assert_close(
            getattr(output, name), getattr(expected, name), rtol=2e-5, atol=2e-5
        )
    total = output.points_in_world.sum() + output.confidence_logits.sum()
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_scenes_of_a_batch_do_not_mix(pi3: Pi3, images: Tensor) -> None:
    scenes = images.unflatten(0, (2, 2))
    with torch.no_grad():
        together = pi3(scenes, options=InferenceOptions(precision="fp32", frames_per_chunk=1))
        for scene in range(2):
            alone = pi3(scenes[scene], options=FP32)
            for name in ("local_points", "confidence_logits", "world_from_cam"):
                torch.testing.assert_close(
                    getattr(together, name)[scene], getattr(alone, name)[0], rtol=2e-5, atol=2e-5
                )


def test_permuting_frames_permutes_the_output(pi3: Pi3, images: Tensor) -> None:
    order = torch.tensor([2, 3, 1, 0])
    straight = pi3.predict(images, options=FP32)
    permuted = pi3.predict(images[order], options=FP32)
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(permuted, name), getattr(straight, name)[order], rtol=2e-5, atol=2e-5
        )


def test_points_in_world_go_back_into_the_cameras(pi3: Pi3, images: Tensor) -> None:
    with torch.no_grad():
        output = pi3(images, options=FP32)
    poses = output.world_from_cam[0]
    offset = output.points_in_world[0] - poses[:, None, None, :, 3]
    back = torch.einsum("fji,fhwj->fhwi", poses[:, :, :3], offset)
    torch.testing.assert_close(back, output.local_points[0], rtol=1e-4, atol=1e-5)


def test_float_and_uint8_images_agree(pi3: Pi3, images: Tensor) -> None:
    _assert_same(
        pi3.predict(images.float() / 255, options=FP32), pi3.predict(images, options=FP32), 1e-6
    )


def test_a_plan_that_keeps_all_blocks_is_dense(pi3: Pi3, images: Tensor) -> None:
    everything = AttentionPlan(default=BlockSparsePolicy(max_density=1.0, backend="reference"))
    sparse = pi3.predict(images, plan=everything, options=FP32)
    _assert_same(sparse, pi3.predict(images, options=FP32), 2e-5)
    assert [stats.density for stats in sparse.attention] == [1.0, 1.0]


def test_a_plan_decides_on_global_blocks_alone(pi3: Pi3) -> None:
    generator = torch.Generator().manual_seed(2)
    large = torch.rand(4, 3, 140, 140, generator=generator)
    few = BlockSparsePolicy(max_density=0.1, backend="reference")
    dense = pi3.predict(large, options=FP32)
    first = pi3.predict(large, plan=AttentionPlan(layers={0: few}), options=FP32)
    assert [stats.policy == "dense" for stats in first.attention] == [False, True]
    assert first.attention[0].density < 0.5
    assert not torch.allclose(first.depth, dense.depth, rtol=1e-5)
    with pytest.raises(ValueError, match="layer"):
        pi3.predict(large, plan=AttentionPlan(layers={2: few}), options=FP32)


def test_16_bit_runs_stay_near(pi3: Pi3, images: Tensor) -> None:
    exact = pi3.predict(images, options=FP32)
    rounded = pi3.predict(images, options=InferenceOptions(precision="bf16"))
    assert not torch.equal(rounded.depth, exact.depth)
    _assert_same(rounded, exact, 0.05)


def test_rotation_in_the_dtype_of_the_values_rounds_before_it() -> None:
    config = BlockConfig(dim=32, num_heads=1, has_qk_norm=True, rotates_in_value_dtype=True)
    attention = Attention(config)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    table = rope_table(grid_positions(2, 3, 0), 32, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, _, v = attention.project(x)
        rotated, _, _ = attention.project(x, table)
    assert plain.dtype == rotated.dtype == v.dtype == torch.bfloat16
    partner = plain.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    assert torch.equal(rotated, torch.addcmul(plain * table.cos, partner, table.signed_sin))


def test_cameras_are_read_off_local_points(
    pi3: Pi3, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    focal = torch.tensor([60.0, 75, 90, 110])
    truth = torch.zeros(4, 3, 3)
    truth[:, 0, 0], truth[:, 1, 1], truth[:, 0, 2], truth[:, 1, 2] = focal, focal, 42, 28
    truth[:, 2, 2] = 1
    generator = torch.Generator().manual_seed(4)
    depth = 1 + torch.rand(4, 56, 84, generator=generator)
    points = unproject(pixel_centers(56, 84).float(), depth, truth[:, None, None])
    # The left third is wrong, and the network knows.
    logits = torch.full((4, 56, 84), 3.0)
    points[:, :, :28, :2] += 2 * points[:, :, :28, 2:]
    logits[:, :, :28] = -12.0
    cam_from_world = torch.cat([_turned(4), torch.randn(4, 3, 1, generator=generator)], dim=-1)
    output = Pi3Output(
        local_points=points[None],
        confidence_logits=logits[None],
        world_from_cam=invert_rigid(cam_from_world)[None],
    )
    monkeypatch.setattr(Pi3, "forward", lambda *args, **kwargs: output)
    prediction = pi3.predict(images)
    torch.testing.assert_close(prediction.intrinsics, truth, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(prediction.cam_from_world, cam_from_world, rtol=1e-5, atol=1e-5)
    assert torch.equal(prediction.depth, points[..., 2])
    torch.testing.assert_close(prediction.confidence, logits.sigmoid())


def _turned(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return quaternion_to_rotation(torch.randn(count, 4, generator=generator))


def test_frames_of_one_camera_share_intrinsics(pi3: Pi3, images: Tensor) -> None:
    prediction = pi3.predict(images, camera_ids=[0, 1, 0, 1], options=FP32)
    assert torch.equal(prediction.intrinsics[0], prediction.intrinsics[2])
    assert torch.equal(prediction.intrinsics[1], prediction.intrinsics[3])
    assert not torch.equal(prediction.intrinsics[0], prediction.intrinsics[1])


def test_wrong_inputs_are_refused(pi3: Pi3, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"sides that are multiples of 14, got 57 x 84"):
        pi3.predict(torch.zeros(2, 3, 57, 84))
    with pytest.raises(ValueError, match=r"`images` must have shape \[F, 3, H, W\]"):
        pi3.predict(images[None])
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        pi3.predict([1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`keep_layers` must lie in \[0, 4\), got \[4\]"):
        pi3(images, keep_layers=[4])
    with pytest.raises(ValueError, match="`camera_ids` must have one number for each of 4 frames"):
        pi3.predict(images, camera_ids=[1], options=FP32)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`depth` must be even and at least 2, got 5"):
        Pi3Config(depth=5)
    with pytest.raises(ValueError, match="`head_dim` must be `head_heads` times a multiple of 4"):
        Pi3Config(head_dim=100)
