# SPDX-License-Identifier: Apache-2.0
"""What all models do alike in a forward pass: plan it, encode the images in chunks, report.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels, ``T = S + P`` tokens of a frame,
special tokens first, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ReconstructionError
from ..stages import Progress, StageRecorder
from .compute import InferenceOptions, autocast, resolve_precision, spans
from .memory import MemoryPlan, RunShape, plan_memory


@dataclass(frozen=True, kw_only=True)
class ForwardRun:
    """Everything that stays the same during one forward pass."""

    device: torch.device
    dtype: torch.dtype | None
    """Autocast type, ``None`` for float32."""
    memory: MemoryPlan
    grid: tuple[int, int]
    """Rows and columns of patches."""
    recorder: StageRecorder
    patch_mask: Tensor | None = None  # [B, F, P] bool
    """False for patches that nobody attends to; all are attended to if not given."""

    @classmethod
    def begin(
        cls,
        shape: RunShape,
        grid: tuple[int, int],
        options: InferenceOptions,
        device: torch.device,
        progress: Progress | None,
        patch_mask: Tensor | None = None,  # [B, F, P] bool
    ) -> ForwardRun:
        """Choose precision and chunks.

        Raises:
            ReconstructionError: If the run cannot fit in memory.
        """
        dtype = resolve_precision(options.precision, device)
        return cls(
            device=device,
            dtype=dtype,
            memory=plan_memory(shape, options, device, dtype),
            grid=grid,
            recorder=StageRecorder(device, progress),
            patch_mask=None if patch_mask is None else patch_mask.to(device),
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which one block runs."""
        return autocast(self.device, self.dtype)

    def token_mask(self, num_special: int, *, is_special_last: bool = False) -> Tensor | None:
        """Return which tokens of every frame may be attended to, ``[B, F, T]``; none for all."""
        if self.patch_mask is None:
            return None
        special = self.patch_mask.new_ones(*self.patch_mask.shape[:2], num_special)
        parts = [special, self.patch_mask]
        return torch.cat(parts[::-1] if is_special_last else parts, dim=2)

    def mask_of(self, start: int, stop: int) -> Tensor | None:
        """Return the patch mask of a chunk of frames with scenes joined, ``[B * f, P]``."""
        return None if self.patch_mask is None else self.patch_mask[:, start:stop].flatten(0, 1)

    def encode(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        special: Tensor,  # [1, F, S, C]
        normalize: Callable[[Tensor], Tensor],
        encoder: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Return special and patch tokens before the first layer, ``[B, F, T, C]`` in float32.

        Args:
            images: The images, on any device.
            special: Special tokens of all frames; frames may be broadcast.
            normalize: Turns a chunk of images into what the encoder takes.
            encoder: Turns ``[f, 3, H, W]`` and the patch mask ``[f, P]``, if there is one, into
                patch tokens ``[f, P, C]``.
        """
        batch, num_frames = images.shape[:2]
        num_special = special.shape[2]
        num_patches = self.grid[0] * self.grid[1]
        x = special.new_empty(
            (batch, num_frames, num_special + num_patches, special.shape[-1]), dtype=torch.float32
        )
        x[:, :, :num_special] = special
        with self.recorder.stage("encoder", num_frames) as report, self.autocast():
            for start, stop in spans(num_frames, self.memory.frames_per_chunk):
                pixels = normalize(images[:, start:stop].to(self.device))
                patches = encoder(pixels.flatten(0, 1), self.mask_of(start, stop))
                x[:, start:stop, num_special:] = patches.unflatten(0, (batch, stop - start))
                report(stop)
        return x


@contextmanager
def explain_lack_of_memory(num_frames: int, device: torch.device) -> Iterator[None]:
    """Turn CUDA's error about memory into one that says what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ReconstructionError(
            f"{num_frames} frames did not fit into the memory of {device}. Use fewer "
            "photos, a smaller `long_side`, or set `memory_gib` below what is free."
        ) from error


def focal_notes(intrinsics: Tensor) -> tuple[str, ...]:
    """Say in how many frames of ``[F, 3, 3]`` the intrinsics are not finite, if in any."""
    num_bad = int((~torch.isfinite(intrinsics)).any(-1).any(-1).sum())
    if not num_bad:
        return ()
    return (f"{num_bad} of {len(intrinsics)} frames have no finite focal length.",)
