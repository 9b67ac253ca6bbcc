# SPDX-License-Identifier: Apache-2.0
"""Properties of the small parts that recorded outputs alone would not show."""

from __future__ import annotations

import math

import pytest
import torch

from ns_sparseattn.errors import ReconstructionError
from ns_sparseattn.geometry import quaternion_to_rotation
from ns_sparseattn.models.compute import InferenceOptions, resolve_precision, spans
from ns_sparseattn.models.dpt import add_uv_embedding
from ns_sparseattn.models.memory import RunShape, free_memory_gib, plan_memory
from ns_sparseattn.models.pose_encoding import decode_pose, encode_pose, rotation_to_quaternion
from ns_sparseattn.models.rope import apply_rope, grid_positions, rope_table

CPU = torch.device("cpu")


def _random_rotations(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return quaternion_to_rotation(torch.randn(count, 4, dtype=torch.float64, generator=generator))


def test_rotations_survive_the_round_trip() -> None:
    half_turns = torch.diag_embed(
        torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], dtype=torch.float64)
    )
    rotations = torch.cat([_random_rotations(1000), half_turns])
    quaternions = rotation_to_quaternion(rotations)
    torch.testing.assert_close(quaternion_to_rotation(quaternions), rotations)
    assert bool((quaternions[:, 0] >= 0).all())


def test_poses_survive_the_round_trip() -> None:
    rotations = _random_rotations(20)
    cam_from_world = torch.cat([rotations, torch.randn(20, 3, 1, dtype=torch.float64)], dim=-1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(20, 1, 1)
    intrinsics[:, 0, 0] = torch.linspace(20, 900, 20)
    intrinsics[:, 1, 1] = torch.linspace(700, 30, 20)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 100, 50
    encoding = encode_pose(cam_from_world, intrinsics, 100, 200)
    found_pose, found_intrinsics = decode_pose(encoding, 100, 200)
    torch.testing.assert_close(found_pose, cam_from_world)
    torch.testing.assert_close(found_intrinsics, intrinsics)


def test_a_field_of_view_of_zero_is_an_infinite_focal_length() -> None:
    encoding = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 0, 1])
    _, intrinsics = decode_pose(encoding, 100, 200)
    assert math.isinf(float(intrinsics[1, 1]))
    assert math.isfinite(float(intrinsics[0, 0]))


def test_rotary_products_depend_on_differences_of_position_alone() -> None:
    table = rope_table(grid_positions(6, 7, 0), 16, dtype=torch.float64)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    turned_q, turned_k = (apply_rope(x.expand(42, 16), table).unflatten(0, (6, 7)) for x in (q, k))
    products = torch.einsum("ijc,klc->ijkl", turned_q, turned_k)
    torch.testing.assert_close(products[0, 1, 2, 4], products[3, 2, 5, 5])
    assert not torch.isclose(products[0, 1, 2, 4], products[0, 1, 4, 2])


def test_special_tokens_are_not_rotated() -> None:
    table = rope_table(grid_positions(2, 3, 5), 8)
    x = torch.randn(2, 11, 8)
    rotated = apply_rope(x, table)
    assert torch.equal(rotated[:, :5], x[:, :5])
    assert not torch.allclose(rotated[:, 5:], x[:, 5:])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_head_sizes_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        rope_table(grid_positions(1, 1, 0), 6)


def test_uv_embedding_is_added_in_place_and_mirrors() -> None:
    x = torch.zeros(1, 8, 4, 6)
    assert add_uv_embedding(x, 1.5) is x
    # Sines are odd and cosines even about the middle of the image.
    torch.testing.assert_close(x[:, :2], -x[:, :2].flip(-1))
    torch.testing.assert_close(x[:, 2:4], x[:, 2:4].flip(-1))
    torch.testing.assert_close(x[:, 4:6], -x[:, 4:6].flip(-2))


def test_spans_cover_everything_once() -> None:
    assert list(spans(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(spans(0, 3)) == []


def test_precision_follows_the_request() -> None:
    assert resolve_precision("fp32", CPU) is None
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("auto", CPU) in (None, torch.bfloat16)
    assert resolve_precision("auto", torch.device("mps")) is None


def _shape(num_frames: int, head_features: int = 256) -> RunShape:
    return RunShape(
        num_frames=num_frames,
        num_tokens=1374,
        dim=1024,
        num_pixels=518 * 518,
        head_features=head_features,
        num_taps=4 if head_features else 0,
    )


def test_chunks_shrink_with_the_memory() -> None:
    roomy, tight = InferenceOptions(memory_gib=20.0), InferenceOptions(memory_gib=1.9)
    assert plan_memory(_shape(8), roomy, CPU, None).head_frames_per_chunk == 2
    assert plan_memory(_shape(8), tight, CPU, None).head_frames_per_chunk == 1
    tight = InferenceOptions(memory_gib=0.7)
    assert plan_memory(_shape(8, 0), roomy, CPU, None).frames_per_chunk == 8
    assert plan_memory(_shape(8, 0), tight, CPU, None).frames_per_chunk == 2
    with pytest.raises(ReconstructionError, match="800 frames of 1374 tokens need about .* GiB"):
        plan_memory(_shape(800), InferenceOptions(memory_gib=20.0), CPU, None)


def test_taps_are_halved_in_large_16_bit_runs_alone() -> None:
    options = InferenceOptions(memory_gib=20.0)
    assert plan_memory(_shape(8), options, CPU, torch.bfloat16).tap_dtype == torch.float32
    assert plan_memory(_shape(150), options, CPU, torch.bfloat16).tap_dtype == torch.bfloat16
    assert plan_memory(_shape(150), options, CPU, None).tap_dtype == torch.float32


def test_explicit_chunks_are_taken() -> None:
    options = InferenceOptions(frames_per_chunk=7, head_frames_per_chunk=5, memory_gib=20.0)
    plan = plan_memory(_shape(8), options, CPU, None)
    assert (plan.frames_per_chunk, plan.head_frames_per_chunk) == (7, 5)


def test_free_memory_is_known() -> None:
    assert 0.01 < free_memory_gib(CPU) < 1e6
