# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the whole network: chunks, batches, precision, order of frames, refused input."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan
from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.models import VGGT, InferenceOptions, VGGTConfig
from ns_sparseattn.models.seeded import make_seeded_vggt
from ns_sparseattn.prediction import Prediction

from .conftest import TINY

FP32 = InferenceOptions(precision="fp32")
FIELDS = ("cam_from_world", "intrinsics", "depth", "confidence")


def _assert_same(found: Prediction, wanted: Prediction, tolerance: float) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=tolerance, atol=tolerance
        )


def test_prediction_has_the_promised_shapes(tiny: VGGT, images: Tensor) -> None:
    prediction = tiny.predict(images, options=FP32)
    assert prediction.cam_from_world.shape == (4, 3, 4)
    assert prediction.intrinsics.shape == (4, 3, 3)
    assert prediction.depth.shape == prediction.confidence.shape == (4, 56, 84)
    for name in FIELDS:
        value = getattr(prediction, name)
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert bool(torch.isfinite(value).all())
    rotations = prediction.cam_from_world[:, :, :3]
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-5
    )
    assert bool((prediction.depth > 0).all())
    assert bool((prediction.confidence >= 1).all())
    assert [stage.name for stage in prediction.stages] == [
        "encoder",
        "attention",
        "camera",
        "depth",
    ]
    assert all(stage.time_ms > 0 and stage.peak_memory_gib > 0 for stage in prediction.stages)
    assert [stats.layer for stats in prediction.attention] == [0, 1, 2]


@pytest.mark.parametrize("frames_per_chunk", [1, 3])
@pytest.mark.parametrize("head_frames_per_chunk", [1, 3])
def test_chunks_do_not_change_values(
    tiny: VGGT, images: Tensor, frames_per_chunk: int, head_frames_per_chunk: int
) -> None:
    whole = InferenceOptions(precision="fp32", frames_per_chunk=4, head_frames_per_chunk=4)
    parts = InferenceOptions(
        precision="fp32",
        frames_per_chunk=frames_per_chunk,
        head_frames_per_chunk=head_frames_per_chunk,
    )
    _assert_same(tiny.predict(images, options=parts), tiny.predict(images, options=whole), 2e-5)


def test_autograd_computes_the_same_values_and_reaches_every_weight(images: Tensor) -> None:
    model = make_seeded_vggt(TINY)
    output = model(images[:2], heads=("camera", "depth", "points"), options=FP32)
    with torch.no_grad():
        expected = model(
            images[:2],
            heads=("camera", "depth", "points"),
            options=InferenceOptions(precision="fp32", frames_per_chunk=1),
        )
    tensors = [output.pose_encodings, output.depth, output.points_in_world]
    for found, wanted in zip(
        tensors, [expected.pose_encodings, expected.depth, expected.points_in_world], strict=True
    ):
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert output.depth_confidence is not None
    assert output.points_confidence is not None
    confidences = output.depth_confidence.sum() + output.points_confidence.sum()
    (sum(x.sum() for x in tensors if x is not None) + confidences).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert unreached == ["aggregator.patch_embed.mask_token"]


def test_scenes_of_a_batch_do_not_mix(tiny: VGGT, images: Tensor) -> None:
    scenes = images.unflatten(0, (2, 2))
    with torch.no_grad():
        together = tiny(scenes, options=InferenceOptions(precision="fp32", frames_per_chunk=1))
        for scene in range(2):
            alone = tiny(scenes[scene], options=FP32)
            for name in ("cam_from_world", "depth", "depth_confidence"):
                torch.testing.assert_close(
                    getattr(together, name)[scene], getattr(alone, name)[0], rtol=2e-5, atol=2e-5
                )


def test_one_frame_is_enough(tiny: VGGT, images: Tensor) -> None:
    assert tiny.predict(images[:1], options=FP32).depth.shape == (1, 56, 84)


def test_float_and_uint8_images_agree(tiny: VGGT, images: Tensor) -> None:
    _assert_same(
        tiny.predict(images.float() / 255, options=FP32), tiny.predict(images, options=FP32), 1e-6
    )


def test_permuting_later_frames_permutes_the_output(tiny: VGGT, images: Tensor) -> None:
    order = torch.tensor([0, 3, 1, 2])
    straight = tiny.predict(images, options=FP32)
    permuted = tiny.predict(images[order], options=FP32)
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(permuted, name), getattr(straight, name)[order], rtol=2e-5, atol=2e-5
        )


def test_the_first_frame_is_special(tiny: VGGT, images: Tensor) -> None:
    straight = tiny.predict(images, options=FP32)
    swapped = tiny.predict(images[[1, 0, 2, 3]], options=FP32)
    assert not torch.allclose(swapped.depth[1], straight.depth[0], rtol=1e-4)


def test_bf16_is_close_to_fp32(images: Tensor) -> None:
    model = make_seeded_vggt(VGGTConfig.small())
    exact = model.predict(images, options=FP32)
    rounded = model.predict(images, options=InferenceOptions(precision="bf16"))
    # bf16 keeps 8 bits; a forward pass of a few layers loses about two of them.
    for name in ("cam_from_world", "depth", "confidence"):
        found, wanted = getattr(rounded, name), getattr(exact, name)
        assert float((found - wanted).abs().max()) < 0.03 * float(wanted.square().mean().sqrt())
    assert bool((rounded.depth != exact.depth).any())


def test_taps_in_bf16_are_close(tiny: VGGT, images: Tensor) -> None:
    exact = tiny.predict(images, options=FP32)
    rounded = tiny.predict(images, options=InferenceOptions(precision="fp32", tap_dtype="bf16"))
    torch.testing.assert_close(rounded.cam_from_world, exact.cam_from_world)
    torch.testing.assert_close(rounded.depth, exact.depth, rtol=0.02, atol=0.0)
    assert bool((rounded.depth != exact.depth).any())


def test_a_plan_that_keeps_every_block_is_exact(tiny: VGGT, images: Tensor) -> None:
    plan = AttentionPlan.block_sparse(density=1.0)
    sparse = tiny.predict(images, plan=plan, options=FP32)
    _assert_same(sparse, tiny.predict(images, options=FP32), 2e-5)
    assert {stats.density for stats in sparse.attention} == {1.0}


def test_progress_reaches_the_end_of_every_stage(tiny: VGGT, images: Tensor) -> None:
    calls: list[tuple[str, int, int]] = []
    tiny.predict(images, options=FP32, progress=lambda *call: calls.append(call))
    for stage, total in (("encoder", 4), ("attention", 3), ("camera", 1), ("depth", 4)):
        done = [call[1] for call in calls if call[0] == stage]
        assert {call[2] for call in calls if call[0] == stage} == {total}
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)


def test_stages_are_logged(tiny: VGGT, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ns_sparseattn"):
        tiny.predict(images, options=FP32)
    assert any("attention:" in message and "GiB" in message for message in caplog.messages)


def test_heads_and_layers_that_were_not_asked_for_are_left_out(tiny: VGGT, images: Tensor) -> None:
    with torch.no_grad():
        output = tiny(images, heads=("camera",), keep_layers=[1], options=FP32)
    assert output.depth is None
    assert output.points_in_world is None
    assert output.pose_encodings.shape == (4, 1, 4, 9)
    assert {layer: tuple(x.shape) for layer, x in output.layers.items()} == {1: (1, 4, 29, 128)}


def test_a_field_of_view_of_zero_is_reported(images: Tensor) -> None:
    model = make_seeded_vggt(TINY)
    with torch.no_grad():
        model.camera_head.pose_branch.fc2.bias[7:] = -1.0
    prediction = model.predict(images, options=FP32)
    assert prediction.notes == ("4 of 4 frames have no finite focal length.",)


def test_a_run_that_cannot_fit_is_refused(tiny: VGGT, images: Tensor) -> None:
    with pytest.raises(ReconstructionError, match="4 frames of 29 tokens need about"):
        tiny.predict(images, options=InferenceOptions(memory_gib=1e-6))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 56, 80), "multiples of 14, got 56 x 80"),
        ((0, 3, 56, 84), "at least one frame"),
        ((2, 1, 56, 84), r"must have shape \[F, 3, H, W\]"),
        ((3, 56, 84), r"must have shape \[F, 3, H, W\], got \[3, 56, 84\]"),
        ((1, 2, 3, 56, 84), r"must have shape \[F, 3, H, W\]"),
    ],
)
def test_images_of_wrong_shape_are_refused(
    tiny: VGGT, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.predict(torch.zeros(shape))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (0.0, float("nan")), (0.0, float("inf"))]
)
def test_images_out_of_range_are_refused(tiny: VGGT, low: float, high: float) -> None:
    images = torch.zeros(1, 3, 56, 84)
    images[0, 0, 0, :2] = torch.tensor([low, high])
    with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
        tiny.predict(images)


def test_images_of_wrong_type_are_refused(tiny: VGGT) -> None:
    with pytest.raises(TypeError, match=r"uint8 or floating point, got torch\.int64"):
        tiny.predict(torch.zeros(1, 3, 56, 84, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        tiny.predict([1])  # pyright: ignore[reportArgumentType]


def test_unknown_heads_and_layers_are_refused(tiny: VGGT, images: Tensor) -> None:
    with pytest.raises(ValueError, match="`heads` must be of camera, depth and points"):
        tiny(images, heads=("tracks",))
    with pytest.raises(ValueError, match=r"`keep_layers` must lie in \[0, 3\), got \[3\]"):
        tiny(images, keep_layers=[3])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`frames_per_chunk` must be at least 1, got 0"):
        InferenceOptions(frames_per_chunk=0)
    with pytest.raises(ValueError, match="`memory_gib` must be positive"):
        InferenceOptions(memory_gib=0.0)
