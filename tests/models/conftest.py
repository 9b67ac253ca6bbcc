# SPDX-License-Identifier: Apache-2.0
"""A model small enough to run in every test, and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ns_sparseattn.models import VGGT, VGGTConfig
from ns_sparseattn.models.seeded import make_seeded_vggt

TINY = VGGTConfig(
    image_size=70,
    embed_dim=64,
    encoder_depth=2,
    encoder_heads=1,
    depth=3,
    num_heads=1,
    taps=(0, 1, 1, 2),
    camera_heads=1,
    camera_depth=2,
    dpt_features=16,
    dpt_widths=(8, 8, 16, 16),
)


@pytest.fixture(scope="session")
def tiny() -> VGGT:
    return make_seeded_vggt(TINY)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Four frames of 56 x 84 pixels, uint8."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, 56, 84), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).resolve().parents[1] / "data" / "golden"
