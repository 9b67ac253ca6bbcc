# SPDX-License-Identifier: Apache-2.0
"""Photographs in the public domain that come with scikit-image, as material for textures.

Each is stated to be in the public domain or under CC0 by the documentation of ``skimage.data``.
Training and the held-out scenes never share one.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Domain = Literal["train", "held_out"]
"""Scenes for training, or scenes of other textures and shapes for measuring."""

FILES: dict[Domain, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "chelsea.png",
        "coffee.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "rocket.jpg",
    ),
    "held_out": ("camera.png", "grass.png", "moon.png"),
}


@lru_cache(maxsize=2)
def load_photographs(domain: Domain) -> tuple[Tensor, ...]:
    """Return the photographs, each ``[3, H, W]`` float32 in [0, 1].

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The photographs among the textures come with scikit-image: run `pip install "
            "scikit-image`, or set `has_photographs` to false, which gives other scenes."
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    return tuple(_read(folder / name) for name in FILES[domain])


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
