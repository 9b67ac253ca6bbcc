# SPDX-License-Identifier: Apache-2.0
"""Photos in, camera poses and points out: sparse-attention structure from motion for nerfstudio."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
