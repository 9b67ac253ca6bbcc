# SPDX-License-Identifier: Apache-2.0
"""One forward pass under an attention plan: the seam between a model and the attention code.

A model knows where its global layers sit and how its tokens lie, and calls `AttentionRun.attend` in
each of them. It does not know which policy or backend runs.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens in the model's own order, ``D`` head size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import check_tensor
from .api import attend_to_blocks, resolve_backend
from .crossover import crossover
from .dense import dense_attention
from .frame_attention import frame_attention
from .hilbert import hilbert_order
from .kept_mass import note_kept_mass
from .layout import Q_PER_K, BlockOrder, TokenLayout
from .paper import PaperOrder, select_paper_blocks
from .patterns import BlockPattern, FramePattern, Pattern
from .plan import (
    AttentionPlan,
    BlockSparsePolicy,
    DensePolicy,
    FramePolicy,
    LayerPolicy,
    PaperPolicy,
    PatchOrder,
    Share,
)
from .recording import note_block_map
from .selection import select_blocks
from .stats import LayerStats
from .tiles import chain_frames, tile_order


class AttentionRun:
    """The global attention of one forward pass: applies a plan and records what each layer did.

    Args:
        plan: Policy of each global layer.
        tokens: How the model's tokens lie.
        num_layers: Global layers of the model.
        key_mask: ``[B, N]`` booleans, false for patches that nobody may attend to, in the model's
            order. They still attend to others, as queries. All tokens are keys if not given.

    Raises:
        ValueError: If the plan names layers that the model lacks, or a mask does not fit, leaves
            a scene without keys, or masks a special token.
    """

    def __init__(
        self,
        plan: AttentionPlan,
        tokens: TokenLayout,
        num_layers: int,
        *,
        key_mask: Tensor | None = None,  # [B, N] bool
    ) -> None:
        self._plan = plan.fitted_to(num_layers)
        self._tokens = tokens
        self._key_mask = None if key_mask is None else _checked_mask(key_mask, tokens)
        self._orders: dict[tuple[torch.device, PatchOrder, int], BlockOrder] = {}
        self._paper_orders: dict[tuple[torch.device, bool], PaperOrder] = {}
        self._workspace: dict[str, Tensor] = {}
        self._timed: list[tuple[LayerStats, _Timer]] = []

    @property
    def stats(self) -> tuple[LayerStats, ...]:
        """What each layer did so far, in order of the calls. Waits for the device."""
        return tuple(
            replace(stats, time_ms=timer.total_ms(), selection_ms=timer.selection_ms())
            for stats, timer in self._timed
        )

    def attend(
        self,
        layer: int,
        q: Tensor,  # [B, H, N, D]
        k: Tensor,  # [B, H, N, D]
        v: Tensor,  # [B, H, N, D]
    ) -> Tensor:
        """Run the attention of one global layer.

        Args:
            layer: Index among the model's global layers, from 0.
            q: ``[B, H, N, D]``, after q/k norm and positional encoding, tokens in the model's own
                order.
            k: ``[B, H, N, D]``, likewise.
            v: ``[B, H, N, D]``.

        Returns:
            ``[B, H, N, D]``, tokens in the model's own order.

        Raises:
            ValueError: If the number of tokens is not the layout's.
        """
        if self._key_mask is not None and len(self._key_mask) != len(q):
            raise ValueError(
                f"`q` must have the {len(self._key_mask)} scenes of the mask, got {len(q)}."
            )
        if q.shape[2] != self._tokens.num_tokens:
            raise ValueError(
                f"`q` must have the {self._tokens.num_tokens} tokens of the layout, "
                f"got {q.shape[2]}."
            )
        timer = _Timer(q.device)
        done = self._attend_under(self._plan.policy(layer), layer, timer, q, k, v)
        timer.stop()
        kept_mass = note_kept_mass(layer, q, k, v, done.out, done.pattern, self._key_mask)
        stats = LayerStats(
            layer=layer,
            policy=self._plan.policy(layer).name,
            backend=done.backend,
            density=done.density,
            time_ms=0.0,
            kept_mass=kept_mass,
        )
        self._timed.append((stats, timer))
        return done.out

    def _attend_under(
        self, policy: LayerPolicy, layer: int, timer: _Timer, q: Tensor, k: Tensor, v: Tensor
    ) -> _Attended:
        if isinstance(policy, DensePolicy):
            return self._attend_densely(q, k, v)
        if isinstance(policy, FramePolicy):
            out, density = frame_attention(
                q,
                k,
                v,
                self._tokens,
                with_first_frame=policy.with_first_frame,
                key_mask=self._key_mask,
            )
            pattern = FramePattern(tokens=self._tokens, with_first_frame=policy.with_first_frame)
            return _Attended(out, density, "sdpa", pattern)
        if isinstance(policy, PaperPolicy):
            return self._attend_paper(layer, policy, timer, q, k, v)
        if isinstance(policy, BlockSparsePolicy):
            return self._attend_sparse(layer, policy, None, timer, q, k, v)
        return self._attend_auto(policy.policy, layer, timer, q, k, v)

    def _attend_densely(self, q: Tensor, k: Tensor, v: Tensor) -> _Attended:
        if self._key_mask is None:
            return _Attended(dense_attention(q, k, v), 1.0, "sdpa")
        # Leaving keys out is cheaper than a mask, with which fused kernels are slow or missing.
        slots = [
            dense_attention(q[b : b + 1], k[b : b + 1, :, is_key], v[b : b + 1, :, is_key])
            for b, is_key in enumerate(self._key_mask)
        ]
        return _Attended(torch.cat(slots), 1.0, "sdpa")

    def _attend_auto(
        self,
        policy: BlockSparsePolicy | FramePolicy,
        layer: int,
        timer: _Timer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> _Attended:
        """Attend under a policy where that was measured to pay, else densely."""
        backend = policy.backend if isinstance(policy, BlockSparsePolicy) else "auto"
        limits = crossover(resolve_backend(backend, q.device.type), q.device.type)
        if self._tokens.num_tokens < limits.min_tokens:
            return self._attend_densely(q, k, v)
        if isinstance(policy, FramePolicy):
            return self._attend_under(policy, layer, timer, q, k, v)
        if policy.mass is not None:
            return self._attend_sparse(layer, policy, limits.max_density, timer, q, k, v)
        if _mean(policy.max_density) > limits.max_density:
            # Known without a selection, which would be lost.
            return self._attend_densely(q, k, v)
        return self._attend_sparse(layer, policy, None, timer, q, k, v)

    def _attend_sparse(
        self,
        layer: int,
        policy: BlockSparsePolicy,
        max_density: float | None,
        timer: _Timer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> _Attended:
        """Re-order into blocks, select, attend, put the result back.

        Above `max_density` the selection is dropped and dense attention used.
        """
        order = self._order_of(policy, k)
        q_blocks = self._lay_out(order, q, "q")
        k_blocks = self._lay_out(order, k, "k")
        key_mask = order.key_mask.expand(q.shape[0], -1)
        if self._key_mask is not None:
            key_mask = key_mask & self._key_mask.gather(
                1, order.gather_index.expand(q.shape[0], -1)
            )
        block_map = (policy.selector or select_blocks)(
            q_blocks,
            k_blocks,
            mass=policy.mass,
            min_density=policy.min_density,
            max_density=policy.max_density,
            block_q=Q_PER_K * policy.block_k,
            block_k=policy.block_k,
            num_full_q_blocks=order.num_full_q_blocks,
            num_sink_k_blocks=order.num_sink_k_blocks,
            key_mask=key_mask,
            # What masked patches look like must not matter to the others of their block.
            query_mask=None if self._key_mask is None else key_mask,
        )
        density = block_map.density(q_blocks.shape[2], k_blocks.shape[2], key_mask, key_mask)
        timer.selected()
        if max_density is not None and density > max_density:
            return self._attend_densely(q, k, v)
        note_block_map(layer, block_map)
        done = attend_to_blocks(
            q_blocks,
            k_blocks,
            self._lay_out(order, v, "v"),
            block_map,
            backend=policy.backend,
            key_mask=key_mask if order.has_padding or self._key_mask is not None else None,
            coarse=policy.coarse,
        )
        pattern = BlockPattern(
            block_map=block_map,
            gather_index=order.gather_index,
            scatter_index=order.scatter_index,
            num_queries=order.gather_index.shape[1],
            key_mask=order.key_mask if self._key_mask is None else key_mask,
            has_coarse=policy.coarse,
        )
        return _Attended(order.put_back(done.out), density, done.backend, pattern)

    def _attend_paper(
        self,
        layer: int,
        policy: PaperPolicy,
        timer: _Timer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> _Attended:
        """As `_attend_sparse`, in the published layout: special queries apart, and dense."""
        order = self._paper_order_on(q.device, policy.hilbert)
        if order.num_patches == 0:
            return self._attend_densely(q, k, v)
        q = q.index_select(2, order.gather_index)
        k, v = (x.index_select(2, order.gather_index[: order.num_keys]) for x in (k, v))
        num_tokens, num_keys, num_patches = q.shape[2], k.shape[2], order.num_patches
        block_map = select_paper_blocks(
            q[:, :, :num_patches],
            k[:, :, :num_patches],
            policy,
            num_special=num_keys - num_patches,
        )
        timer.selected()
        note_block_map(layer, block_map)
        done = attend_to_blocks(q[:, :, :num_patches], k, v, block_map, backend=policy.backend)
        out = done.out
        if num_tokens > num_patches:
            out = torch.cat([out, dense_attention(q[:, :, num_patches:], k, v)], dim=2)
        listed = block_map.density(num_patches, num_keys)
        density = (listed * num_patches + num_tokens - num_patches) / num_tokens
        pattern = BlockPattern(
            block_map=block_map,
            gather_index=order.gather_index[None],
            scatter_index=order.scatter_index[None],
            num_queries=order.num_patches,
        )
        return _Attended(out.index_select(2, order.scatter_index), density, done.backend, pattern)

    def _paper_order_on(self, device: torch.device, hilbert: bool) -> PaperOrder:
        if (device, hilbert) not in self._paper_orders:
            if self._key_mask is not None and len(self._key_mask) > 1:
                raise ValueError(
                    "`key_mask` must be of one scene under the published layout, got "
                    f"{len(self._key_mask)} scenes."
                )
            self._paper_orders[device, hilbert] = PaperOrder.of(
                self._tokens,
                device,
                hilbert=hilbert,
                key_mask=None if self._key_mask is None else self._key_mask[0],
            )
        return self._paper_orders[device, hilbert]

    def _lay_out(self, order: BlockOrder, x: Tensor, name: str) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return order.lay_out(x)
        # All layers share the memory: fresh pages cost a CPU more than the copy itself.
        kept = self._workspace.get(name)
        shape = (*x.shape[:2], order.gather_index.shape[1], x.shape[3])
        if kept is None or kept.shape != shape or kept.dtype != x.dtype:
            kept = self._workspace[name] = x.new_empty(shape)
        return order.lay_out(x, out=kept)

    def _order_of(self, policy: BlockSparsePolicy, k: Tensor) -> BlockOrder:
        """Return a policy's order; the keys of the first layer that asks decide for all."""
        block_k = policy.block_k
        key = (k.device, policy.order, block_k)
        if key not in self._orders:
            patches = None
            if policy.order == "tiles":
                # Batch slots are scenes of their own, each with its own chain of frames.
                masks = [None] * len(k) if self._key_mask is None else self._key_mask
                patches = torch.stack(
                    [
                        tile_order(
                            self._tokens,
                            chain_frames(scene, self._tokens, mask, block_k=block_k),
                            block_k=block_k,
                        )
                        for scene, mask in zip(k, masks, strict=True)
                    ]
                )
            elif policy.order == "hilbert":
                curve = hilbert_order(self._tokens.grid_height, self._tokens.grid_width)
                frames = torch.arange(self._tokens.num_frames)[:, None] * self._tokens.num_patches
                patches = (frames + torch.tensor(curve)).reshape(1, -1)
            self._orders[key] = BlockOrder.of(self._tokens, k.device, patches, block_k=block_k)
        return self._orders[key]


def _mean(share: Share) -> float:
    """Return the mean over heads of what is said for all or for each."""
    return sum(share) / len(share) if isinstance(share, tuple) else share


def _checked_mask(key_mask: Tensor, tokens: TokenLayout) -> Tensor:
    """Return a mask of keys, or raise ``ValueError`` if it does not fit the layout."""
    check_tensor("key_mask", key_mask, ("B", tokens.num_tokens), is_floating=False)
    key_mask = key_mask.bool()
    if not bool(key_mask[:, tokens.special_ids(key_mask.device)].all()):
        raise ValueError("`key_mask` must be true for special tokens, got false for some.")
    if not bool(key_mask.any(-1).all()):
        raise ValueError("`key_mask` must leave at least one key in each scene, got none in some.")
    return key_mask


@dataclass(frozen=True)
class _Attended:
    """What a layer's attention gave, in the model's order, and how."""

    out: Tensor  # [B, H, N, D]
    density: float
    """Share of all (query, key) pairs that were computed."""
    backend: str
    pattern: Pattern | None = None
    """Which keys every query attends to; none for all."""


class _Timer:
    """Wall time on the CPU; on CUDA device time through events, which never stalls the device."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = [self._now()]
        self._selected_mark: int | None = None

    def selected(self) -> None:
        """Mark the end of block selection."""
        self._marks.append(self._now())
        self._selected_mark = len(self._marks) - 1

    def stop(self) -> None:
        """Mark the end."""
        self._marks.append(self._now())

    def total_ms(self) -> float:
        """Return the time from construction to the end."""
        return self._between(0, len(self._marks) - 1)

    def selection_ms(self) -> float:
        """Return the time from construction to the end of selection; 0 without one."""
        return 0.0 if self._selected_mark is None else self._between(0, self._selected_mark)

    def _now(self) -> float | torch.cuda.Event:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: int, end: int) -> float:
        first, last = self._marks[start], self._marks[end]
        if isinstance(first, float) and isinstance(last, float):
            return (last - first) * 1e3
        assert isinstance(first, torch.cuda.Event)
        assert isinstance(last, torch.cuda.Event)
        last.synchronize()
        return first.elapsed_time(last)
