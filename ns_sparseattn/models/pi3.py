# SPDX-License-Identifier: Apache-2.0
"""Pi3 and Pi3X: photos in any order in, cameras and depth out, by an attention plan.

No frame is a reference: permuting the frames permutes the result.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels, ``gh x gw`` patches, ``T = S +
gh * gw`` tokens of a frame, ``C`` channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionPlan, AttentionRun, LayerStats, TokenLayout
from ..geometry import invert_rigid, transform_points
from ..prediction import Prediction, ScaleKind, StageRecord
from ..stages import Progress
from .aggregator import run_frame_block, run_global_block
from .block import Block
from .compute import InferenceOptions, full_precision, spans
from .forward_run import ForwardRun, explain_lack_of_memory, focal_notes
from .images import IMAGENET_MEAN, IMAGENET_STD, check_images, check_masks, normalize_images
from .memory import RunShape
from .pi3_config import Pi3Config
from .pi3_heads import HeadDecoder, LinearHead, PoseHead, points_from_raw
from .ray_intrinsics import fit_intrinsics
from .rope import RopeTable, grid_positions, rope_table
from .vit import VisionTransformer

# Points and confidence of every pixel.
_NUM_MAPS = 4


@dataclass(frozen=True, kw_only=True)
class Pi3Output:
    """What the network computes."""

    local_points: Tensor  # [B, F, H, W, 3]
    """Points in the camera of their frame."""
    confidence_logits: Tensor  # [B, F, H, W]
    """Larger is better; a sigmoid makes a probability of it."""
    world_from_cam: Tensor  # [B, F, 3, 4]
    """Poses in a world of no special frame."""
    metric_scale: Tensor | None = None  # [B]
    """Factor that points and positions were multiplied by to be in metres; Pi3X alone has it."""
    layers: dict[int, Tensor] = field(default_factory=dict)
    """Tokens after the blocks that were asked for, ``[B, F, T, C]``."""
    attention: tuple[LayerStats, ...] = ()
    """What each global layer's attention did."""
    stages: tuple[StageRecord, ...] = ()
    """Time and peak memory of each stage."""

    @property
    def points_in_world(self) -> Tensor:
        """Points in the world, ``[B, F, H, W, 3]``."""
        return transform_points(self.world_from_cam[:, :, None, None], self.local_points)

    @property
    def rays(self) -> Tensor:
        """Unit direction of every pixel in its camera, ``[B, F, H, W, 3]``."""
        return F.normalize(self.local_points, dim=-1)


class Pi3Base(nn.Module):
    """What Pi3 and Pi3X have in common: all but their dense heads and what Pi3X adds.

    Parameter names are those of the published weights.
    """

    scale: ScaleKind = "relative"

    # Buffers, which pyright takes for modules otherwise.
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3Config) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.encoder = VisionTransformer(config.vit)
        self.decoder = nn.ModuleList(Block(config.decoder_block) for _ in range(config.depth))
        self.register_token = nn.Parameter(torch.zeros(1, 1, config.num_registers, dim))
        make_decoder = functools.partial(
            HeadDecoder, dim_in=2 * dim, depth=config.head_depth, block=config.head_block
        )
        self.point_decoder = make_decoder(dim_out=config.head_dim)
        self.conf_decoder = make_decoder(dim_out=config.head_dim)
        self.camera_decoder = make_decoder(dim_out=config.camera_dim)
        self.camera_head = PoseHead(config.camera_dim)
        # Constants, so they have values even while weights are made on the meta device.
        for name, values in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.register_token.device

    def encode(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        options: InferenceOptions | None = None,
    ) -> Tensor:
        """Return the encoder's patch tokens, ``[B, F, gh * gw, C]``; images as in `forward`."""
        images = check_images(images, self.config.patch_size)
        run = self._begin(images, options or InferenceOptions(), None, head_features=0)
        return self._encode(images, run)[:, :, self.config.num_registers :]

    def _begin(
        self,
        images: Tensor,
        options: InferenceOptions,
        progress: Progress | None,
        *,
        head_features: int,
        patch_mask: Tensor | None = None,
    ) -> ForwardRun:
        config = self.config
        batch, num_frames, _, height, width = images.shape
        grid = (height // config.patch_size, width // config.patch_size)
        shape = RunShape(
            num_frames=batch * num_frames,
            num_tokens=config.num_registers + grid[0] * grid[1],
            dim=config.embed_dim,
            num_pixels=height * width,
            head_features=head_features,
            num_taps=1,
            num_maps=_NUM_MAPS,
        )
        return ForwardRun.begin(shape, grid, options, self.device, progress, patch_mask)

    def _encode(self, images: Tensor, run: ForwardRun) -> Tensor:
        """Return register and patch tokens before the first block, ``[B, F, T, C]`` in float32."""
        normalize = functools.partial(normalize_images, mean=self.image_mean, std=self.image_std)
        return run.encode(images, self.register_token, normalize, self.encoder)

    def _rope(self, run: ForwardRun, head_size: int) -> RopeTable:
        # Published runs round angles to the type of the queries before they take the cosine.
        dtype = run.dtype or torch.float32
        positions = grid_positions(*run.grid, self.config.num_registers, device=run.device)
        return rope_table(positions, head_size, dtype=dtype)

    def _decode(
        self,
        x: Tensor,  # [B, F, T, C]
        plan: AttentionPlan,
        keep_layers: Collection[int],
        run: ForwardRun,
        after_block: Callable[[int, Tensor], Tensor],
    ) -> tuple[Tensor, dict[int, Tensor], tuple[LayerStats, ...]]:
        """Run all blocks.

        Args:
            x: Register and patch tokens. Overwritten when autograd is off.
            plan: Attention of the global layers.
            keep_layers: Blocks whose tokens to return.
            run: Precision, chunks, memory.
            after_block: Called as ``after_block(index, x)``; returns the tokens to go on with.

        Returns:
            Tokens of the last frame block, then of the last global block, ``[B, F, T, 2 C]``;
            tokens of the blocks to keep; what the attention did.
        """
        config = self.config
        layout = TokenLayout(
            num_frames=x.shape[1],
            num_special=config.num_registers,
            grid_height=run.grid[0],
            grid_width=run.grid[1],
        )
        token_mask = run.token_mask(config.num_registers)
        attention = AttentionRun(
            plan,
            layout,
            config.num_global_layers,
            key_mask=None if token_mask is None else token_mask.flatten(1),
        )
        rope = self._rope(run, config.decoder_block.head_size)
        kept: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        with run.recorder.stage("attention", config.depth) as report:
            for index, block in enumerate(self.decoder):
                assert isinstance(block, Block)
                with run.autocast():
                    if index % 2 == 0:
                        x = run_frame_block(block, x, rope, run.memory.frames_per_chunk, token_mask)
                    else:
                        attend = functools.partial(attention.attend, index // 2)
                        x = run_global_block(block, x, rope, run.memory.frames_per_chunk, attend)
                if index in keep_layers:
                    kept[index] = x.clone()
                x = after_block(index, x)
                if index >= config.depth - 2:
                    # The last global block overwrites its input.
                    outputs.append(x.to(run.memory.tap_dtype, copy=True))
                report(index + 1)
        return torch.cat(outputs, dim=-1), kept, attention.stats

    def _run_head(
        self,
        stage: str,
        decoder: HeadDecoder,
        head: Callable[[Tensor, Tensor | None], Tensor],
        tokens: Tensor,  # [B, F, T, 2 C]
        run: ForwardRun,
    ) -> Tensor:
        """Run one head over chunks of frames, its decoder in the precision of the run.

        Args:
            stage: Name for the record.
            decoder: The head's own blocks.
            head: Turns patch tokens ``[f, P, C]``, and the mask ``[f, P]`` of those that count,
                into values of ``f`` frames, in float32.
            tokens: Tokens of the main decoder.
            run: Precision, chunks, memory.

        Returns:
            The head's values, ``[B, F, ...]``.
        """
        batch, num_frames = tokens.shape[:2]
        rope = self._rope(run, self.config.head_block.head_size)
        frames = tokens.flatten(0, 1)
        token_mask = run.token_mask(self.config.num_registers)
        masks = None if token_mask is None else token_mask.flatten(0, 1)
        num_special = self.config.num_registers
        values = []
        with run.recorder.stage(stage, num_frames) as report, run.autocast():
            for start, stop in spans(len(frames), run.memory.head_frames_per_chunk):
                mask = None if masks is None else masks[start:stop]
                decoded = decoder(frames[start:stop].float(), rope, mask)
                of_patches = None if mask is None else mask[:, num_special:]
                with full_precision(run.device):
                    values.append(head(decoded[:, num_special:].float(), of_patches))
                report(stop // batch)
        return torch.cat(values).unflatten(0, (batch, num_frames))

    def _predict(
        self,
        images: Tensor,
        forward: Callable[[], Pi3Output],
        camera_ids: Sequence[int] | None,
        notes: tuple[str, ...] = (),
    ) -> Prediction:
        """Run a forward pass over one scene and bring its output into the common schema."""
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(f"`images` must have shape [F, 3, H, W], got {list(images.shape)}.")
        with explain_lack_of_memory(len(images), self.device):
            output = forward()
        points = output.local_points[0].float().cpu()
        confidence = output.confidence_logits[0].float().cpu().sigmoid()
        intrinsics = fit_intrinsics(points, confidence, camera_ids=camera_ids)
        return Prediction(
            cam_from_world=invert_rigid(output.world_from_cam[0].float().cpu()),
            intrinsics=intrinsics,
            depth=points[..., 2].contiguous(),
            confidence=confidence,
            scale=self.scale,
            attention=output.attention,
            stages=output.stages,
            notes=(*notes, *focal_notes(intrinsics)),
        )

    def _check_layers(self, keep_layers: Collection[int]) -> None:
        if any(not 0 <= layer < self.config.depth for layer in keep_layers):
            raise ValueError(
                f"`keep_layers` must lie in [0, {self.config.depth}), got {sorted(keep_layers)}."
            )


class Pi3(Pi3Base):
    """The network of Pi3 and of smaller ones of the same kind."""

    def __init__(self, config: Pi3Config | None = None) -> None:
        config = config or Pi3Config()
        super().__init__(config)
        make_head = functools.partial(LinearHead, dim=config.head_dim, patch_size=config.patch_size)
        self.point_head = make_head(num_outputs=3)
        self.conf_head = make_head(num_outputs=1)

    def forward(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
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
            masks: True where a pixel may be used. Patches without such a pixel are attended to by
                none, in encoder, frame and global layers and heads alike.
            plan: Attention of the global layers; dense if not given.
            keep_layers: Blocks whose tokens to return.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            The outputs, on the device of the model.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` do not fit, or a layer does not exist.
            ReconstructionError: If the run cannot fit in memory.
        """
        self._check_layers(keep_layers)
        images = check_images(images, self.config.patch_size)
        run = self._begin(
            images,
            options or InferenceOptions(),
            progress,
            head_features=0,
            patch_mask=check_masks(masks, images, self.config.patch_size),
        )
        tokens, kept, stats = self._decode(
            self._encode(images, run),
            plan or AttentionPlan.dense(),
            keep_layers,
            run,
            lambda index, x: x,
        )

        def points(patches: Tensor, _: Tensor | None) -> Tensor:
            raw = self.point_head(patches, run.grid)
            return points_from_raw(raw[:, :2], raw[:, 2:])

        def confidence(patches: Tensor, _: Tensor | None) -> Tensor:
            return self.conf_head(patches, run.grid)[:, 0]

        return Pi3Output(
            local_points=self._run_head("points", self.point_decoder, points, tokens, run),
            confidence_logits=self._run_head(
                "confidence", self.conf_decoder, confidence, tokens, run
            ),
            world_from_cam=self._run_head(
                "camera", self.camera_decoder, self.camera_head, tokens, run
            ),
            layers=kept,
            attention=stats,
            stages=run.recorder.records,
        )

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,  # [F, 3, H, W]
        *,
        masks: Tensor | None = None,  # [F, H, W] bool
        plan: AttentionPlan | None = None,
        camera_ids: Sequence[int] | None = None,
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict cameras and depth of one scene, without gradients.

        Args:
            images: RGB, uint8 or float in [0, 1], ``[F, 3, H, W]``.
            masks: True where a pixel may be used, as in `forward`.
            plan: Attention of the global layers; dense if not given.
            camera_ids: One number per frame; frames of one number share their intrinsics. Each
                frame has its own if not given.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            Cameras, depth and confidence, float32 on the CPU, in a scale of their own. Intrinsics
            are fitted to the predicted points.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` or ``camera_ids`` do not fit.
            ReconstructionError: If the run does not fit in memory.
        """
        return self._predict(
            images,
            lambda: self(images, masks=masks, plan=plan, options=options, progress=progress),
            camera_ids,
        )
