# SPDX-License-Identifier: Apache-2.0
"""MapAnything: photos, and whatever is known of them, in; metric cameras and depth out.

The first frame is the reference: poses that are told are taken relative to it, and the world that
comes out is about its camera.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` network pixels, ``gh x gw`` patches, ``T = P + S``
tokens of a frame, patches first, ``E`` channels of the encoder, ``C`` of the transformer.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionPlan, AttentionRun, LayerStats, TokenLayout
from ..geometry import invert_rigid
from ..prediction import Prediction, StageRecord
from ..stages import Progress
from .block import LayerNorm
from .compute import InferenceOptions, full_precision, spans
from .forward_run import ForwardRun, explain_lack_of_memory, focal_notes
from .images import check_images, check_masks, normalize_images
from .mapanything_config import (
    BLOCK_NORM_EPS,
    POSE_WIDTH_PER_PATCH_PIXEL,
    MapAnythingConfig,
)
from .mapanything_encoders import MapEncoder, VectorEncoder
from .mapanything_geometry import GeometryInputs, prepare_geometry, rotation_from_xyzw
from .mapanything_heads import DenseFeatures, DenseRegressor, PoseHead, ScaleHead
from .mapanything_transformer import MultiViewTransformer, TransformerOutput
from .memory import RunShape
from .priors import FramePrior, check_priors
from .ray_intrinsics import IntrinsicsFit, fit_intrinsics
from .vit import VisionTransformer

# Lower bound of ray lengths before they are normalised, and of the scale; the published value.
_SMALLEST = 1e-8
# z-depth, confidence, surface.
_NUM_MAPS = 3
# Rays and depth along them.
_NUM_RAY_MAPS = 4


@dataclass(frozen=True, kw_only=True)
class MapAnythingOutput:
    """What the network computes. Lengths are metric: the scale is applied."""

    cam_from_world: Tensor  # [B, F, 3, 4]
    """Poses; the world is about the camera of the first frame."""
    intrinsics: Tensor  # [B, F, 3, 3]
    """Fitted to the rays, network pixels, without gradient. The principal point is the middle of
    the image unless rays or intrinsics were given."""
    depth: Tensor  # [B, F, H, W]
    """z-depth."""
    confidence: Tensor  # [B, F, H, W]
    """At least one."""
    surface_logits: Tensor  # [B, F, H, W]
    """Positive where a pixel shows a surface of unambiguous depth; elsewhere sky and the like."""
    metric_scale: Tensor  # [B]
    """What the network's own lengths were multiplied by."""
    rays: Tensor | None = None  # [B, F, H, W, 3]
    """Unit direction of every pixel in its camera; ``None`` unless asked for."""
    depth_along_ray: Tensor | None = None  # [B, F, H, W]
    """Distance of every pixel from its camera; ``None`` unless asked for."""
    layers: dict[int, Tensor] = field(default_factory=dict)
    """Tokens after the blocks that were asked for, ``[B, F * T + 1, C]``, the scale token last."""
    attention: tuple[LayerStats, ...] = ()
    """What each global layer's attention did."""
    stages: tuple[StageRecord, ...] = ()
    """Time and peak memory of each stage."""


class _Encoder(nn.Module):
    """Gives the image encoder its name in the published weights, ``encoder.model``."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        self.model = VisionTransformer(config.vit)


class MapAnything(nn.Module):
    """The network of MapAnything v1.1 (default) and v1, and of smaller models of the same kind.

    Parameter names are those of the published weights without their aliases.
    """

    def __init__(self, config: MapAnythingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MapAnythingConfig()
        encoded, dim = config.embed_dim, config.dim
        map_encoder = functools.partial(
            MapEncoder, widths=config.dense_widths, dim=encoded, patch_size=config.patch_size
        )
        vector_encoder = functools.partial(VectorEncoder, widths=config.global_widths, dim=encoded)
        self.encoder = _Encoder(config)
        self.ray_dirs_encoder = map_encoder(3)
        self.depth_encoder = map_encoder(1)
        self.depth_scale_encoder = vector_encoder(1)
        self.cam_rot_encoder = vector_encoder(4)
        self.cam_trans_encoder = vector_encoder(3)
        self.cam_trans_scale_encoder = vector_encoder(1)
        self.fusion_norm_layer = LayerNorm(encoded, eps=BLOCK_NORM_EPS)
        self.scale_token = nn.Parameter(torch.zeros(encoded))
        self.info_sharing = MultiViewTransformer(config)
        self.dense_head = nn.ModuleList(
            [
                DenseFeatures((encoded, dim, dim, dim), config.dpt_widths, config.dpt_features),
                DenseRegressor(config.dpt_features),
            ]
        )
        self.pose_head = PoseHead(dim, POSE_WIDTH_PER_PATCH_PIXEL * config.patch_size**2)
        self.scale_head = ScaleHead(dim, config.scale_width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scale_token.device

    def forward(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        priors: Sequence[FramePrior | None] | None = None,
        masks: Tensor | None = None,  # [B, F, H, W] bool
        plan: AttentionPlan | None = None,
        keep_layers: Collection[int] = (),
        keep_rays: bool = True,
        options: InferenceOptions | None = None,
        progress: Progress | None = None,
    ) -> MapAnythingOutput:
        """Run the network.

        With autograd on, the transformer takes all frames at once; under ``torch.no_grad``
        everything runs in chunks.

        Args:
            images: RGB, float in [0, 1] or uint8, ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``; both
                sides are multiples of the patch size. They may be on another device than the model.
            priors: What is known of each frame; for a single scene only. If any frame has a pose,
                the first must have one, and a depth needs intrinsics or rays of the same frame.
            masks: True where a pixel may be used. Patches without such a pixel are attended to by
                none, in encoder, frame and global layers alike.
            plan: Attention of the global layers; dense if not given.
            keep_layers: Blocks whose tokens to return.
            keep_rays: Return rays and depth along them.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            The outputs, on the device of the model.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If shape or range of ``images`` or of priors do not fit, or a layer does not
                exist.
            ReconstructionError: If the run cannot fit in memory.
        """
        config = self.config
        if any(not 0 <= layer < config.depth for layer in keep_layers):
            raise ValueError(
                f"`keep_layers` must lie in [0, {config.depth}), got {sorted(keep_layers)}."
            )
        images = check_images(images, config.patch_size)
        geometry = _prepare(priors, images)
        patches = check_masks(masks, images, config.patch_size)
        run = self._begin(images, keep_rays, options or InferenceOptions(), progress, patches)
        fused, x = self._encode(images, geometry, run)
        shared, attention = self._share(x, plan or AttentionPlan.dense(), keep_layers, run)
        del x
        with full_precision(run.device):
            scale = self.scale_head(shared.scale_token.float()).exp().clamp(min=_SMALLEST)
            outputs = self._decode(fused, shared, scale, keep_rays, _choose_fit(priors), run)
        return MapAnythingOutput(
            **outputs,
            metric_scale=scale[:, 0],
            layers=shared.layers,
            attention=attention,
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
        """Predict metric cameras and depth of one scene, without gradients.

        Args:
            images: RGB, uint8 or float in [0, 1], ``[F, 3, H, W]``. The first frame is the
                reference.
            priors: What is known of each frame, as in `forward`.
            masks: True where a pixel may be used, as in `forward`.
            plan: Attention of the global layers; dense if not given.
            camera_ids: One number per frame; frames of one number share their intrinsics. Each
                frame has its own if not given.
            options: Precision, chunks, memory.
            progress: Called as ``progress(stage, done, total)``.

        Returns:
            Cameras, depth and confidence, float32 on the CPU. The depth is 0 where the network sees
            no surface of unambiguous depth, such as in the sky.

        Raises:
            TypeError: If ``images`` is no tensor of a usable dtype.
            ValueError: If ``images``, ``priors`` or ``camera_ids`` do not fit.
            ReconstructionError: If the run does not fit in memory.
        """
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(f"`images` must have shape [F, 3, H, W], got {list(images.shape)}.")
        with explain_lack_of_memory(len(images), self.device):
            output = self(
                images,
                priors=priors,
                masks=masks,
                plan=plan,
                # Rays of all frames take much memory, and frames can be fitted one by one.
                keep_rays=camera_ids is not None,
                options=options,
                progress=progress,
            )
        intrinsics = output.intrinsics[0].float().cpu()
        if output.rays is not None:
            intrinsics = fit_intrinsics(
                output.rays[0],
                output.confidence[0],
                camera_ids=camera_ids,
                fit=_choose_fit(priors),
            )
        depth = output.depth[0].masked_fill(output.surface_logits[0] <= 0, 0.0)
        return Prediction(
            cam_from_world=output.cam_from_world[0].float().cpu(),
            intrinsics=intrinsics,
            depth=depth.float().cpu(),
            confidence=output.confidence[0].float().cpu(),
            scale="metric",
            attention=output.attention,
            stages=output.stages,
            notes=focal_notes(intrinsics),
        )

    def encode(
        self,
        images: Tensor,  # [B, F, 3, H, W]
        *,
        options: InferenceOptions | None = None,
    ) -> Tensor:
        """Return the encoder's patch tokens, then class tokens, ``[B, F, P + 1, E]``.

        Images are as in `forward`; nothing that is known of them is added yet.
        """
        images = check_images(images, self.config.patch_size)
        run = self._begin(images, False, options or InferenceOptions(), None)
        tokens = []
        for start, stop in spans(images.shape[1], run.memory.frames_per_chunk):
            tokens.append(self._encode_images(images[:, start:stop], None, run))
        return torch.cat(tokens, dim=1)

    def _begin(
        self,
        images: Tensor,
        keep_rays: bool,
        options: InferenceOptions,
        progress: Progress | None,
        patch_mask: Tensor | None = None,
    ) -> ForwardRun:
        config = self.config
        batch, num_frames, _, height, width = images.shape
        grid = (height // config.patch_size, width // config.patch_size)
        shape = RunShape(
            num_frames=batch * num_frames,
            num_tokens=config.num_special + grid[0] * grid[1],
            dim=max(config.embed_dim, config.dim),
            num_pixels=height * width,
            head_features=config.dpt_features,
            # The plan counts taps of twice the channels: two here are what one is there.
            num_taps=(len(config.taps) + 2) // 2,
            num_maps=_NUM_MAPS + _NUM_RAY_MAPS * keep_rays,
        )
        return ForwardRun.begin(shape, grid, options, self.device, progress, patch_mask)

    def _encode(
        self, images: Tensor, geometry: GeometryInputs | None, run: ForwardRun
    ) -> tuple[Tensor, Tensor]:
        """Return fused patch tokens ``[B, F, P, E]``, and the transformer's ``[B, F, T, C]``."""
        config = self.config
        batch, num_frames = images.shape[:2]
        num_patches = run.grid[0] * run.grid[1]
        like = self.scale_token
        fused = like.new_empty(
            (batch, num_frames, num_patches, config.embed_dim), dtype=run.memory.tap_dtype
        )
        x = like.new_empty(batch, num_frames, num_patches + config.num_special, config.dim)
        with run.recorder.stage("encoder", num_frames) as report:
            for start, stop in spans(num_frames, run.memory.frames_per_chunk):
                mask = run.mask_of(start, stop)
                tokens = self._encode_images(images[:, start:stop], mask, run)
                patches, class_token = tokens.split([num_patches, 1], dim=2)
                with full_precision(run.device):
                    if geometry is not None:
                        known = self._encode_geometry(geometry, slice(start, stop))
                        patches = patches + known.flatten(1, 2)
                    patches = self.fusion_norm_layer(patches)
                    fused[:, start:stop] = patches
                    if config.has_class_token:
                        patches = torch.cat([patches, class_token], dim=2)
                    x[:, start:stop] = self.info_sharing.embed(patches, has_first_frame=start == 0)
                report(stop)
        return fused, x

    def _encode_images(self, images: Tensor, patch_mask: Tensor | None, run: ForwardRun) -> Tensor:
        """Return patch tokens, then the class token, ``[B, F, P + 1, E]`` in float32."""
        with run.autocast():
            pixels = normalize_images(images.to(run.device)).flatten(0, 1)
            tokens = self.encoder.model.encode(pixels, patch_mask)
        tokens = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
        return tokens.float().unflatten(0, images.shape[:2])

    def _encode_geometry(self, geometry: GeometryInputs, frames: slice) -> Tensor:
        """Return the sum of what is known of some frames, ``[f, gh, gw, E]``."""
        total = self.scale_token.new_zeros(1, 1, 1, 1)
        for encoder, values, has_value in (
            (self.ray_dirs_encoder, geometry.rays, geometry.has_rays),
            (self.depth_encoder, geometry.log_depth, geometry.has_depth),
            (self.depth_scale_encoder, geometry.log_depth_scale, geometry.has_depth_scale),
            (self.cam_rot_encoder, geometry.quaternions, geometry.has_pose),
            (self.cam_trans_encoder, geometry.translations, geometry.has_pose),
            (
                self.cam_trans_scale_encoder,
                geometry.log_translation_scale,
                geometry.has_translation_scale,
            ),
        ):
            is_known = has_value[frames].to(self.device)
            if not bool(is_known.any()):
                continue
            encoded = encoder(values[frames].to(self.device))
            if encoded.ndim == 2:  # One vector for all patches of a frame.
                encoded = encoded[:, None, None]
            total = total + encoded * is_known.view(-1, 1, 1, 1)
        height, width = (side // self.config.patch_size for side in geometry.rays.shape[2:])
        return total.expand(len(is_known), height, width, self.config.embed_dim)

    def _share(
        self, x: Tensor, plan: AttentionPlan, keep_layers: Collection[int], run: ForwardRun
    ) -> tuple[TransformerOutput, tuple[LayerStats, ...]]:
        config = self.config
        token_mask = run.token_mask(config.num_special, is_special_last=True)
        key_mask = None
        if token_mask is not None:
            # The scale token, which has no frame, is attended to by all.
            key_mask = F.pad(token_mask.flatten(1), (0, 1), value=True)
        attention = AttentionRun(
            plan,
            TokenLayout(
                num_frames=x.shape[1],
                num_special=config.num_special,
                grid_height=run.grid[0],
                grid_width=run.grid[1],
                is_special_last=True,
                num_trailing=1,
            ),
            config.num_global_layers,
            key_mask=key_mask,
        )
        scale_token = self.info_sharing.proj_embed(self.scale_token).expand(x.shape[0], 1, -1)
        with run.recorder.stage("attention", config.depth) as report:
            shared = self.info_sharing(
                x,
                scale_token,
                attention,
                num_patches=run.grid[0] * run.grid[1],
                taps=config.taps,
                keep_layers=keep_layers,
                key_mask=token_mask,
                tap_dtype=run.memory.tap_dtype,
                frames_per_chunk=run.memory.frames_per_chunk,
                autocast=run.autocast,
                report=report,
            )
        return shared, tuple(attention.stats)

    def _decode(
        self,
        fused: Tensor,
        shared: TransformerOutput,
        scale: Tensor,  # [B, 1]
        keep_rays: bool,
        fit: IntrinsicsFit,
        run: ForwardRun,
    ) -> dict[str, Tensor]:
        """Run pose and dense heads over chunks of frames."""
        batch, num_frames = fused.shape[:2]
        last = self.config.depth - 1
        layers = [shared.taps[layer] for layer in (*self.config.taps, last)]
        taps = [patches.flatten(0, 1) for patches in (fused, *layers)]
        scales = scale.repeat_interleave(num_frames, dim=0)  # [B * F, 1]
        masks = run.mask_of(0, num_frames)
        chunks: list[dict[str, Tensor]] = []
        with run.recorder.stage("depth", num_frames) as report:
            for start, stop in spans(batch * num_frames, run.memory.head_frames_per_chunk):
                maps = [
                    tap[start:stop].float().transpose(1, 2).unflatten(2, run.grid) for tap in taps
                ]
                mask = None if masks is None else masks[start:stop]
                chunks.append(self._decode_frames(maps, mask, scales[start:stop], keep_rays, fit))
                report(stop // batch)
        return {
            name: torch.cat([chunk[name] for chunk in chunks]).unflatten(0, (batch, num_frames))
            for name in chunks[0]
        }

    def _decode_frames(
        self,
        maps: list[Tensor],
        patch_mask: Tensor | None,
        scale: Tensor,
        keep_rays: bool,
        fit: IntrinsicsFit,
    ) -> dict[str, Tensor]:
        rows, columns = maps[0].shape[2:]
        size = (rows * self.config.patch_size, columns * self.config.patch_size)
        features, regressor = self.dense_head
        raw = regressor(features(maps), size)
        rays = F.normalize(raw[:, :3].movedim(1, -1), dim=-1, eps=_SMALLEST)
        along_ray = raw[:, 3].exp() * scale.unsqueeze(-1)
        confidence = 1 + raw[:, 4].exp()
        outputs = {
            "cam_from_world": decode_pose(self.pose_head(maps[-1], patch_mask), scale),
            "intrinsics": fit_intrinsics(rays, confidence, fit=fit).to(rays),
            "depth": rays[..., 2] * along_ray,
            "confidence": confidence,
            "surface_logits": raw[:, 5],
        }
        if keep_rays:
            outputs |= {"rays": rays, "depth_along_ray": along_ray}
        return outputs


def decode_pose(
    raw: Tensor,  # [F, 7]
    scale: Tensor,  # [F, 1]
) -> Tensor:
    """Turn raw ``world_from_cam`` poses into ``cam_from_world`` ``[F, 3, 4]`` in scaled units."""
    translation, quaternion = raw.split([3, 4], dim=-1)
    rotation = rotation_from_xyzw(quaternion)
    return invert_rigid(torch.cat([rotation, (translation * scale).unsqueeze(-1)], dim=-1))


def _choose_fit(priors: Sequence[FramePrior | None] | None) -> IntrinsicsFit:
    """Take the principal point for central, unless someone told of rays where it may not be."""
    told = [prior for prior in priors or () if prior is not None]
    return IntrinsicsFit(is_centered=all(p.rays is None and p.intrinsics is None for p in told))


def _prepare(priors: Sequence[FramePrior | None] | None, images: Tensor) -> GeometryInputs | None:
    """Check priors and bring them into the encoders' form, ``None`` if nothing is known."""
    if priors is None:
        return None
    batch, num_frames, _, height, width = images.shape
    if batch != 1:
        raise ValueError(f"`priors` need a single scene, got {batch}.")
    geometry = prepare_geometry(check_priors(priors, num_frames, height, width), height, width)
    return None if geometry.is_empty else geometry
