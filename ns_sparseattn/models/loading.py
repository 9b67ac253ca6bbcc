# SPDX-License-Identifier: Apache-2.0
"""Load a network of any family with weights from the hub, a file or a seed.

A `ModelFamily` says what sets one kind of network apart: how it is built, how its sizes are
recognised, how its keys are adapted, and which weights have names.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from .checkpoint import (
    SUFFIXES,
    Checkpoint,
    check_keys,
    find_weights_file,
    parse_metadata,
    read_checkpoint,
    read_metadata,
    sha256_of,
)
from .hub import fetch_weights
from .shipped import shipped_weights
from .weight_set import WeightSet, WeightsInfo

logger = logging.getLogger(__name__)

LONG_SIDE_METADATA = "long_side"
"""Entry of a file's metadata: longest side of the photos that it was trained on, pixels."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Generic[ModelT]):
    """One kind of network and what is known about its weights."""

    name: str
    """How messages call it."""
    config_metadata: str
    """Entry of a file's metadata under which we write sizes."""
    build: Callable[[Any], ModelT]
    """Makes a network from its sizes."""
    make_config: Callable[..., Any]
    """Makes sizes from their fields; without any, those of the published network."""
    config_from_shapes: Callable[[Mapping[str, tuple[int, ...]]], Any | None]
    """Recognises sizes from the tensors of a file."""
    named_sets: Callable[[], tuple[Mapping[str, WeightSet], str]]
    """Returns the named weights, and the name of the default."""
    seeded: Mapping[str, Callable[[], Any]]
    """Names of random weights, and the sizes that they stand for."""
    make_seeded: Callable[[Any, int], ModelT]
    """Makes a network with random weights from sizes and a seed."""
    adapt_keys: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    """Turns the keys of a published file into those of our network."""


def load_model(
    family: ModelFamily[ModelT],
    source: str | Path | None = None,
    *,
    commercial: bool = False,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
) -> tuple[ModelT, WeightsInfo]:
    """Build a network and fill it with weights.

    Args:
        family: Kind of the network.
        source: A named set, a repository on the Hugging Face hub, a weights file, a folder with
            one, or the name of random weights. The family's default if not given.
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
    sets, default = family.named_sets()
    text = str(source or default)
    if text in family.seeded:
        info = WeightsInfo(
            name=text,
            source=f"random numbers, seed {seed}",
            licence="none, made by this program",
            commercial=True,
            verified=False,
            seed=seed,
        )
        model = family.make_seeded(family.seeded[text](), seed)
    else:
        weights = sets.get(text) or _find_by_repo(text, sets)
        if commercial:
            _check_commercial(text, weights, sets)
        path, where = _locate(family, text, weights, cache_dir)
        model = _build(family, read_checkpoint(path), weights.config if weights else None)
        info = _describe(path, where, weights)
    logger.debug("Weights: %s", info.describe())
    return model.to(device), info


def save_model(family: ModelFamily[ModelT], model: ModelT, path: Path) -> None:
    """Write a model's weights as safetensors together with its sizes, for `load_model`.

    Args:
        family: Kind of the network.
        model: The model, whose sizes are its ``config``.
        path: File to write, ending in ``.safetensors``.
    """
    from safetensors.torch import save_file

    tensors = {
        key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()
    }
    sizes = json.dumps(asdict(cast("Any", model.config)))
    save_file(tensors, path, metadata={family.config_metadata: sizes})


def local_file(family: ModelFamily[Any], source: str) -> Path | None:
    """Return the file on this machine that weights are read from, without any download.

    Args:
        family: Kind of the network.
        source: As for `load_model`.

    Returns:
        The file, or ``None`` for random weights, named sets and repositories of the hub.

    Raises:
        ValueError: If it is a folder without one weights file that could be meant.
    """
    sets, _ = family.named_sets()
    if source in family.seeded or source in sets or _find_by_repo(source, sets) is not None:
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        return find_weights_file(path)
    return path if path.is_file() else None


def trained_side(family: ModelFamily[Any], source: str | None) -> int | None:
    """Return the longest side of the photos that weights were trained on, without any download.

    Args:
        family: Kind of the network.
        source: As for `load_model`.

    Returns:
        Pixels, as the set or the file says; if it does not, the ``image_size`` of the network's
        sizes. None if they have no such field, or if only a file that would have to be downloaded,
        or a pickle, could tell.
    """
    sets, default = family.named_sets()
    text = source or default
    weights = sets.get(text) or _find_by_repo(text, sets)
    if weights is not None:
        if weights.long_side is not None:
            return weights.long_side
        config = weights.config
    elif text in family.seeded:
        config = family.seeded[text]()
    else:
        path = local_file(family, text)
        if path is None:
            return None
        metadata = read_metadata(path)
        if metadata.get(LONG_SIDE_METADATA, "").isdecimal():
            return int(metadata[LONG_SIDE_METADATA])
        config = _stated_config(family, Checkpoint(path, {}, metadata))
    return getattr(config, "image_size", None)


def _find_by_repo(text: str, sets: Mapping[str, WeightSet]) -> WeightSet | None:
    return next((weights for weights in sets.values() if weights.repo_id == text), None)


def _check_commercial(text: str, weights: WeightSet | None, sets: Mapping[str, WeightSet]) -> None:
    if weights is not None and weights.commercial_use:
        return
    allowed = next((name for name, other in sets.items() if other.commercial_use), None)
    choose = (
        "choose a named set that allows it, such as " + allowed
        if allowed
        else "no published weights of this network allow it"
    )
    if weights is None:
        raise ValueError(
            f"The licence of the weights {text} is not known, so they are refused for commercial "
            f"use; {choose}."
        )
    raise ValueError(
        f"The licence of the weights {weights.name} ({weights.licence}) forbids commercial "
        f"use; {choose}."
    )


def _locate(
    family: ModelFamily[Any], text: str, weights: WeightSet | None, cache_dir: Path | None
) -> tuple[Path, str]:
    """Return the weights file and how to call the place that it is from."""
    if weights is not None and weights.repo_id is None:
        return shipped_weights(weights.filename), f"{weights.filename} of this package"
    if weights is not None:
        assert weights.repo_id is not None
        logger.info(
            "%s needs %.1f GB; a cached copy is used if there is one.", text, weights.size_gb
        )
        path = fetch_weights(weights.repo_id, weights.filename, cache_dir)
        return path, f"{weights.repo_id}/{weights.filename}"
    local = local_file(family, text)
    if local is not None:
        return local, str(local)
    if Path(text).suffix not in SUFFIXES and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        path = fetch_weights(text, None, cache_dir)
        return path, f"{text}/{path.name}"
    known = ", ".join([*family.named_sets()[0], *family.seeded])
    raise ValueError(
        f"There are no weights {text}: give a named set ({known}), a file, a folder, or a "
        "repository of the hub as owner/name."
    )


def _build(family: ModelFamily[ModelT], checkpoint: Checkpoint, config: Any | None) -> ModelT:
    kept = family.adapt_keys(checkpoint.tensors)
    checkpoint = Checkpoint(checkpoint.path, kept, checkpoint.metadata)
    if config is None:
        config = (
            _stated_config(family, checkpoint)
            or family.config_from_shapes(checkpoint.shapes)
            or family.make_config()
        )
    with torch.device("meta"):
        model = family.build(config)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_keys(checkpoint, expected, family.name)
    # Assigning keeps tensors mapped from the file; only those of another type are converted.
    model.load_state_dict(
        {key: tensor.float() for key, tensor in kept.items()}, strict=True, assign=True
    )
    return model.eval()


def _stated_config(family: ModelFamily[Any], checkpoint: Checkpoint) -> Any | None:
    stated = parse_metadata(checkpoint, family.config_metadata)
    if stated is None:
        return None
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()
    }
    try:
        return family.make_config(**fields)
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
