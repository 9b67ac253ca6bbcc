# SPDX-License-Identifier: Apache-2.0
"""Pi3X: Pi3 with convolutional heads, in metres, that can be told rays, depth and poses.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels, ``gh x gw`` patches, ``T = S +
gh * gw`` tokens of a frame, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ..attention import AttentionPlan
from ..prediction import Prediction, ScaleKind
from ..stages import Progress
from .compute import InferenceOptions, full_precision, spans
from .forward_run import ForwardRun
from .images import check_images, check_masks
from .pi3 import Pi3Base, Pi3Output
from .pi3_conditions import Pi3XConditions, ScaledConditions
from .pi3_config import Pi3XConfig
from .pi3_conv_head import ConvHead
from .pi3_heads import points_from_raw
from .pi3_metric import MetricDecoder
from .pi3_pose_injection import PoseInjection, RelativePoses
from .priors import FramePrior
from .vit import PatchProjection, VisionTransformer

_MAX_LOG_DEPTH = 15.0


class Pi3X(Pi3Base):
    """The network of Pi3X and of smaller ones of the same kind.

    What it is told needs parts that the weights may lack; see `Pi3XConfig.has_conditions`.
    """

    scale: ScaleKind = "metric"

    def __init__(self, config: Pi3XConfig | None = None) -> None:
        config = config or Pi3XConfig()
        super().__init__(config)
        dim = config.embed_dim
        make_head = functools.partial(
            ConvHead,
            dim=config.head_dim,
            widths=config.upsample_widths,
            last_width=config.last_width,
            patch_size=config.patch_size,
        )
        self.point_head = make_head(num_outputs=(2, 1))
        self.conf_head = make_head(num_outputs=(1,))
        self.metric_token = nn.Parameter(torch.zeros(1, 1, 2 * dim))
        self.metric_decoder = MetricDecoder(
            dim_in=2 * dim,
            dim=config.metric_dim,
            num_heads=config.metric_heads,
            depth=config.metric_depth,
        )
        self.metric_head = nn.Linear(config.metric_dim, 1)
        self.inject_layers = config.inject_layers
        self.has_conditions = config.has_conditions
        self._head_features = config.upsample_widths[-1]
        self._metric_head_size = config.metric_dim // config.metric_heads
        if config.has_conditions:
            self.depth_encoder = VisionTransformer(config.depth_vit)
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
            self.ray_embed = PatchProjection(num_channels=2, dim=dim, patch_size=config.patch_size)
            self.pose_inject_blk = nn.ModuleList(
                PoseInjection(config.decoder_block) for _ in config.inject_layers
            )

    def forward(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        conditions: Pi3XConditions | None = None,
        masks: Tensor | None = None,  # [B, F, H, W] bool
        plan: AttentionPlan | None = None,
        keep_layers: Collection[int] = (),
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> Pi3Output:
        """Run the network; gradients are recorded if autograd is on.

        Args:
            images: RGB, uint8 or float in [0, 1], ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``, sides
                multiples of the patch size.
            conditions: What is known about the frames.
            masks: True where a pixel may be used. Patches without such a pixel are attended to by
                none, wherever there is attention.
            plan: Attention of the global layers; dense if not given. The few layers by which poses
                are told are always dense.
            keep_layers: Blocks whose tokens to return, before a pose is told to them.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            The outputs, on the device of the model; points and positions in metres.

        Raises:
            TypeError: If ``images`` or a condition is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` or of conditions do not fit, a layer does
                not exist, or the weights lack what conditions need.
            ReconstructionError: If the run cannot fit in memory.
        """
        self._check_layers(keep_layers)
        images = check_images(images, self.config.patch_size)
        batch, num_frames, _, height, width = images.shape
        if conditions is not None:
            if not self.has_conditions:
                raise ValueError(
                    "`conditions` cannot be told to this Pi3X: its weights lack the parts for "
                    "rays, depth and poses."
                )
            conditions.check(batch, num_frames, height, width)
        told = ScaledConditions.of(conditions or Pi3XConditions(), batch, num_frames, self.device)
        run = self._begin(
            images,
            options or InferenceOptions(),
            progress,
            head_features=self._head_features,
            patch_mask=check_masks(masks, images, self.config.patch_size),
        )
        x = self._encode(images, run)
        if bool((told.has_depth | told.has_rays).any()):
            x = self._tell_rays_and_depth(x, told, run)
        tokens, kept, stats = self._decode(
            x, plan or AttentionPlan.dense(), keep_layers, run, self._pose_teller(told, run)
        )

        def points(patches: Tensor, _: Tensor | None) -> Tensor:
            xy, log_depth = self.point_head(patches, run.grid)
            return points_from_raw(xy, log_depth, _MAX_LOG_DEPTH)

        def confidence(patches: Tensor, _: Tensor | None) -> Tensor:
            return self.conf_head(patches, run.grid)[0][:, 0]

        local_points = self._run_head("points", self.point_decoder, points, tokens, run)
        logits = self._run_head("confidence", self.conf_decoder, confidence, tokens, run)
        poses = self._run_head("camera", self.camera_decoder, self.camera_head, tokens, run)
        metric = self._decode_scale(tokens, run)
        return Pi3Output(
            local_points=local_points * metric[:, None, None, None, None],
            confidence_logits=logits,
            world_from_cam=torch.cat(
                [poses[..., :3], poses[..., 3:] * metric[:, None, None, None]], dim=-1
            ),
            metric_scale=metric,
            layers=kept,
            attention=stats,
            stages=run.recorder.records,
        )

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,  # [F, 3, H, W]
        *,
        priors: Sequence[FramePrior | None] | None = None,
        masks: Tensor | None = None,  # [F, H, W] bool
        plan: AttentionPlan | None = None,
        camera_ids: Sequence[int] | None = None,
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict cameras and depth of one scene, without gradients.

        Args:
            images: RGB, uint8 or float in [0, 1], ``[F, 3, H, W]``.
            priors: What is known about each frame, ``None`` for frames without. The network uses it
                as advice, and never sees its scale, because depth and distances are divided by
                their means: the result has a world and a scale of its own.
            masks: True where a pixel may be used, as in `forward`.
            plan: Attention of the global layers; dense if not given.
            camera_ids: One number per frame; frames of one number share their intrinsics. Each
                frame has its own if not given.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            Cameras, depth and confidence, float32 on the CPU, meant to be in metres. Intrinsics are
            fitted to the predicted points.

        Raises:
            TypeError: If ``images`` or a prior is no tensor of a usable dtype.
            ValueError: If ``images``, ``priors`` or ``camera_ids`` do not fit; the message names
                the frame of a prior.
            ReconstructionError: If the run does not fit in memory.
        """
        notes: list[str] = []

        def run() -> Pi3Output:
            conditions = None
            if priors is not None and any(prior is not None for prior in priors):
                num_frames, _, height, width = check_images(images, self.config.patch_size)[0].shape
                conditions = Pi3XConditions.from_priors(priors, num_frames, height, width)
                if conditions.has_pose is not None and int(conditions.has_pose.sum()) == 1:
                    notes.append(
                        "Only one frame came with a pose, which says nothing without a second one, "
                        "so it was not used."
                    )
            return self(
                images,
                conditions=conditions,
                masks=masks,
                plan=plan,
                options=options,
                progress=progress,
            )

        prediction = self._predict(images, run, camera_ids)
        return prediction if not notes else replace(prediction, notes=(*notes, *prediction.notes))

    def _tell_rays_and_depth(self, x: Tensor, told: ScaledConditions, run: ForwardRun) -> Tensor:
        """Add what is known to the patch tokens of the frames that it is known of."""
        num_special = self.config.num_registers
        with run.recorder.stage("priors", None), run.autocast():
            for scene, frames in self._chunks_of(told.has_rays, run):
                assert told.ray_slopes is not None
                slopes = told.ray_slopes[scene, frames].movedim(-1, 1)  # [f, 2, H, W]
                x[scene, frames, num_special:] += self.ray_embed(slopes)
            for scene, frames in self._chunks_of(told.has_depth, run):
                assert told.depth is not None
                depth = told.depth[scene, frames]
                channels = torch.stack([depth, (depth > 0).to(depth)], dim=1)
                x[scene, frames, num_special:] += self.depth_encoder(channels) + self.depth_emb
        return x

    def _pose_teller(
        self, told: ScaledConditions, run: ForwardRun
    ) -> Callable[[int, Tensor], Tensor]:
        """Return what tells poses after a block: a function of its index and the tokens."""
        if told.cam_from_world is None:
            return lambda index, x: x
        head_size = self.config.decoder_block.head_size
        scenes = []
        for scene, has_pose in enumerate(told.has_pose):
            frames = has_pose.nonzero()[:, 0]
            if len(frames):
                poses = RelativePoses.of(told.cam_from_world[scene, frames], run.grid, head_size)
                scenes.append((scene, frames, poses))

        def tell(index: int, x: Tensor) -> Tensor:
            if index not in self.inject_layers:
                return x
            block = cast(PoseInjection, self.pose_inject_blk[self.inject_layers.index(index)])
            num_special = self.config.num_registers
            for scene, frames, poses in scenes:
                patches = x[scene, frames, num_special:]
                mask = None if run.patch_mask is None else run.patch_mask[scene, frames]
                with run.autocast():
                    change = block.inject(patches, poses, run.memory.frames_per_chunk, mask)
                x = x.clone() if torch.is_grad_enabled() else x
                x[scene, frames, num_special:] = patches + change
            return x

        return tell

    def _chunks_of(self, is_told: Tensor, run: ForwardRun) -> list[tuple[Tensor, Tensor]]:
        """Return scene and frame numbers of the frames that something is told of, in chunks."""
        scenes, frames = is_told.nonzero(as_tuple=True)
        size = run.memory.frames_per_chunk
        return [(scenes[a:b], frames[a:b]) for a, b in spans(len(scenes), size)]

    def _decode_scale(self, tokens: Tensor, run: ForwardRun) -> Tensor:
        """Return metres per unit of each scene, ``[B]``."""
        rope = self._rope(run, self._metric_head_size)
        token = self.metric_token.expand(len(tokens), -1, -1)
        with run.recorder.stage("scale", 1) as report, run.autocast():
            mask = run.token_mask(self.config.num_registers)
            gathered = self.metric_decoder(token, tokens.float(), rope, mask)
            with full_precision(run.device):
                scale = self.metric_head(gathered.float())[:, 0, 0].exp()
            report(1)
        return scale
