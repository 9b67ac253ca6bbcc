# SPDX-License-Identifier: Apache-2.0
"""Load Pi3 and Pi3X with weights from the hub, a file or a seed, and say what they allow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .loading import ModelFamily, load_model, save_model
from .pi3 import Pi3
from .pi3_config import Pi3Config, Pi3XConfig, pi3_config_from_shapes, pi3x_config_from_shapes
from .pi3x import Pi3X
from .seeded import make_seeded_pi3, make_seeded_pi3x
from .weight_set import WeightSet, WeightsInfo


def _pi3_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.pi3 import DEFAULT_WEIGHTS, WEIGHTS

    return WEIGHTS, DEFAULT_WEIGHTS


def _pi3x_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.pi3 import DEFAULT_PI3X_WEIGHTS, PI3X_WEIGHTS

    return PI3X_WEIGHTS, DEFAULT_PI3X_WEIGHTS


PI3_FAMILY: ModelFamily[Pi3] = ModelFamily(
    name="Pi3",
    config_metadata="pi3_config",
    build=Pi3,
    make_config=Pi3Config,
    config_from_shapes=pi3_config_from_shapes,
    named_sets=_pi3_sets,
    seeded={"seeded": Pi3Config, "seeded-small": Pi3Config.small},
    make_seeded=make_seeded_pi3,
)
"""How Pi3's weights are named, read and made."""

PI3X_FAMILY: ModelFamily[Pi3X] = ModelFamily(
    name="Pi3X",
    config_metadata="pi3x_config",
    build=Pi3X,
    make_config=Pi3XConfig,
    config_from_shapes=pi3x_config_from_shapes,
    named_sets=_pi3x_sets,
    seeded={"seeded": Pi3XConfig, "seeded-small": Pi3XConfig.small},
    make_seeded=make_seeded_pi3x,
)
"""How Pi3X's weights are named, read and made."""


def load_pi3(
    source: str | Path | None = None,
    *,
    commercial: bool = False,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
) -> tuple[Pi3, WeightsInfo]:
    """Build a Pi3 and fill it with weights.

    Args:
        source: A named set (see `ns_sparseattn.configs.pi3`), a repository on the Hugging Face hub,
            a weights file, a folder with one, or ``seeded`` / ``seeded-small`` for random weights.
            The default is ``pi3``.
        commercial: Refuse weights whose licence forbids commercial use or is not known.
        device: Where the model goes.
        cache_dir: Where downloads are kept, if not in the hub's own cache.
        seed: Seed of random weights.

    Returns:
        The model in evaluation mode, and where its weights are from.

    Raises:
        ValueError: If the weights cannot be had, do not fit, or their licence does not allow the
            use.
    """
    return load_model(
        PI3_FAMILY, source, commercial=commercial, device=device, cache_dir=cache_dir, seed=seed
    )


def load_pi3x(
    source: str | Path | None = None,
    *,
    commercial: bool = False,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
) -> tuple[Pi3X, WeightsInfo]:
    """Build a Pi3X and fill it with weights, as `load_pi3`; the default is ``pi3x``.

    Weights without the parts for rays, depth and poses are accepted; the network can then be told
    nothing.
    """
    return load_model(
        PI3X_FAMILY, source, commercial=commercial, device=device, cache_dir=cache_dir, seed=seed
    )


def save_pi3(model: Pi3 | Pi3X, path: Path) -> None:
    """Write a model's weights as safetensors together with its sizes.

    Args:
        model: The model.
        path: File to write, ending in ``.safetensors``.
    """
    if isinstance(model, Pi3X):
        save_model(PI3X_FAMILY, model, model.config, path)
    else:
        save_model(PI3_FAMILY, model, model.config, path)
