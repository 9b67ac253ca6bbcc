# SPDX-License-Identifier: Apache-2.0
"""Golden files of the published block-sparse attention: masks, outputs, the Hilbert curve.

Axes: ``B`` batch, ``H`` heads, ``R`` query blocks, ``C`` key blocks, ``N`` tokens, ``D`` head size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from ..attention import AttentionPlan, AttentionRun, PaperPolicy, TokenLayout, record_block_maps
from ..attention.hilbert import hilbert_order
from ..attention.paper import PaperOrder, pooled_shares
from ..attention.plan import Pooling
from .golden_file import Check, GoldenError, GoldenFile, GoldenKind
from .recipe import make_qkv

# Outputs were recorded in float64 and are computed in float32.
_TOLERANCE = 1e-5
_TOLERANCE_FLOAT64 = 1e-12
# For example mask_c0.9, out64_r0.75c0.9, mask_maxpool_r0.5.
_SETTING = re.compile(
    r"(?P<kind>mask|out64)_(?P<pool>maxpool_)?(r(?P<ratio>[\d.]+))?(c(?P<cdf>[\d.]+))?"
)


class _Recording:
    """The inputs of a file, made anew, and what our attention does with them."""

    def __init__(self, golden: GoldenFile) -> None:
        stated = golden.config
        self.layout = TokenLayout(
            num_frames=stated["frames"],
            num_special=stated["special_per_frame"],
            grid_height=stated["grid_h"],
            grid_width=stated["grid_w"],
        )
        self.qkv = make_qkv(
            golden.tag,
            (stated["B"], stated["heads"], self.layout.num_tokens, stated["head_dim"]),
            strength=stated["qkv_strength"],
        )
        for name, tensor in zip("qkv", self.qkv, strict=True):
            if hashlib.sha256(tensor.numpy().tobytes()).hexdigest() != stated["sha256"][name]:
                raise GoldenError(f"{golden.path}: `{name}` could not be made as it was recorded.")
        self.order = PaperOrder.of(self.layout, torch.device("cpu"))
        patches = self.order.gather_index[: self.order.num_patches]
        self.rows = patches[golden.tensor("out_rows")]
        """Tokens whose outputs were recorded."""
        self.special_rows = self.order.gather_index[self.order.num_patches :]

    def attend(self, plan: AttentionPlan) -> tuple[Tensor, Tensor | None]:
        """Return the output ``[B, H, N, D]`` and the mask ``[B, H, R, C]``, if there is one."""
        with record_block_maps() as maps:
            out = AttentionRun(plan, self.layout, 1).attend(0, *self.qkv)
        return out, maps[0].to_mask() if maps else None

    def pooled(self, pooling: Pooling, dtype: torch.dtype) -> Tensor:
        """Return the pooled attention ``[B, H, R, C]``."""
        q, k = (
            x.to(dtype)[:, :, self.order.gather_index[: self.order.num_patches]]
            for x in self.qkv[:2]
        )
        shares = torch.cat(list(pooled_shares(q, k, pooling)))
        return shares.reshape(*q.shape[:2], -1, shares.shape[-1])


def _run_attention(golden: GoldenFile) -> Iterator[Check]:
    recording = _Recording(golden)

    def check(name: str, computed: Tensor | None, tolerance: float) -> Check:
        assert computed is not None
        return Check(name, computed, golden.arrays[name], tolerance)

    yield check("pooled_prob", recording.pooled("mean", torch.float32), _TOLERANCE)
    yield check("pooled_prob64", recording.pooled("mean", torch.float64), _TOLERANCE_FLOAT64)
    yield check("pooled_prob_maxpool", recording.pooled("max", torch.float32), _TOLERANCE)
    dense, _ = recording.attend(AttentionPlan.dense())
    yield check("out64_dense", dense[:, :, recording.rows], _TOLERANCE)
    for name in golden.arrays:
        setting = _SETTING.fullmatch(name)
        if setting is None:
            continue
        out, mask = recording.attend(AttentionPlan(default=_policy(setting)))
        if setting["kind"] == "mask":
            yield check(name, mask, 0.0)
        else:
            yield check(name, out[:, :, recording.rows], _TOLERANCE)
    if "out64_special_rows" in golden.arrays:
        sparsest, _ = recording.attend(AttentionPlan.paper(sparse_ratio=1.0))
        yield check("out64_special_rows", sparsest[:, :, recording.special_rows], _TOLERANCE)


def _policy(setting: re.Match[str]) -> PaperPolicy:
    """Return the policy that an array is named after."""
    ratio, cdf = setting["ratio"], setting["cdf"]
    return PaperPolicy(
        sparse_ratio=None if ratio is None else float(ratio),
        cdf_threshold=None if cdf is None else float(cdf),
        pooling="max" if setting["pool"] else "mean",
    )


def _run_hilbert(golden: GoldenFile) -> Iterator[Check]:
    for name, array in golden.arrays.items():
        if match := re.fullmatch(r"gather_(inv_)?w(\d+)_h(\d+)", name):
            order = torch.tensor(hilbert_order(height=int(match[3]), width=int(match[2])))
            yield Check(name, order.argsort() if match[1] else order, array, 0.0)


BLOCK_MASK = GoldenKind(
    name="block_mask",
    tag_pattern=r"golden-\w+/block_mask/(?!sparse_)",
    run=_run_attention,
    is_input=lambda name: name == "out_rows",
)
HILBERT = GoldenKind(name="hilbert", tag_pattern=r"block_mask_hilbert$", run=_run_hilbert)
