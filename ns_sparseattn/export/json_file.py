# SPDX-License-Identifier: Apache-2.0
"""JSON files that are the same bytes for the same content: sorted keys, plain ASCII, no NaN."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a mapping as indented JSON with sorted keys.

    Args:
        path: The file.
        content: Mappings, sequences, dataclasses, enums, paths, numbers, strings and ``None``,
            nested at will. NaN and infinity, which JSON does not know, become ``null``.

    Raises:
        TypeError: If a value is of another kind.
    """
    text = json.dumps(to_plain(content), indent=4, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def to_plain(value: object) -> Any:
    """Turn a value into what JSON can hold; see `write_json`."""
    if isinstance(value, Enum):
        return to_plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [to_plain(item) for item in items]
    raise TypeError(f"JSON content must be plain values, got {type(value).__name__}.")
