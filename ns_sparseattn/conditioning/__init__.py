# SPDX-License-Identifier: Apache-2.0
"""What is known about photos beside their pixels: read, told to the network, held in the scene."""

from __future__ import annotations

from .apply import apply_known
from .known import Known, load_known
from .options import KnownOptions

__all__ = ["Known", "KnownOptions", "apply_known", "load_known"]
