# SPDX-License-Identifier: Apache-2.0
"""Global attention: a block-sparse operation, block selection, and plans for each layer.

Axes in this package: ``B`` batch, ``H`` heads, ``N`` tokens, ``D`` head size, head-major ``[B, H,
N, D]``.
"""

from __future__ import annotations

from .api import block_sparse_attention, why_not
from .backends import BackendName
from .block_map import BlockMap
from .dense import dense_attention
from .kept_mass import KeptMass, record_kept_mass
from .layout import BLOCK_K, BLOCK_Q, TokenLayout
from .plan import (
    AttentionPlan,
    AutoPolicy,
    BlockSparsePolicy,
    DensePolicy,
    FramePolicy,
    LayerPolicy,
    PaperPolicy,
)
from .recording import record_block_maps
from .retrofit import Retrofit, RetrofitReport, sparsify
from .run import AttentionRun
from .selection import select_blocks
from .stats import KeptMassStats, LayerStats

__all__ = [
    "BLOCK_K",
    "BLOCK_Q",
    "AttentionPlan",
    "AttentionRun",
    "AutoPolicy",
    "BackendName",
    "BlockMap",
    "BlockSparsePolicy",
    "DensePolicy",
    "FramePolicy",
    "KeptMass",
    "KeptMassStats",
    "LayerPolicy",
    "LayerStats",
    "PaperPolicy",
    "Retrofit",
    "RetrofitReport",
    "TokenLayout",
    "block_sparse_attention",
    "dense_attention",
    "record_block_maps",
    "record_kept_mass",
    "select_blocks",
    "sparsify",
    "why_not",
]
