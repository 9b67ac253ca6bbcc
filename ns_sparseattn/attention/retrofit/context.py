# SPDX-License-Identifier: Apache-2.0
"""`sparsify`: a model's global attention under a plan, for the time of a ``with``.

The ``forward`` of an attention module stays what it is: projections, norms, rotations and casts are
the model's own. Only the call of torch's ``scaled_dot_product_attention`` within it is answered by
`AttentionRun`. What cannot be answered faithfully is passed on to torch, and the report says so.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens, ``D`` head size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..layout import TokenLayout
from ..plan import AttentionPlan
from ..run import AttentionRun
from .call_layout import layout_of_call
from .replacement import Forward, Replacement
from .report import Retrofit
from .sites import Carrier, Site, find_carrier, find_planner

_logger = logging.getLogger(__name__)


@contextmanager
def sparsify(
    model: nn.Module, plan: AttentionPlan, *, tokens: TokenLayout | None = None
) -> Iterator[Retrofit]:
    """Run the global attention layers of a model under a plan.

    Works on VGGT, Pi3, Pi3X and MapAnything as their authors publish them, on modules that contain
    one of them, and on this package's own models, all recognised by structure. How the tokens lie
    is told from the arguments of each call. A layer for which that or anything else is unclear runs
    as before, and the report says why.

    Everything is undone at the end, also after an exception. Contexts may be nested, the inner one
    counts, and repeated. A model of this package takes the plan itself; a plan that is given to its
    call counts before this one.

    It is made for inference in one thread: neither threads that share the model nor torch.compile
    are supported, and gradients are not promised.

    Args:
        model: The model, in evaluation mode.
        plan: Policy of each global layer.
        tokens: How the tokens of every call lie, instead of finding out. Not for models of this
            package, which know.

    Yields:
        Reports: which layers run under the plan, which do not and why, and what each of them did in
        the latest forward pass.

    Raises:
        TypeError: If the model is no module.
        ValueError: If the model's structure is unknown, if it is compiled or in training mode, or
            if the plan names layers that it lacks; during a call, if its number of tokens is not
            that of `tokens`.

    Example:
        >>> import torch
        >>> from ns_sparseattn.attention import AttentionPlan, sparsify
        >>> from ns_sparseattn.models import VGGT, VGGTConfig
        >>> model, images = VGGT(VGGTConfig.small()).eval(), torch.rand(1, 2, 3, 28, 42)
        >>> with torch.no_grad(), sparsify(model, AttentionPlan.block_sparse(density=0.5)) as stats:
        ...     output = model(images)
        >>> stats.taken[0], stats.skipped, stats.layers[0].policy
        ('aggregator.global_blocks.0.attn', (), 'block-sparse (density 0.5, coarse)')
    """
    carrier = find_carrier(model)
    plan = plan.fitted_to(len(carrier.sites))
    if carrier.module.training:
        raise ValueError(
            "`model` must be in evaluation mode, call `model.eval()`: a plan is for inference, and "
            "training may need dropout in the attention."
        )
    planner = find_planner(model, carrier)
    if planner is not None and tokens is not None:
        raise ValueError(
            f"`tokens` must not be given for {type(planner).__name__}, which knows how its tokens "
            "lie."
        )
    retrofit = Retrofit([site.name for site in carrier.sites])
    with ExitStack() as undo:
        if planner is not None:
            replaced = [(planner, partial(_run_planner, plan, retrofit))]
        else:
            session = _Session(carrier, plan, tokens, retrofit)
            replaced = [(carrier.module, session.run_carrier)]
            replaced += [
                (site.attention, partial(session.run_attention, site))
                for site in carrier.sites
                if site.attention is not None
            ]
        for module, handle in replaced:
            undo.callback(Replacement(module, handle).remove)
        _logger.info(
            "%d of %d global layers of %s run under a plan.",
            len(retrofit.taken),
            len(carrier.sites),
            type(model).__name__,
        )
        yield retrofit


def _run_planner(
    plan: AttentionPlan,
    retrofit: Retrofit,
    forward: Forward,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a model that takes a plan itself."""
    if kwargs.get("plan") is None:
        kwargs = {**kwargs, "plan": plan}
    output = forward(*args, **kwargs)
    layers = tuple(getattr(output, "attention", ()))
    retrofit._update({}, lambda: layers)
    return output


class _Session:
    """A model under a plan: answers the calls of its carrier and of its attention modules."""

    def __init__(
        self,
        carrier: Carrier,
        plan: AttentionPlan,
        tokens: TokenLayout | None,
        retrofit: Retrofit,
    ) -> None:
        self._carrier = carrier
        self._plan = plan
        self._tokens = tokens
        self._retrofit = retrofit
        self._is_in_carrier = False
        self._begin("its model was not called as a whole, so frames and patch grid are unknown")

    def run_carrier(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module that holds the blocks, and learn from it how the tokens lie."""
        self._begin(layout_of_call(self._carrier.module, (*args, *kwargs.values())))
        self._is_in_carrier = True
        try:
            result = forward(*args, **kwargs)
        finally:
            self._is_in_carrier = False
        for site in self._carrier.sites:
            if site.layer not in self._seen:
                self._reasons.setdefault(
                    site.layer, "its `forward` was not called in this pass of the model"
                )
        self._retrofit._log_reasons()
        return result

    def run_attention(
        self, site: Site, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call an attention module, with its scaled dot product attention under the plan."""
        if not self._is_in_carrier and site.layer in self._seen:
            # Blocks that are called one by one: the same layer again is the next pass.
            self._begin(self._layout)
        self._seen.add(site.layer)
        answer = _Answer(partial(self._attend, site))
        with answer:
            result = forward(*args, **kwargs)
        if not answer.is_asked:
            self._reasons[site.layer] = "it does not call torch's scaled_dot_product_attention"
        if not self._is_in_carrier:
            self._retrofit._log_reasons()
        return result

    def _begin(self, layout: TokenLayout | str) -> None:
        """Start a forward pass."""
        self._layout = layout if self._tokens is None else self._tokens
        self._seen: set[int] = set()
        self._reasons = {
            site.layer: "its block has no `attn` with a `qkv` projection"
            for site in self._carrier.sites
            if site.attention is None
        }
        self._run: AttentionRun | None = None
        if isinstance(self._layout, TokenLayout):
            self._run = AttentionRun(self._plan, self._layout, len(self._carrier.sites))
        run = self._run
        self._retrofit._update(self._reasons, lambda: () if run is None else run.stats)

    def _attend(self, site: Site, dense: Forward, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """Answer a call of scaled dot product attention."""
        call = _read_call(*args, **kwargs)
        if not isinstance(call, str):
            call = self._why_not(site, call[0]) or call
        if isinstance(call, str):
            self._reasons[site.layer] = call
            return dense(*args, **kwargs)
        assert self._run is not None
        # Norms leave queries and keys in float32 under autocast, where attention runs in 16 bits.
        q, k, v = call
        return self._run.attend(site.layer, q.to(v.dtype), k.to(v.dtype), v)

    def _why_not(self, site: Site, q: Tensor) -> str | None:
        """Return a clause that says why a layer cannot run under the plan, if it cannot."""
        if site.attention is not None and site.attention.training:
            return "it is in training mode"
        if isinstance(self._layout, str):
            return self._layout
        # A layout that the caller gave must fit; `AttentionRun` raises if it does not.
        if self._tokens is None and q.shape[2] != self._layout.num_tokens:
            return (
                f"it has {q.shape[2]} tokens, and the call's {self._layout.num_frames} frames "
                f"make {self._layout.num_tokens}"
            )
        return None


class _Answer(TorchFunctionMode):
    """Has calls of ``scaled_dot_product_attention`` answered by somebody else.

    Args:
        attend: Called with torch's function and the arguments.
    """

    def __init__(self, attend: Callable[[Forward, tuple[Any, ...], dict[str, Any]], Tensor]):
        super().__init__()
        self._attend = attend
        self.is_asked = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # By name: modules may hold the function itself, whichever way they imported it.
        if getattr(func, "__name__", None) != "scaled_dot_product_attention":
            return func(*args, **kwargs)
        self.is_asked = True
        return self._attend(func, args, kwargs)


def _read_call(
    query: Tensor,  # [B, H, N, D]
    key: Tensor,  # [B, H, N, D]
    value: Tensor,  # [B, H, N, D]
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor] | str:
    """Return queries, keys and values of plain self-attention, or a clause why it is none."""
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        return "its queries, keys and values are not of one shape [B, H, N, D]"
    if attn_mask is not None or is_causal:
        return "its attention has a mask"
    if dropout_p > 0:
        return "its attention has dropout"
    if scale is not None and not math.isclose(scale, query.shape[-1] ** -0.5, rel_tol=1e-6):
        return f"its scores are scaled by {scale:g} instead of 1 / sqrt({query.shape[-1]})"
    # Grouped queries make no difference to heads of equal number.
    unknown = sorted(set(others) - {"enable_gqa"})
    return f"its attention has options {unknown}" if unknown else (query, key, value)
