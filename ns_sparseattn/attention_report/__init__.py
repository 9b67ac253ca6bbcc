# SPDX-License-Identifier: Apache-2.0
"""What the global attention of a model does on a folder of photos: numbers and pictures.

Axes in this package: ``L`` layers, ``H`` heads, ``R`` query blocks with a list, ``S`` sampled
queries.
"""

from __future__ import annotations

from .command import AttentionReport
from .folder import REPORT_NAME, write_report
from .report import HeadReport, LayerReport, ListLengths, Report, make_report

__all__ = [
    "REPORT_NAME",
    "AttentionReport",
    "HeadReport",
    "LayerReport",
    "ListLengths",
    "Report",
    "make_report",
    "write_report",
]
