# SPDX-License-Identifier: Apache-2.0
"""Judge a model's cameras by a reference, or compare two models; ``docs/evaluation.md``."""

from .comparison import Comparison, compare
from .evaluation import Evaluation, evaluate
from .read import read_poses
from .table import print_comparison, print_evaluation
from .types import PosedModel

__all__ = [
    "Comparison",
    "Evaluation",
    "PosedModel",
    "compare",
    "evaluate",
    "print_comparison",
    "print_evaluation",
    "read_poses",
]
