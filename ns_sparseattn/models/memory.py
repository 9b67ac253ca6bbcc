# SPDX-License-Identifier: Apache-2.0
"""What a run will need in memory, what is free, and the chunk sizes that follow.

Axes: ``B`` scenes, ``F`` frames, ``T`` tokens of a frame, ``C`` channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..errors import ReconstructionError
from .compute import InferenceOptions

_BYTES_PER_GIB = 2**30
# Enough frames to spread what a chunk costs in itself (weights cast and packed again). Chosen, not
# tuned: no larger size was timed on an idle machine.
_MOST_FRAMES = {"cuda": 32, "cpu": 8}
_MOST_HEAD_FRAMES = {"cuda": 8, "cpu": 2}
# Share of the free memory that a run plans with; the rest covers fragmentation and what estimates
# miss.
_USABLE_SHARE = 0.85
# Live float32 values per token and channel inside a block: norm, q, k, v, hidden layer of the MLP
# twice, sums.
_BLOCK_VALUES = 20
# Copies of q, k, v and the result that attention may hold while it reorders tokens.
_ATTENTION_COPIES = 8
# Live float32 values per pixel inside a dense head: multiples of the feature width, and the narrow
# last layers.
_HEAD_VALUES_PER_FEATURE = 4
_HEAD_VALUES = 100


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """Sizes that decide how much memory a run takes."""

    num_frames: int
    """Frames of all scenes."""
    num_tokens: int
    """Tokens of a frame."""
    dim: int
    """Channels of a token."""
    num_pixels: int
    """Network pixels of a frame."""
    head_features: int
    """Channels of the widest map of a dense head at about the size of the image, 0 if there is
    none."""
    num_taps: int
    """Layers whose tokens, of twice the channels, are kept for heads."""
    num_maps: int = 2
    """Output values per pixel: depth and confidence, or more."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Chunk sizes of a run, and the type in which it keeps tokens for the heads."""

    frames_per_chunk: int
    head_frames_per_chunk: int
    tap_dtype: torch.dtype


def plan_memory(
    shape: RunShape,
    options: InferenceOptions,
    device: torch.device,
    compute_dtype: torch.dtype | None,
) -> MemoryPlan:
    """Choose chunk sizes for a run.

    Args:
        shape: Sizes of the run.
        options: What the user fixed.
        device: Where the model is.
        compute_dtype: Autocast type, ``None`` for float32.

    Returns:
        The plan.

    Raises:
        ReconstructionError: If the tokens of all frames cannot fit, however small the chunks.
    """
    free = options.memory_gib
    if free is None:
        free = _USABLE_SHARE * free_memory_gib(device)
    token_values = shape.num_frames * shape.num_tokens * shape.dim / _BYTES_PER_GIB
    compute_bytes = 4 if compute_dtype is None else compute_dtype.itemsize
    # The residual stream stays float32, and so do the outputs, which are there twice while chunks
    # are joined.
    map_values = 2 * shape.num_maps * shape.num_frames * shape.num_pixels / _BYTES_PER_GIB
    stream = 4 * (token_values + map_values)
    attention = _ATTENTION_COPIES * compute_bytes * token_values
    tap_values = 2 * shape.num_taps * token_values

    tap_dtype = torch.float32
    is_large = 4 * tap_values > free / 4
    if options.tap_dtype == "bf16" or (
        options.tap_dtype == "auto" and compute_dtype is not None and is_large
    ):
        tap_dtype = torch.bfloat16
    lasting = stream + tap_dtype.itemsize * tap_values

    block_frame = 4 * _BLOCK_VALUES * shape.num_tokens * shape.dim / _BYTES_PER_GIB
    head_values = _HEAD_VALUES_PER_FEATURE * shape.head_features + _HEAD_VALUES
    head_frame = 4 * head_values * shape.num_pixels / _BYTES_PER_GIB
    needed = lasting + max(attention + block_frame, head_frame)
    if needed > free:
        raise ReconstructionError(
            f"{shape.num_frames} frames of {shape.num_tokens} tokens need about {needed:.1f} GiB "
            f"beside the weights, but {free:.1f} GiB can be used on {device}. Use fewer photos or "
            "a smaller `long_side`."
        )
    return MemoryPlan(
        frames_per_chunk=options.frames_per_chunk
        or _chunk_size(free - lasting - attention, block_frame, _MOST_FRAMES.get(device.type, 8)),
        head_frames_per_chunk=options.head_frames_per_chunk
        or _chunk_size(free - lasting, head_frame, _MOST_HEAD_FRAMES.get(device.type, 2)),
        tap_dtype=tap_dtype,
    )


def free_memory_gib(device: torch.device) -> float:
    """Return the memory that a run on ``device`` can still take, in GiB.

    On CUDA this counts what the allocator holds without using it. On the CPU it is the smaller of
    what the system and the process's control group have left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + cached) / _BYTES_PER_GIB
    return min(psutil.virtual_memory().available, _cgroup_free_bytes()) / _BYTES_PER_GIB


def _chunk_size(budget_gib: float, gib_per_frame: float, most: int) -> int:
    return max(1, min(most, int(budget_gib / gib_per_frame)))


def _cgroup_free_bytes() -> float:
    # The limit of a container is that of its own root group, which is what it sees mounted here.
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        stats = (root / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return float("inf")
    if limit == "max":
        return float("inf")
    # Cached file pages are given up under pressure; memory-mapped weights are such pages.
    reclaimable = sum(int(line.split()[1]) for line in stats if line.startswith("inactive_file "))
    return float(int(limit) - used + reclaimable)
