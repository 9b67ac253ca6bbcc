# SPDX-License-Identifier: Apache-2.0
"""Run the global attention of somebody else's model under a plan, and undo it afterwards.

The models are recognised by their structure; nothing of them is imported.
"""

from __future__ import annotations

from .context import sparsify
from .report import Retrofit, RetrofitReport

__all__ = ["Retrofit", "RetrofitReport", "sparsify"]
