# SPDX-License-Identifier: Apache-2.0
"""The texture bank: painted from a seed, looked up at the right level and place."""

from __future__ import annotations

import pytest
import torch

from training.photographs import FILES, load_photographs
from training.textures import PAINTERS, TextureBank, make_bank


@pytest.fixture(scope="module")
def bank() -> TextureBank:
    return make_bank(1, "train", num_textures=14, size=32, has_photographs=True)


def level_of(bank: TextureBank, level: int) -> torch.Tensor:
    sides = [bank.size >> number for number in range(level)]
    start = sum(bank.num_textures * side**2 for side in sides)
    side = bank.size >> level
    count = bank.num_textures * side**2
    return bank.texels[start : start + count].view(bank.num_textures, side, side, 3)


def test_a_texel_is_found_at_its_own_place(bank: TextureBank) -> None:
    for level in range(bank.num_levels):
        texels = level_of(bank, level)
        side = texels.shape[1]
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        uv = torch.stack([x, y], dim=-1).view(-1, 2).add(0.5) / side
        footprint = torch.full((len(uv),), 1.0 / side)
        found = bank.sample(torch.full((len(uv),), 5), uv, footprint)
        torch.testing.assert_close(found, texels[5].reshape(-1, 3), atol=1e-5, rtol=0)


def test_places_beyond_the_side_are_mirrored(bank: TextureBank) -> None:
    uv = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    texture, footprint = torch.full((50,), 3), torch.full((50,), 0.02)
    here = bank.sample(texture, uv, footprint)
    for other in (2.0 - uv, uv + 2.0, -uv):
        torch.testing.assert_close(bank.sample(texture, other, footprint), here, atol=1e-4, rtol=0)


def test_a_large_footprint_sees_the_mean(bank: TextureBank) -> None:
    mean = level_of(bank, 0)[2].mean((0, 1))
    found = bank.sample(torch.tensor([2]), torch.tensor([[0.3, 0.9]]), torch.tensor([50.0]))
    torch.testing.assert_close(found[0], mean, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_bank_and_another_another(bank: TextureBank) -> None:
    again = make_bank(1, "train", num_textures=14, size=32, has_photographs=True)
    assert torch.equal(again.texels, bank.texels)
    other = make_bank(2, "train", num_textures=14, size=32, has_photographs=True)
    # Every texture, the photographs as well.
    difference = (level_of(other, 0) - level_of(bank, 0)).abs().amax((1, 2, 3))
    assert float(difference.min()) > 0.05


def test_textures_have_contrast_and_stay_in_range(bank: TextureBank) -> None:
    assert float(bank.texels.min()) >= 0.0
    assert float(bank.texels.max()) <= 1.0
    spread = level_of(bank, 0).flatten(1, 2).std(1).amax(-1)
    assert float(spread.min()) > 0.03


def test_held_out_textures_have_nothing_in_common_with_those_of_training() -> None:
    assert not set(PAINTERS["train"]) & set(PAINTERS["held_out"])
    assert not set(FILES["train"]) & set(FILES["held_out"])
    for domain in ("train", "held_out"):
        assert len(load_photographs(domain)) == len(FILES[domain])


def test_a_size_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="`size` must be a power of two, got 48"):
        make_bank(0, "train", num_textures=2, size=48, has_photographs=False)
