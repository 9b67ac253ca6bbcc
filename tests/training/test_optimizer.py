# SPDX-License-Identifier: Apache-2.0
"""Hidden matrices have Muon, all else AdamW; one rate drives both, and state can be put back."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from training.config import CONFIGS
from training.network import make_network
from training.optimizer import MixedOptimizer


def optimizer_of(
    named: dict[str, nn.Parameter],
    kind: Literal["adamw", "muon"] = "muon",
    weight_decay: float = 0.1,
) -> MixedOptimizer:
    return MixedOptimizer(
        named,
        kind=kind,
        learning_rate=0.01,
        hidden_rate=4.0,
        weight_decay=weight_decay,
        betas=(0.9, 0.98),
    )


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "blocks.0.attn.qkv.weight": nn.Parameter(torch.randn(48, 16)),
        "blocks.0.attn.qkv.bias": nn.Parameter(torch.zeros(48)),
        "head.weight": nn.Parameter(torch.randn(4, 16)),
    }


def give_gradients(named: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_takes_the_matrices_inside_blocks_and_nothing_else() -> None:
    config = CONFIGS["cpu"]
    named = dict(make_network(config.model, 0, layer_scale=0.3).named_parameters())
    optimizer = optimizer_of(named)
    give_gradients(named, 0)
    optimizer.step()
    by_muon = {name for name, p in named.items() if "second" not in optimizer.moments(p)}
    assert all(named[name].ndim == 2 for name in by_muon)
    assert {name.split(".")[-2] for name in by_muon} == {"qkv", "proj", "fc1", "fc2"}
    # Four matrices in each block of the encoder, of both kinds of the aggregator, and of the head.
    num_blocks = config.model.encoder_depth + 2 * config.model.depth + config.model.camera_depth
    assert len(by_muon) == 4 * num_blocks
    assert not any("pose_branch" in name or "embed" in name.split(".")[-2] for name in by_muon)


def test_a_step_of_muon_has_singular_values_that_are_alike() -> None:
    named = parameters()
    before = named["blocks.0.attn.qkv.weight"].detach().clone()
    optimizer = optimizer_of(named, weight_decay=0.0)
    give_gradients(named, 0)
    optimizer.step()
    values = torch.linalg.svdvals(named["blocks.0.attn.qkv.weight"].detach() - before)
    assert values.max() < 2.5 * values.min()
    # The root mean square that AdamW's steps have in practice: 0.2, times both rates.
    rms = (named["blocks.0.attn.qkv.weight"].detach() - before).square().mean().sqrt()
    assert 0.5 * 0.2 * 0.04 < float(rms) < 1.5 * 0.2 * 0.04


def test_adamw_alone_has_all() -> None:
    named = parameters()
    optimizer = optimizer_of(named, "adamw")
    give_gradients(named, 0)
    optimizer.step()
    assert all(optimizer.moments(p).keys() == {"first", "second"} for p in named.values())


def test_rate_zero_moves_nothing() -> None:
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = optimizer_of(named)
    optimizer.set_rate(0.0)
    give_gradients(named, 0)
    optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), before[name], atol=0, rtol=0)


def test_it_goes_on_from_its_moments() -> None:
    straight, stopped = parameters(), parameters()
    one = optimizer_of(straight)
    other = optimizer_of(stopped)
    for seed in (0, 1):
        for named, optimizer in ((straight, one), (stopped, other)):
            give_gradients(named, seed)
            optimizer.step()
    resumed = optimizer_of(stopped)
    for parameter in stopped.values():
        moments = {name: moment.clone() for name, moment in other.moments(parameter).items()}
        resumed.restore(parameter, moments, 2)
    for named, optimizer in ((straight, one), (stopped, resumed)):
        give_gradients(named, 2)
        optimizer.step()
    for name, parameter in straight.items():
        torch.testing.assert_close(stopped[name], parameter, atol=1e-7, rtol=1e-6)


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"Muon needs torch 2\.9 or newer"):
        optimizer_of(parameters())
    optimizer_of(parameters(), "adamw")
