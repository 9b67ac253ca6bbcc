# SPDX-License-Identifier: Apache-2.0
"""What it means that our networks agree with a golden file: every recorded output was compared."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ns_sparseattn.testing.golden import GoldenResult, check_file, kind_of
from ns_sparseattn.testing.golden_file import GoldenFile


def assert_file_agrees(path: Path, *, left_out: Collection[str] = ()) -> list[GoldenResult]:
    """Assert that all arrays of a file but inputs are within tolerance.

    Args:
        path: The file.
        left_out: Arrays that the check is known to skip; it must skip these and no others.

    Returns:
        One result per recorded output.
    """
    results = list(check_file(path))
    assert [result for result in results if not result.ok] == []
    compared = [result.array for result in results if result.error is not None]
    assert len(compared) == len(set(compared))
    with np.load(path) as stored:
        recorded = set(stored.files) - {"config_json"}
    is_input = kind_of(GoldenFile.load(path)).is_input
    assert recorded - set(compared) - set(left_out) == {name for name in recorded if is_input(name)}
    assert {result.array for result in results if result.skipped} == set(left_out)
    assert compared
    return results
