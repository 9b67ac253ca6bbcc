# SPDX-License-Identifier: Apache-2.0
"""A cache of torch.hub with which nerfstudio trains and evaluates without a network."""

from __future__ import annotations

from pathlib import Path

import torch

ALEXNET: dict[str, tuple[int, ...]] = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
"""Shapes of AlexNet's weights."""


def write_torch_home(home: Path) -> Path:
    """Write a cache with an AlexNet, which nerfstudio wants for its perceptual metric (LPIPS).

    One number stands for all in each tensor, so the file is small; that metric means nothing, the
    others do not depend on it.

    Args:
        home: The folder to make, for the variable ``TORCH_HOME``.

    Returns:
        The folder.
    """
    state = {}
    for layer, shape in ALEXNET.items():
        state[f"{layer}.weight"] = torch.full((1,), 0.01).expand(shape)
        state[f"{layer}.bias"] = torch.zeros(1).expand(shape[0])
    (home / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    return home
