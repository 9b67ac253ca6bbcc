# SPDX-License-Identifier: Apache-2.0
"""Load VGGT with weights from the hub, a file or a seed, and say what their licence allows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from .checkpoint import (
    SUFFIXES,
    Checkpoint,
    check_keys,
    find_weights_file,
    parse_metadata,
    read_checkpoint,
    sha256_of,
)
from .hub import fetch_weights
from .seeded import make_seeded_vggt
from .vggt import VGGT
from .vggt_config import VGGTConfig, config_from_shapes
from .weight_set import WeightSet, WeightsInfo

logger = logging.getLogger(__name__)

DROPPED_PREFIXES = ("track_head.",)
"""Keys of published files that are read past: the track head is not part of our network."""

_CONFIG_METADATA = "vggt_config"
_SEEDED = {"seeded": VGGTConfig, "seeded-small": VGGTConfig.small}


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
    from ..configs.vggt import DEFAULT_WEIGHTS, WEIGHTS

    text = str(source or DEFAULT_WEIGHTS)
    if text in _SEEDED:
        info = WeightsInfo(
            name=text,
            source=f"random numbers, seed {seed}",
            licence="none, made by this program",
            commercial=True,
            verified=False,
            seed=seed,
        )
        model = make_seeded_vggt(_SEEDED[text](), seed)
    else:
        weights = WEIGHTS.get(text) or _find_by_repo(text, WEIGHTS)
        if commercial:
            _check_commercial(text, weights)
        path, where = _locate(text, weights, cache_dir, WEIGHTS)
        model = _build(read_checkpoint(path), weights.config if weights else None)
        info = _describe(path, where, weights)
    logger.debug("Weights: %s", info.describe())
    return model.to(device), info


def save_vggt(model: VGGT, path: Path) -> None:
    """Write a model's weights as safetensors together with its sizes, for `load_vggt`.

    Args:
        model: The model.
        path: File to write, ending in ``.safetensors``.
    """
    from safetensors.torch import save_file

    tensors = {
        key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()
    }
    save_file(tensors, path, metadata={_CONFIG_METADATA: json.dumps(asdict(model.config))})


def _find_by_repo(text: str, sets: Mapping[str, WeightSet]) -> WeightSet | None:
    return next((weights for weights in sets.values() if weights.repo_id == text), None)


def _check_commercial(text: str, weights: WeightSet | None) -> None:
    if weights is None:
        raise ValueError(
            f"The licence of the weights {text} is not known, so they are refused for commercial "
            "use; choose a named set that allows it, such as vggt-1b-commercial."
        )
    if not weights.commercial_use:
        raise ValueError(
            f"The licence of the weights {weights.name} ({weights.licence}) forbids commercial "
            "use; choose a set that allows it, such as vggt-1b-commercial."
        )


def local_weights(source: str) -> Path | None:
    """Return the file on this machine that weights are read from, without any download.

    Args:
        source: As for `load_vggt`.

    Returns:
        The file, or ``None`` for seeded weights, named sets and repositories of the hub.

    Raises:
        ValueError: If it is a folder without one weights file that could be meant.
    """
    from ..configs.vggt import WEIGHTS

    if source in _SEEDED or source in WEIGHTS or _find_by_repo(source, WEIGHTS) is not None:
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        return find_weights_file(path)
    return path if path.is_file() else None


def _locate(
    text: str, weights: WeightSet | None, cache_dir: Path | None, sets: Mapping[str, WeightSet]
) -> tuple[Path, str]:
    """Return the weights file and how to call the place that it is from."""
    if weights is not None:
        logger.info(
            "%s needs %.1f GB; a cached copy is used if there is one.", text, weights.size_gb
        )
        path = fetch_weights(weights.repo_id, weights.filename, cache_dir)
        return path, f"{weights.repo_id}/{weights.filename}"
    local = local_weights(text)
    if local is not None:
        return local, str(local)
    if Path(text).suffix not in SUFFIXES and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        path = fetch_weights(text, None, cache_dir)
        return path, f"{text}/{path.name}"
    known = ", ".join([*sets, *_SEEDED])
    raise ValueError(
        f"There are no weights {text}: give a named set ({known}), a file, a folder, or a "
        "repository of the hub as owner/name."
    )


def _build(checkpoint: Checkpoint, config: VGGTConfig | None) -> VGGT:
    kept = {
        key: tensor
        for key, tensor in checkpoint.tensors.items()
        if not key.startswith(DROPPED_PREFIXES)
    }
    checkpoint = Checkpoint(checkpoint.path, kept, checkpoint.metadata)
    if config is None:
        config = _stated_config(checkpoint) or config_from_shapes(checkpoint.shapes) or VGGTConfig()
    with torch.device("meta"):
        model = VGGT(config)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_keys(checkpoint, expected, "VGGT")
    # Assigning keeps tensors mapped from the file; only those of another type are converted.
    model.load_state_dict(
        {key: tensor.float() for key, tensor in kept.items()}, strict=True, assign=True
    )
    return model.eval()


def _stated_config(checkpoint: Checkpoint) -> VGGTConfig | None:
    stated = parse_metadata(checkpoint, _CONFIG_METADATA)
    if stated is None:
        return None
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()
    }
    try:
        return VGGTConfig(**fields)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ValueError(
            f"{checkpoint.path} states sizes that this version cannot read: {error}."
        ) from error


def _describe(path: Path, where: str, weights: WeightSet | None) -> WeightsInfo:
    if weights is None:
        return WeightsInfo(
            name=path.name,
            source=where,
            licence="unknown",
            commercial=None,
            verified=False,
            sha256=sha256_of(path),
        )
    return WeightsInfo(
        name=weights.name,
        source=where,
        licence=weights.licence,
        licence_summary=weights.licence_summary,
        commercial=weights.commercial_use,
        verified=True,
        sha256=sha256_of(path),
    )
