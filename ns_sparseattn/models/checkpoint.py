# SPDX-License-Identifier: Apache-2.0
"""Reading weights files without running code from them and without holding them in memory twice."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of files that can be read."""

_WRAPPERS = ("state_dict", "model")
_HASH_CHUNK_BYTES = 2**22
_NUM_SHOWN = 3

# Keys that tell which network a file belongs to; the first pattern that a key matches decides.
_KNOWN_MODELS = (
    (r"aggregator\.inter_frame_blocks\.", "VGGT-Omega"),
    (r"aggregator\.(frame|global)_blocks\.", "VGGT"),
    (r"(pose_inject_blk|metric_decoder|depth_emb)\b", "Pi3X"),
    (r"point_decoder\.", "Pi3"),
    (r"(info_sharing|scale_head|ray_dirs_encoder)\.", "MapAnything"),
    (r"(enc_blocks|dec_blocks2?)\.", "DUSt3R or MASt3R"),
    (r"(blocks\.0\.attn\.qkv|cls_token)", "an image encoder alone, such as DINOv2"),
    (r"(_model|pipeline)\..*field\.", "a nerfstudio scene"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file, memory-mapped where the format allows it."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file.

    Args:
        path: ``.safetensors``, or a pickle of tensors alone (``.pt``, ``.pth``, ``.bin``), plain or
            wrapped as ``{"state_dict": ...}`` or ``{"model": ...}``.

    Returns:
        Its tensors.

    Raises:
        ValueError: If the file is of another kind, damaged, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return Checkpoint(path, tensors, dict(file.metadata() or {}))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}.") from error
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    return Checkpoint(path, _read_pickle(path), {})


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; none of other kinds and damaged files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files of before torch 1.6 are no zip archives and cannot be mapped. torch 2.1 maps files
        # that are named by a string only.
        content = torch.load(
            str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged; it is not read, because loading such "
            "a file can run code. Save its state dict with torch.save or as safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no torch file: {error}.") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} must hold a state dict, got {type(content).__name__}.")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(
            f"{path} must hold a state dict of tensors alone; {_list_some(odd)} are no tensors."
        )
    return {str(key): value for key, value in content.items()}


def find_weights_file(folder: Path) -> Path:
    """Return the one weights file of a folder, the safetensors one if both kinds are there.

    Raises:
        ValueError: If there is none, or several between which nothing decides.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    safe = [path for path in found if path.suffix == ".safetensors"]
    candidates = safe or found
    named = [path for path in candidates if path.stem == "model"]
    if len(candidates) == 1 or named:
        return (named or candidates)[0]
    if not found:
        raise ValueError(f"{folder} holds no weights file ({', '.join(SUFFIXES)}).")
    names = _list_some([path.name for path in candidates])
    raise ValueError(f"{folder} holds several weights files ({names}); name one of them.")


def check_keys(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise ``ValueError`` unless a checkpoint has exactly the expected tensors.

    Args:
        checkpoint: The file's content, without what is dropped on purpose.
        expected: Key to shape of every tensor of the network.
        model: Name of the network, for the message.
    """
    shapes = checkpoint.shapes
    missing = [key for key in expected if key not in shapes]
    extra = [key for key in shapes if key not in expected]
    reshaped = [
        f"{key} {list(shapes[key])} instead of {list(expected[key])}"
        for key in expected
        if key in shapes and shapes[key] != expected[key]
    ]
    if not (missing or extra or reshaped):
        return
    problems = [
        f"{len(keys)} {what} ({_list_some(keys)})"
        for what, keys in (("missing", missing), ("extra", extra), ("of wrong shape", reshaped))
        if keys
    ]
    guess = guess_model(shapes)
    kind = ", of another or an incomplete kind" if guess == model else ""
    looks_like = f" It looks like {guess}{kind}." if guess else ""
    raise ValueError(
        f"{checkpoint.path} does not hold the weights of {model}: of {len(expected)} tensors "
        f"{', '.join(problems)}.{looks_like}"
    )


def guess_model(keys: Mapping[str, object]) -> str | None:
    """Return which known network the keys belong to, ``None`` if no pattern fits."""
    for pattern, name in _KNOWN_MODELS:
        if any(re.match(pattern, key) for key in keys):
            return name
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    The hub's cache names large files by their checksum, which spares reading them once more.
    """
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def parse_metadata(checkpoint: Checkpoint, key: str) -> dict[str, object] | None:
    """Return a JSON object from a safetensors file's metadata, ``None`` without such an entry."""
    text = checkpoint.metadata.get(key)
    if text is None:
        return None
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(
            f"{checkpoint.path} must hold a JSON object as `{key}`, got {text[:40]!r}."
        )
    return value


def _list_some(names: list[str]) -> str:
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown}, ..."
