# SPDX-License-Identifier: Apache-2.0
"""Behaviour of MapAnything: chunks, scenes, plans, what it is told, what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import AttentionPlan, BlockSparsePolicy
from ns_sparseattn.configs.plans import PLANS
from ns_sparseattn.geometry import quaternion_to_rotation
from ns_sparseattn.models.compute import InferenceOptions
from ns_sparseattn.models.mapanything import MapAnything, MapAnythingOutput
from ns_sparseattn.models.mapanything_config import MapAnythingConfig
from ns_sparseattn.models.mapanything_geometry import prepare_geometry
from ns_sparseattn.models.priors import FramePrior
from ns_sparseattn.models.seeded import make_seeded_mapanything

TINY = MapAnythingConfig(
    image_size=70,
    embed_dim=64,
    encoder_depth=1,
    encoder_heads=1,
    dim=64,
    depth=4,
    num_heads=1,
    taps=(1, 2),
    dense_widths=(8, 12, 16),
    global_widths=(8, 12, 16),
    dpt_features=16,
    dpt_widths=(8, 8, 16, 16),
    scale_width=16,
)
TINY_V1 = dataclasses.replace(
    TINY,
    encoder_mlp="gelu",
    has_encoder_norm=True,
    has_class_token=False,
    dim=128,
    num_heads=2,
    mlp="gelu",
    has_layer_scale=False,
)
FP32 = InferenceOptions(precision="fp32")
HEIGHT, WIDTH = 56, 84
VALUES = ("cam_from_world", "depth", "confidence", "surface_logits", "metric_scale", "rays")


@pytest.fixture(scope="module", params=[TINY, TINY_V1], ids=["v1.1", "v1"])
def model(request: pytest.FixtureRequest) -> MapAnything:
    return make_seeded_mapanything(request.param)


@pytest.fixture(scope="module")
def newest() -> MapAnything:
    return make_seeded_mapanything(TINY)


@pytest.fixture(scope="module")
def priors() -> list[FramePrior]:
    """Everything that can be told of four frames."""
    generator = torch.Generator().manual_seed(2)
    told = []
    for _ in range(4):
        rotation = quaternion_to_rotation(torch.randn(4, generator=generator))
        position = torch.randn(3, 1, generator=generator)
        told.append(
            FramePrior(
                intrinsics=torch.tensor([[80.0, 0, 44], [0, 85, 26], [0, 0, 1]]),
                depth=1 + torch.rand(HEIGHT, WIDTH, generator=generator),
                cam_from_world=torch.cat([rotation, position], dim=1),
            )
        )
    return told


@torch.no_grad()
def _run(
    model: MapAnything, images: Tensor, priors: Sequence[FramePrior | None] | None = None
) -> MapAnythingOutput:
    return model(images, priors=priors, options=FP32)


def _assert_same(found: MapAnythingOutput, wanted: MapAnythingOutput, tolerance: float) -> None:
    for name in VALUES:
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=tolerance, atol=tolerance, msg=name
        )


def _difference(found: MapAnythingOutput, wanted: MapAnythingOutput) -> float:
    return float((found.surface_logits - wanted.surface_logits).abs().max())


def test_prediction_has_the_promised_shapes(model: MapAnything, images: Tensor) -> None:
    prediction = model.predict(images, options=FP32)
    assert prediction.cam_from_world.shape == (4, 3, 4)
    assert prediction.intrinsics.shape == (4, 3, 3)
    assert prediction.depth.shape == prediction.confidence.shape == (4, HEIGHT, WIDTH)
    assert prediction.scale == "metric"
    rotations = prediction.cam_from_world[:, :, :3]
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-5
    )
    assert bool((prediction.depth > 0).all())
    assert bool((prediction.confidence >= 1).all())
    assert [stage.name for stage in prediction.stages] == ["encoder", "attention", "depth"]
    # Blocks 0 and 2 of four are global.
    assert [stats.layer for stats in prediction.attention] == [0, 1]


def test_pixels_without_a_surface_have_no_depth(newest: MapAnything, images: Tensor) -> None:
    model = make_seeded_mapanything(TINY)
    last = model.get_submodule("dense_head.1.conv2.2")
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        logits = _run(model, images).surface_logits[0]
        last.bias[5] -= logits.median()
    depth, known = model.predict(images, options=FP32).depth, newest.predict(images, options=FP32)
    share = float((depth == 0).float().mean())
    assert 0.4 < share < 0.6
    assert torch.equal(depth[depth > 0], known.depth[depth > 0])


@pytest.mark.parametrize("frames_per_chunk", [1, 3])
def test_chunks_do_not_change_values(
    model: MapAnything, images: Tensor, priors: list[FramePrior], frames_per_chunk: int
) -> None:
    parts = InferenceOptions(
        precision="fp32",
        frames_per_chunk=frames_per_chunk,
        head_frames_per_chunk=frames_per_chunk,
    )
    with torch.no_grad():
        found = model(images, priors=priors, options=parts)
    _assert_same(found, _run(model, images, priors), 2e-5)


def test_scenes_of_a_batch_do_not_meet(model: MapAnything, images: Tensor) -> None:
    both = _run(model, torch.stack([images, images.flip(0)]))
    alone = _run(model, images.flip(0))
    for name in VALUES:
        torch.testing.assert_close(
            getattr(both, name)[1:], getattr(alone, name), rtol=2e-5, atol=2e-5
        )


def test_autograd_computes_the_same_values_and_reaches_every_weight(
    images: Tensor, priors: list[FramePrior]
) -> None:
    model = make_seeded_mapanything(TINY)
    output = model(images, priors=priors, options=FP32)
    _assert_same(output, _run(model, images, priors), 2e-5)
    parts = (output.cam_from_world, output.depth, output.confidence, output.surface_logits)
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()


def test_16_bit_runs_stay_near(newest: MapAnything, images: Tensor) -> None:
    exact = newest.predict(images, options=FP32)
    rounded = newest.predict(images, options=InferenceOptions(precision="bf16"))
    torch.testing.assert_close(rounded.depth, exact.depth, rtol=2e-2, atol=0)


def test_a_plan_that_keeps_everything_is_dense(model: MapAnything, images: Tensor) -> None:
    with torch.no_grad():
        kept = model(images, plan=AttentionPlan.block_sparse(density=1.0), options=FP32)
    _assert_same(kept, _run(model, images), 2e-5)
    assert [stats.density for stats in kept.attention] == [1.0, 1.0]


def test_a_plan_reaches_single_layers(newest: MapAnything) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(8, 3, 112, 112, generator=generator)
    policy = BlockSparsePolicy(max_density=0.25)
    with torch.no_grad():
        output = newest(images, plan=AttentionPlan(layers={1: policy}), options=FP32)
        dense = newest(images, options=FP32)
    assert output.attention[0].density == 1.0
    assert output.attention[1].density < 0.5
    assert _difference(output, dense) > 0
    with pytest.raises(ValueError, match=r"names layers \[2\]; this model has layers 0 to 1"):
        newest(images, plan=AttentionPlan(layers={2: policy}))


@pytest.mark.parametrize("name", PLANS["mapanything"])
def test_every_preset_runs(model: MapAnything, images: Tensor, name: str) -> None:
    prediction = model.predict(images, plan=AttentionPlan.preset("mapanything", name), options=FP32)
    assert bool(torch.isfinite(prediction.depth).all())
    if name == "exact":
        assert torch.equal(prediction.depth, model.predict(images, options=FP32).depth)


def test_the_scale_token_and_class_tokens_are_never_left_out(newest: MapAnything) -> None:
    images = torch.rand(8, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        # No patch attends to another frame's patches beyond one block; all still hear the scale
        # token, and it hears all.
        sparse = newest(
            images,
            plan=AttentionPlan.block_sparse(density=0.01),
            keep_layers=[0],
            options=FP32,
        )
        dense = newest(images, keep_layers=[0], options=FP32)
    torch.testing.assert_close(sparse.layers[0][:, -1], dense.layers[0][:, -1], rtol=0, atol=1e-5)
    assert float((sparse.layers[0] - dense.layers[0]).abs().max()) > 1e-5


def test_the_first_frame_is_the_reference(model: MapAnything, images: Tensor) -> None:
    plain = _run(model, images)
    swapped = _run(model, images[[0, 2, 1, 3]])
    for name in ("depth", "surface_logits", "cam_from_world"):
        torch.testing.assert_close(
            getattr(swapped, name)[:, [0, 2, 1, 3]], getattr(plain, name), rtol=2e-5, atol=2e-5
        )
    other_first = _run(model, images[[1, 0, 2, 3]])
    assert float((other_first.depth[:, [1, 0, 2, 3]] - plain.depth).abs().max()) > 1e-5


def test_knowing_nothing_is_the_same_as_no_priors(model: MapAnything, images: Tensor) -> None:
    plain = _run(model, images)
    _assert_same(_run(model, images, [None, FramePrior(), None, FramePrior()]), plain, 0.0)


@pytest.mark.parametrize("part", ["intrinsics", "depth", "cam_from_world"])
def test_every_kind_of_prior_of_any_frame_is_heard(
    newest: MapAnything, images: Tensor, priors: list[FramePrior], part: str
) -> None:
    told = _run(newest, images, priors)
    last = dataclasses.replace(priors[3], **{part: None})
    if part == "intrinsics":
        last = dataclasses.replace(last, depth=None)
    forgotten = _run(newest, images, [*priors[:3], last])
    assert _difference(told, forgotten) > 1e-6


def test_rays_say_the_same_as_intrinsics(
    newest: MapAnything, images: Tensor, priors: list[FramePrior]
) -> None:
    rays = [
        dataclasses.replace(prior, intrinsics=None, rays=7 * known)
        for prior in priors
        if (known := prior.unit_rays(HEIGHT, WIDTH)) is not None
    ]
    assert len(rays) == 4
    _assert_same(_run(newest, images, rays), _run(newest, images, priors), 2e-5)


def test_poses_count_relative_to_the_first_frame(priors: list[FramePrior]) -> None:
    turn = quaternion_to_rotation(torch.tensor([0.3, 0.5, -0.8, 0.1]))
    shift = torch.tensor([[3.0], [-1.0], [2.0]])
    moved = []
    for prior in priors:
        pose = prior.cam_from_world
        assert pose is not None
        pose = torch.cat([pose[:, :3] @ turn, pose[:, :3] @ shift + pose[:, 3:]], dim=1)
        moved.append(dataclasses.replace(prior, cam_from_world=pose))
    told, also = (prepare_geometry(x, HEIGHT, WIDTH) for x in (priors, moved))
    torch.testing.assert_close(also.translations, told.translations, rtol=0, atol=1e-5)
    # The sign of a quaternion may change: published, because it is trained on.
    products = (also.quaternions * told.quaternions).sum(-1).abs()
    torch.testing.assert_close(products, torch.ones(4), rtol=0, atol=1e-5)
    assert torch.equal(told.translations[0], torch.zeros(3))
    torch.testing.assert_close(told.quaternions[0], torch.tensor([0.0, 0, 0, 1]))
    assert float(told.translations[1:].norm(dim=-1).mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("is_metric", [True, False])
def test_scales_are_heard_only_if_they_are_metric(
    newest: MapAnything, images: Tensor, priors: list[FramePrior], is_metric: bool
) -> None:
    def scaled(factor: float) -> list[FramePrior]:
        out = []
        for prior in priors:
            assert prior.depth is not None
            assert prior.cam_from_world is not None
            pose = prior.cam_from_world.clone()
            pose[:, 3] *= factor
            out.append(
                dataclasses.replace(
                    prior,
                    depth=prior.depth * factor,
                    cam_from_world=pose,
                    is_depth_metric=is_metric,
                    is_pose_metric=is_metric,
                )
            )
        return out

    difference = _difference(_run(newest, images, scaled(1)), _run(newest, images, scaled(5)))
    if is_metric:
        assert difference > 1e-6
    else:
        assert difference < 2e-5


def test_told_intrinsics_free_the_principal_point(
    newest: MapAnything, images: Tensor, priors: list[FramePrior]
) -> None:
    centred = _run(newest, images).intrinsics[0]
    assert bool((centred[:, 0, 2] == WIDTH / 2).all())
    assert bool((centred[:, 1, 2] == HEIGHT / 2).all())
    free = _run(newest, images, priors).intrinsics[0]
    assert not bool((free[:, 0, 2] == WIDTH / 2).any())


def test_frames_of_a_camera_share_their_intrinsics(newest: MapAnything, images: Tensor) -> None:
    single = newest.predict(images, options=FP32).intrinsics
    assert len(single[:, 0, 0].unique()) == 4
    alone = newest.predict(images, camera_ids=range(4), options=FP32).intrinsics
    torch.testing.assert_close(alone, single)
    shared = newest.predict(images, camera_ids=[7, 7, 1, 7], options=FP32).intrinsics
    assert torch.equal(shared[0], shared[1])
    assert torch.equal(shared[0], shared[3])
    torch.testing.assert_close(shared[2], single[2])
    with pytest.raises(ValueError, match="`camera_ids` must have one number for each of 4 frames"):
        newest.predict(images, camera_ids=[0, 0])


def test_priors_that_do_not_fit_are_refused(
    newest: MapAnything, images: Tensor, priors: list[FramePrior]
) -> None:
    pose_only = FramePrior(cam_from_world=priors[1].cam_from_world)
    depth_only = FramePrior(depth=priors[1].depth)
    for told, message in (
        (priors[:3], "one entry for each of 4 frames, got 3"),
        ([None, pose_only, None, None], r"`priors\[1\]` has a pose but `priors\[0\]` has none"),
        ([None, None, depth_only, None], r"`priors\[2\]` has a depth, .* together with intrinsics"),
    ):
        with pytest.raises(ValueError, match=message):
            newest.predict(images, priors=told)
    with pytest.raises(ValueError, match="`priors` need a single scene, got 2"):
        newest(torch.stack([images, images]), priors=priors)


def test_wrong_images_and_layers_are_refused(newest: MapAnything, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have shape \[F, 3, H, W\], got \[1, 4, 3"):
        newest.predict(images[None])
    with pytest.raises(ValueError, match="multiples of 14, got 56 x 80"):
        newest.predict(images[..., :80])
    with pytest.raises(ValueError, match=r"`keep_layers` must lie in \[0, 4\), got \[4\]"):
        newest(images, keep_layers=[4])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`taps` must lie in \[0, 4\), got \(1, 4\)"):
        dataclasses.replace(TINY, taps=(1, 4))
    with pytest.raises(ValueError, match="`dim` must be even, got 63"):
        dataclasses.replace(TINY, dim=63)
