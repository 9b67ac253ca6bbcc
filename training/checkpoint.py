# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in parts of limited size, written beside the last one and then renamed.

A checkpoint is a folder with ``index.json`` and ``part-000.bin``, ``part-001.bin``, ...: the bytes
of all tensors one after the other, cut where a part is full. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.codec import Codec, decode, encode

PART_BYTES = 16_000_000
"""Largest part, bytes."""

_NAME, _NEW, _OLD = "checkpoint", "checkpoint.new", "checkpoint.old"


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, tuple[Tensor, Codec]],
    state: Mapping[str, Any],
    *,
    part_bytes: int = PART_BYTES,
) -> int:
    """Write a checkpoint; the one before stays until the new one is complete.

    Args:
        folder: Of the run.
        tensors: Tensors by name, and how to write each.
        state: Whatever else belongs to it, as JSON.
        part_bytes: Largest part.

    Returns:
        Bytes written.
    """
    new, target, old = folder / _NEW, folder / _NAME, folder / _OLD
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    entries, pieces, start = [], [], 0
    for name, (tensor, codec) in tensors.items():
        data = encode(tensor, codec)
        size = len(data)
        entries.append(
            {
                "name": name,
                "codec": codec,
                "shape": list(tensor.shape),
                "start": start,
                "size": size,
            }
        )
        pieces.append(data)
        start += size
    stream = torch.cat(pieces).numpy().tobytes()
    parts = []
    for number, begin in enumerate(range(0, len(stream), part_bytes)):
        part = stream[begin : begin + part_bytes]
        path = new / f"part-{number:03d}.bin"
        path.write_bytes(part)
        parts.append({"file": path.name, "sha256": hashlib.sha256(part).hexdigest()})
    index = {"state": dict(state), "parts": parts, "tensors": entries}
    (new / "index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return start


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the last complete checkpoint of a run.

    Args:
        folder: Of the run.

    Returns:
        Tensors and state, or ``None`` if the run has none yet.

    Raises:
        ValueError: If a part is missing or damaged.
    """
    # A run that died between two renames has its last checkpoint under the old name.
    found = [folder / name for name in (_NAME, _OLD) if (folder / name / "index.json").is_file()]
    if not found:
        return None
    index = json.loads((found[0] / "index.json").read_text(encoding="utf-8"))
    stream = bytearray()
    for part in index["parts"]:
        path = found[0] / part["file"]
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise ValueError(
                f"{path} is missing or damaged; put the whole checkpoint into {folder}, or begin "
                "in another folder."
            )
        stream += data
    buffer = torch.frombuffer(stream, dtype=torch.uint8)
    tensors = {
        entry["name"]: decode(
            buffer[entry["start"] : entry["start"] + entry["size"]],
            entry["codec"],
            tuple(entry["shape"]),
        )
        for entry in index["tensors"]
    }
    return tensors, index["state"]
