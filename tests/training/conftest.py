# SPDX-License-Identifier: Apache-2.0
"""Scenes that the tests of training share."""

from __future__ import annotations

import pytest
import torch

from training.config import CONFIGS
from training.generator import Generator, GeneratorConfig
from training.world import Views


@pytest.fixture(scope="session")
def generator_config() -> GeneratorConfig:
    """Few and small textures."""
    return GeneratorConfig(num_views=8, num_textures=14, texture_size=32)


@pytest.fixture(scope="session")
def generator(generator_config: GeneratorConfig) -> Generator:
    """Makes scenes of training."""
    return Generator(generator_config, seed=11)


@pytest.fixture(scope="session")
def views(generator: Generator) -> Views:
    """Forty scenes: all kinds and paths are among them."""
    return generator.views(torch.arange(40), (48, 64))


@pytest.fixture(scope="session")
def smoke_views() -> Views:
    """Scenes as the smallest configuration trains on."""
    config = CONFIGS["smoke"]
    return Generator(config.generator, seed=0).views(torch.arange(4), (42, 56))
