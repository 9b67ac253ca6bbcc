# SPDX-License-Identifier: Apache-2.0
"""The network in training gives what it gives in use, and every weight is trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ns_sparseattn.models import VGGT, InferenceOptions
from training.config import CONFIGS
from training.losses import LossConfig, total_loss
from training.network import PatchHeads, geometry_layers, make_network, run_network
from training.targets import make_targets
from training.world import Views

CONFIG = CONFIGS["smoke"]


@pytest.fixture
def network() -> VGGT:
    return make_network(CONFIG.model, 0, layer_scale=CONFIG.layer_scale)


def test_training_runs_the_network_that_ships(network: VGGT, smoke_views: Views) -> None:
    images = smoke_views.images[:2, :3]
    frames = torch.tensor([[0, 2], [1, 0]])
    output = run_network(network, images, dense_frames=frames, early_layer=0, dtype=None)
    expected = network(
        images,
        heads=("camera", "depth", "points"),
        keep_layers=(0,),
        options=InferenceOptions(precision="fp32"),
    )
    rows = torch.arange(2)[:, None]
    special, dim = CONFIG.model.num_special, CONFIG.model.embed_dim
    assert expected.depth is not None
    assert expected.points_in_world is not None
    assert expected.points_confidence is not None
    pairs = (
        (output.encodings, expected.pose_encodings),
        (output.depth, expected.depth[rows, frames]),
        (output.points, expected.points_in_world[rows, frames]),
        (output.points_confidence, expected.points_confidence[rows, frames]),
        (output.early_tokens, expected.layers[0][:, :, special:, dim:]),
    )
    for ours, theirs in pairs:
        # The same sums in another order.
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_weight_gets_a_gradient(
    network: VGGT, smoke_views: Views, dtype: torch.dtype | None
) -> None:
    layers = geometry_layers(0, CONFIG.model.depth)
    matching = PatchHeads(CONFIG.model.embed_dim, len(layers))
    frames = torch.tensor([[0, 1]]).expand(4, -1)
    images = smoke_views.images[:, :3]
    output = run_network(network, images, dense_frames=frames, early_layer=0, dtype=dtype)
    views = smoke_views.choose(torch.tensor([[0, 1, 2]]).expand(4, -1))
    loss, parts = total_loss(output, make_targets(views), frames, matching, 1, LossConfig())
    loss.backward()
    assert set(parts) == {
        "attention",
        "camera",
        "depth",
        "geometry",
        "matching",
        "points",
        "tracks",
    }
    without = [
        name
        for name, parameter in [*network.named_parameters(), *matching.named_parameters()]
        if parameter.grad is None
        or not bool(parameter.grad.isfinite().all())
        or not bool((parameter.grad != 0).any())
    ]
    # Inference never reads the mask token, and a class token's own position is part of it.
    assert without == ["aggregator.patch_embed.mask_token"]


def test_the_whole_forward_pass_of_the_package_can_be_differentiated(
    network: VGGT, smoke_views: Views
) -> None:
    output = network(
        smoke_views.images[:1, :2],
        heads=("camera", "depth", "points"),
        options=InferenceOptions(precision="fp32"),
    )
    assert output.cam_from_world is not None
    assert output.depth is not None
    assert output.points_in_world is not None
    total = output.cam_from_world.square().mean() + output.depth.mean()
    (total + output.points_in_world.square().mean()).backward()
    gradients = [p.grad for n, p in network.named_parameters() if "global_blocks.0" in n]
    assert all(grad is not None and bool((grad != 0).any()) for grad in gradients)


def test_named_configurations_fit_into_the_package() -> None:
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            model = VGGT(config.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert 2 * count < 24_000_000, name
        assert config.model.embed_dim == 64 * config.model.num_heads


def test_configurations_that_cannot_run_are_refused() -> None:
    with pytest.raises(ValueError, match="Photo sizes must be multiples of 14, got 40 x 56"):
        dataclasses.replace(CONFIG, pool=dataclasses.replace(CONFIG.pool, sizes=((40, 56),)))
    schedule = dataclasses.replace(CONFIG.schedule, last_frames=(2, 9))
    with pytest.raises(ValueError, match="Scenes have 6 views, the schedule wants 9"):
        dataclasses.replace(CONFIG, schedule=schedule)
