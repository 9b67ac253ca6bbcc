# SPDX-License-Identifier: Apache-2.0
"""VGGT: photos in, cameras and depth out, attention among frames by an attention plan.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels, ``gh x gw`` patches, ``T = S +
gh * gw`` tokens of a frame, ``C`` channels, ``I`` iterations of the camera head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..attention import AttentionPlan, AttentionRun, LayerStats, TokenLayout
from ..prediction import Prediction, StageRecord
from ..stages import Progress
from .aggregator import Aggregator, AggregatorOutput
from .camera_head import CameraHead
from .compute import InferenceOptions, full_precision, spans
from .dpt import DptHead
from .forward_run import ForwardRun, explain_lack_of_memory, focal_notes
from .images import check_images, check_masks, normalize_images
from .memory import RunShape
from .pose_encoding import activate_pose_encoding, decode_pose
from .rope import grid_positions, rope_table
from .vggt_config import VGGTConfig

Head = Literal["camera", "depth", "points"]


@dataclass(frozen=True, kw_only=True)
class VGGTOutput:
    """What the network computes; the fields of heads that were not asked for are ``None``."""

    pose_encodings: Tensor | None = None  # [I, B, F, 9]
    """Activated encoding after each iteration of the camera head."""
    cam_from_world: Tensor | None = None  # [B, F, 3, 4]
    """Poses of the last iteration."""
    intrinsics: Tensor | None = None  # [B, F, 3, 3]
    """Intrinsics of the last iteration, network pixels."""
    depth: Tensor | None = None  # [B, F, H, W]
    """z-depth, positive."""
    depth_confidence: Tensor | None = None  # [B, F, H, W]
    """At least one."""
    points_in_world: Tensor | None = None  # [B, F, H, W, 3]
    """Points of the point head, which are less accurate than depth and camera together."""
    points_confidence: Tensor | None = None  # [B, F, H, W]
    """At least one."""
    layers: dict[int, Tensor] = field(default_factory=dict)
    """Tokens after the layers that were asked for, ``[B, F, T, 2 C]``: frame block's output, then
    global block's."""
    attention: tuple[LayerStats, ...] = ()
    """What each global layer's attention did."""
    stages: tuple[StageRecord, ...] = ()
    """Time and peak memory of each stage."""


def activate_depth(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Turn raw values ``[F, 2, H, W]`` into depth and confidence, each ``[F, H, W]``."""
    return raw[:, 0].exp(), 1 + raw[:, 1].exp()


def activate_points(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Turn raw values ``[F, 4, H, W]`` into points ``[F, H, W, 3]`` and confidence."""
    xyz = raw[:, :3].movedim(1, -1)
    return xyz.sign() * xyz.abs().expm1(), 1 + raw[:, 3].exp()


class VGGT(nn.Module):
    """The network of VGGT-1B and of smaller models of the same kind.

    Parameter names are those of the published weights without the track head.
    """

    def __init__(self, config: VGGTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VGGTConfig()
        self.aggregator = Aggregator(
            vit=config.vit,
            depth=config.depth,
            num_heads=config.num_heads,
            num_registers=config.num_registers,
        )
        dim = 2 * config.embed_dim
        self.camera_head = CameraHead(
            dim=dim,
            num_heads=config.camera_heads,
            depth=config.camera_depth,
            num_iterations=config.camera_iterations,
        )
        make_dense = functools.partial(
            DptHead,
            dim=dim,
            num_features=config.dpt_features,
            widths=config.dpt_widths,
            patch_size=config.patch_size,
        )
        self.depth_head = make_dense(num_outputs=2)
        self.point_head = make_dense(num_outputs=4)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.aggregator.camera_token.device

    def forward(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        masks: Tensor | None = None,  # [B, F, H, W] bool
        plan: AttentionPlan | None = None,
        heads: Collection[Head] = ("camera", "depth"),
        keep_layers: Collection[int] = (),
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> VGGTOutput:
        """Run the network.

        With autograd on, all frames are processed at once; under ``torch.no_grad`` in chunks.

        Args:
            images: RGB, float in [0, 1] or uint8, ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``; both
                sides are multiples of the patch size. They may be on another device than the model.
            masks: True where a pixel may be used. Patches without such a pixel are attended to by
                none, in encoder, frame and global layers alike.
            plan: Attention of the global layers; dense if not given.
            heads: Heads to run.
            keep_layers: Layers whose tokens to return.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            The outputs, on the device of the model.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` do not fit, or a head or layer does not
                exist.
            ReconstructionError: If the run cannot fit in memory.
        """
        unknown = set(heads) - {"camera", "depth", "points"}
        if unknown:
            raise ValueError(f"`heads` must be of camera, depth and points, got {sorted(unknown)}.")
        if any(not 0 <= layer < self.config.depth for layer in keep_layers):
            raise ValueError(
                f"`keep_layers` must lie in [0, {self.config.depth}), got {sorted(keep_layers)}."
            )
        images = check_images(images, self.config.patch_size)
        patches = check_masks(masks, images, self.config.patch_size)
        run = self._begin(images, heads, options or InferenceOptions(), progress, patches)
        taps = {*keep_layers, *(self.config.taps if {"depth", "points"} & set(heads) else ())}
        aggregated, attention = self._aggregate(images, plan or AttentionPlan.dense(), taps, run)

        outputs: dict[str, Tensor] = {}
        with full_precision(run.device):
            if "camera" in heads:
                outputs |= self._decode_cameras(aggregated.last_special[:, :, 0], run)
            if "depth" in heads:
                outputs["depth"], outputs["depth_confidence"] = self._decode_dense(
                    "depth", self.depth_head, activate_depth, aggregated, run
                )
            if "points" in heads:
                outputs["points_in_world"], outputs["points_confidence"] = self._decode_dense(
                    "points", self.point_head, activate_points, aggregated, run
                )
        return VGGTOutput(
            **outputs,
            layers={layer: aggregated.taps[layer] for layer in keep_layers},
            attention=attention,
            stages=run.recorder.records,
        )

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,  # [F, 3, H, W]
        *,
        masks: Tensor | None = None,  # [F, H, W] bool
        plan: AttentionPlan | None = None,
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict cameras and depth of one scene, without gradients and without the point head.

        Args:
            images: RGB, uint8 or float in [0, 1], ``[F, 3, H, W]``. The first frame is the
                reference.
            masks: True where a pixel may be used, as in `forward`.
            plan: Attention of the global layers; dense if not given.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            Cameras, depth and confidence, float32 on the CPU.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` do not fit.
            ReconstructionError: If the run does not fit in memory.
        """
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(f"`images` must have shape [F, 3, H, W], got {list(images.shape)}.")
        with explain_lack_of_memory(len(images), self.device):
            output = self(images, masks=masks, plan=plan, options=options, progress=progress)
        tensors = {
            "cam_from_world": output.cam_from_world,
            "intrinsics": output.intrinsics,
            "depth": output.depth,
            "confidence": output.depth_confidence,
        }
        fields = {
            name: value[0].float().cpu() for name, value in tensors.items() if value is not None
        }
        return Prediction(
            **fields,
            attention=output.attention,
            stages=output.stages,
            notes=focal_notes(fields["intrinsics"]),
        )

    def encode(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        options: InferenceOptions | None = None,
    ) -> Tensor:
        """Return the encoder's patch tokens, ``[B, F, gh * gw, C]``; images as in `forward`."""
        images = check_images(images, self.config.patch_size)
        run = self._begin(images, (), options or InferenceOptions(), None)
        return self._encode(images, run)[:, :, self.config.num_special :]

    def _begin(
        self,
        images: Tensor,
        heads: Collection[Head],
        options: InferenceOptions,
        progress: Progress | None,
        patch_mask: Tensor | None = None,
    ) -> ForwardRun:
        config = self.config
        batch, num_frames, _, height, width = images.shape
        grid = (height // config.patch_size, width // config.patch_size)
        has_dense = bool({"depth", "points"} & set(heads))
        shape = RunShape(
            num_frames=batch * num_frames,
            num_tokens=config.num_special + grid[0] * grid[1],
            dim=config.embed_dim,
            num_pixels=height * width,
            head_features=config.dpt_features if has_dense else 0,
            num_taps=len(config.taps) if has_dense else 0,
        )
        return ForwardRun.begin(shape, grid, options, self.device, progress, patch_mask)

    def _aggregate(
        self, images: Tensor, plan: AttentionPlan, taps: Collection[int], run: ForwardRun
    ) -> tuple[AggregatorOutput, tuple[LayerStats, ...]]:
        config, num_frames = self.config, images.shape[1]
        token_mask = run.token_mask(config.num_special)
        attention = AttentionRun(
            plan,
            TokenLayout(
                num_frames=num_frames,
                num_special=config.num_special,
                grid_height=run.grid[0],
                grid_width=run.grid[1],
            ),
            config.depth,
            key_mask=None if token_mask is None else token_mask.flatten(1),
        )
        rope = rope_table(
            grid_positions(*run.grid, config.num_special, device=run.device),
            config.embed_dim // config.num_heads,
        )
        x = self._encode(images, run)
        with run.recorder.stage("attention", config.depth) as report:
            aggregated = self.aggregator(
                x,
                attention,
                rope,
                taps=taps,
                key_mask=token_mask,
                tap_dtype=run.memory.tap_dtype,
                frames_per_chunk=run.memory.frames_per_chunk,
                autocast=run.autocast,
                report=report,
            )
        return aggregated, tuple(attention.stats)

    def _encode(self, images: Tensor, run: ForwardRun) -> Tensor:
        """Return special and patch tokens before the first layer, ``[B, F, T, C]`` in float32."""
        special = self.aggregator.special_tokens(images.shape[1])
        return run.encode(images, special, normalize_images, self.aggregator.patch_embed)

    def _decode_cameras(self, camera_tokens: Tensor, run: ForwardRun) -> dict[str, Tensor]:
        height, width = (side * self.config.patch_size for side in run.grid)
        with run.recorder.stage("camera", 1) as report:
            encodings = activate_pose_encoding(self.camera_head(camera_tokens))
            cam_from_world, intrinsics = decode_pose(encodings[-1], height, width)
            report(1)
        return {
            "pose_encodings": encodings,
            "cam_from_world": cam_from_world,
            "intrinsics": intrinsics,
        }

    def _decode_dense(
        self,
        stage: str,
        head: DptHead,
        activate: Callable[[Tensor], tuple[Tensor, Tensor]],
        aggregated: AggregatorOutput,
        run: ForwardRun,
    ) -> tuple[Tensor, Tensor]:
        taps = [aggregated.taps[layer] for layer in self.config.taps]
        batch, num_frames = taps[0].shape[:2]
        patches = [tap.flatten(0, 1)[:, self.config.num_special :] for tap in taps]
        values, confidences = [], []
        with run.recorder.stage(stage, num_frames) as report:
            for start, stop in spans(batch * num_frames, run.memory.head_frames_per_chunk):
                raw = head([tap[start:stop] for tap in patches], run.grid)
                value, confidence = activate(raw)
                values.append(value)
                confidences.append(confidence)
                report(stop // batch)
        shape = (batch, num_frames)
        return torch.cat(values).unflatten(0, shape), torch.cat(confidences).unflatten(0, shape)
