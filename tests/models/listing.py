# SPDX-License-Identifier: Apache-2.0
"""Reading the listings of published tensors in ``tests/data``.

After a line of explanation every line is a key and its shape; ``{0-23}`` in a key stands for all
numbers of a range.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "data"


def read_listing(name: str) -> dict[str, tuple[int, ...]]:
    """Return key to shape of every tensor in a listing."""
    shapes = {}
    for line in (FOLDER / name).read_text(encoding="ascii").splitlines()[1:]:
        key, shape = line.split()
        sizes = tuple(int(size) for size in shape.split("x"))
        match = re.search(r"\{(\d+)-(\d+)\}", key)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        for number in range(first, last + 1):
            shapes[re.sub(r"\{.*\}", str(number), key)] = sizes
    return shapes
