# SPDX-License-Identifier: Apache-2.0
"""Load VGGT with weights from the hub, a file or a seed, and say what their licence allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .loading import ModelFamily, load_model, local_file, save_model
from .seeded import make_seeded_vggt
from .vggt import VGGT
from .vggt_config import VGGTConfig, config_from_shapes
from .weight_set import WeightSet, WeightsInfo

DROPPED_PREFIXES = ("track_head.",)
"""Keys of published files that are read past: the track head is not part of our network."""


def _drop_track_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x for key, x in tensors.items() if not key.startswith(DROPPED_PREFIXES)}


def _named_sets() -> tuple[Mapping[str, WeightSet], str]:
    from ..configs.vggt import DEFAULT_WEIGHTS, WEIGHTS

    return WEIGHTS, DEFAULT_WEIGHTS


VGGT_FAMILY: ModelFamily[VGGT] = ModelFamily(
    name="VGGT",
    config_metadata="vggt_config",
    build=VGGT,
    make_config=VGGTConfig,
    config_from_shapes=config_from_shapes,
    named_sets=_named_sets,
    seeded={"seeded": VGGTConfig, "seeded-small": VGGTConfig.small},
    make_seeded=make_seeded_vggt,
    adapt_keys=_drop_track_head,
)
"""How VGGT's weights are named, read and made."""


def load_vggt(
    source: str | Path | None = None,
    *,
    commercial: bool = False,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
) -> tuple[VGGT, WeightsInfo]:
    """Build a VGGT and fill it with weights.

    Args:
        source: A named set (see `ns_sparseattn.configs.vggt`), a repository on the Hugging Face
            hub, a weights file, a folder with one, or ``seeded`` / ``seeded-small`` for random
            weights. The default is ``vggt-1b``.
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
        VGGT_FAMILY, source, commercial=commercial, device=device, cache_dir=cache_dir, seed=seed
    )


def save_vggt(model: VGGT, path: Path) -> None:
    """Write a model's weights as safetensors together with its sizes, for `load_vggt`.

    Args:
        model: The model.
        path: File to write, ending in ``.safetensors``.
    """
    save_model(VGGT_FAMILY, model, model.config, path)


def local_weights(source: str) -> Path | None:
    """Return the file on this machine that weights are read from, without any download.

    Args:
        source: As for `load_vggt`.

    Returns:
        The file, or ``None`` for seeded weights, named sets and repositories of the hub.

    Raises:
        ValueError: If it is a folder without one weights file that could be meant.
    """
    return local_file(VGGT_FAMILY, source)
