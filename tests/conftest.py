# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on: skipped tests say why, large data lies outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

# Before any test imports pycolmap: see `ns_sparseattn.export.colmap.import_pycolmap`.
import PIL.Image  # noqa: F401
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _shared_folder() -> Path:
    configured = os.environ.get("NS_SPARSEATTN_SHARED")
    return Path(configured) if configured else REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large test data, which is not part of the repository."""
    folder = _shared_folder()
    # Any other folder of that name is none of our business.
    if not (folder / "models" / "golden_a").is_dir():
        pytest.skip(f"There are no large test data in {folder}; NS_SPARSEATTN_SHARED names them.")
    return folder


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    missing = {}
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        missing["gpu"] = "There is no CUDA device."
    if not os.environ.get("NS_SPARSEATTN_WEIGHTS"):
        missing["weights"] = "NS_SPARSEATTN_WEIGHTS names no folder of published weights."
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
