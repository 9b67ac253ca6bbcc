# SPDX-License-Identifier: Apache-2.0
"""Everything that a training run depends on, and the runs that have a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ns_sparseattn.models import VGGTConfig
from training.generator import GeneratorConfig
from training.heldout import HeldOutConfig
from training.losses import LossConfig
from training.pool import PoolConfig
from training.render import RenderOptions
from training.schedule import Budget, Schedule
from training.world import Slots


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training run."""

    model: VGGTConfig
    """Sizes of the network."""
    budget: Budget
    """How long, over all pieces."""
    frames_per_step: int
    """Views of a step; the number of scenes follows from the views of each."""
    dense_frames: int = 2
    """Views of each scene for which depth and points are computed."""
    layer_scale: float = 0.3
    """First value of the factors of all residual branches. Large networks begin with 0.01."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """What takes the steps of the matrices inside transformer blocks; all else has AdamW."""
    hidden_rate: float = 6.0
    """Learning rate of Muon's matrices, in units of that of the schedule."""
    weight_decay: float = 0.05
    """Of matrices; vectors do not decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW; a short run needs a short memory of squares."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Autocast of everything but the camera head."""
    seed: int = 0
    """Of weights, scenes and choices."""
    evaluate_minutes: float = 10.0
    """Minutes of training between measurements on held-out scenes; one more ends every piece."""
    log_steps: int = 20
    """Steps that make one row of the log."""
    checkpoint: Literal["full", "compact"] = "full"
    """Whether a checkpoint is exact, or takes a third of the space: rounded, and without first
    moments."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: Schedule = field(default_factory=Schedule)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)

    @property
    def early_layer(self) -> int:
        """Layer whose tokens are asked for correspondences: early, so that others build on it.

        One head of the global block after it is asked to look there.
        """
        return (self.model.depth - 2) // 3

    def __post_init__(self) -> None:
        largest = max(self.schedule.first_frames[1], self.schedule.last_frames[1])
        if largest > self.generator.num_views:
            raise ValueError(
                f"Scenes have {self.generator.num_views} views, the schedule wants {largest}."
            )
        if self.schedule.first_frames[0] < self.dense_frames:
            raise ValueError(
                "`dense_frames` must be at most the least number of views, "
                f"got {self.dense_frames}."
            )
        for height, width in (*self.pool.sizes, *self.pool.late_sizes, *self.held_out.sizes):
            if height % self.model.patch_size or width % self.model.patch_size:
                raise ValueError(
                    f"Photo sizes must be multiples of {self.model.patch_size}, "
                    f"got {height} x {width}."
                )


def _tiny(
    *,
    depth: int,
    encoder_depth: int,
    image_size: int,
    dim: int = 192,
    patch_size: int = 14,
    features: int = 32,
) -> VGGTConfig:
    """Return a small network with the published head size."""
    taps = (max(0, depth // 4 - 1), depth // 2 - 1, depth - 2, depth - 1)
    return VGGTConfig(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=dim,
        encoder_depth=encoder_depth,
        encoder_heads=dim // 64,
        depth=depth,
        num_heads=dim // 64,
        num_registers=1,
        taps=taps,
        camera_heads=dim // 32,
        camera_depth=1,
        camera_iterations=4,
        dpt_features=features,
        dpt_widths=(features, features, 2 * features, 2 * features),
    )


_SMOKE = TrainingConfig(
    model=VGGTConfig(
        image_size=56,
        embed_dim=64,
        encoder_depth=1,
        encoder_heads=1,
        depth=2,
        num_heads=1,
        num_registers=1,
        taps=(0, 0, 1, 1),
        camera_heads=2,
        camera_depth=1,
        dpt_features=16,
        dpt_widths=(16, 16, 16, 16),
    ),
    budget=Budget(steps=8),
    frames_per_step=8,
    precision="fp32",
    log_steps=2,
    generator=GeneratorConfig(
        num_views=6,
        slots=Slots(boxes=3, ellipsoids=1, cylinders=1),
        num_textures=14,
        texture_size=32,
    ),
    pool=PoolConfig(slots=2, scenes=4, reuse=1.0, sizes=((56, 56), (42, 56))),
    schedule=Schedule(last_frames=(2, 6), ema_half_life=4.0),
    held_out=HeldOutConfig(num_scenes=4, num_frames=4, sizes=((42, 56),)),
)

_TRIAL = TrainingConfig(
    model=_tiny(depth=5, encoder_depth=1, image_size=84, dim=128, features=16),
    budget=Budget(steps=700),
    frames_per_step=48,
    dense_frames=1,
    evaluate_minutes=2.5,
    generator=GeneratorConfig(num_views=8),
    pool=PoolConfig(slots=2, scenes=32, reuse=4.0, sizes=((84, 84), (70, 84), (84, 70))),
    schedule=Schedule(
        learning_rate=2.5e-3,
        last_overlap=0.4,
        first_frames=(2, 3),
        last_frames=(2, 4),
        grown_at=0.8,
        ema_half_life=30.0,
    ),
    held_out=HeldOutConfig(num_scenes=48, num_frames=4, sizes=((70, 84),)),
)

_CPU = TrainingConfig(
    model=_tiny(depth=6, encoder_depth=1, image_size=112),
    budget=Budget(minutes=180.0),
    frames_per_step=48,
    dense_frames=1,
    # Photos are seldom square, and fewer patches are more views in the same time.
    pool=PoolConfig(
        sizes=((84, 112), (84, 112), (112, 84), (70, 112)),
        late_sizes=((126, 168), (126, 168), (168, 126), (112, 168)),
    ),
    schedule=Schedule(learning_rate=1.5e-3, last_frames=(2, 8)),
    held_out=HeldOutConfig(sizes=((126, 168),)),
)

_GPU = TrainingConfig(
    model=_tiny(depth=7, encoder_depth=1, image_size=224),
    budget=Budget(minutes=27.0),
    frames_per_step=384,
    dense_frames=2,
    evaluate_minutes=4.0,
    checkpoint="compact",
    generator=GeneratorConfig(
        num_views=24,
        num_textures=504,
        texture_size=256,
        options=RenderOptions(has_shadows=True, views_per_chunk=192),
    ),
    pool=PoolConfig(
        slots=4,
        scenes=96,
        reuse=3.0,
        sizes=((224, 224), (168, 224), (224, 168), (154, 224), (224, 126)),
    ),
    schedule=Schedule(learning_rate=1.0e-3, last_frames=(2, 24), ema_half_life=300.0),
    held_out=HeldOutConfig(num_scenes=64, sizes=((168, 224), (224, 168))),
)

CONFIGS: dict[str, TrainingConfig] = {"smoke": _SMOKE, "trial": _TRIAL, "cpu": _CPU, "gpu": _GPU}
"""Runs by name: a check that takes seconds, two cores for hours, one large GPU for half an hour."""
