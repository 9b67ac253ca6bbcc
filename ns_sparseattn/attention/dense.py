# SPDX-License-Identifier: Apache-2.0
"""Dense attention through torch's own kernels, the peer that block sparsity has to beat.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``D`` head size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def dense_attention(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    *,
    key_mask: Tensor | None = None,  # [B, Nk] bool
) -> Tensor:
    """Attend to every key that exists.

    Returns:
        ``[B, H, Nq, D]``; a query without any key gives zeros.

    Example:
        >>> import torch
        >>> q = torch.zeros(1, 1, 3, 8)
        >>> dense_attention(q, q, torch.ones(1, 1, 3, 8)).shape
        torch.Size([1, 1, 3, 8])
    """
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None])
    return out.masked_fill(~key_mask.any(-1)[:, None, None, None], 0.0)
