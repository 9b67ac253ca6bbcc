# SPDX-License-Identifier: Apache-2.0
"""Views of scenes by index: the same index gives the same scene, whatever it is drawn with.

Axes: ``B`` scenes, ``V`` views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.cameras import draw_cameras
from training.photographs import Domain
from training.photometry import develop
from training.render import RenderOptions, clear_cameras, render
from training.scenes import draw_world
from training.textures import TextureBank, make_bank
from training.world import Slots, Views


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What scenes are made of."""

    num_views: int = 12
    """Views along a scene's camera path."""
    slots: Slots = field(default_factory=Slots)
    """Room for objects."""
    num_textures: int = 252
    """Textures that scenes choose from."""
    texture_size: int = 128
    """Texels along one side."""
    has_photographs: bool = True
    """Whether cuttings of photographs are among the textures."""
    options: RenderOptions = field(default_factory=RenderOptions)
    """Quality and chunks."""


class Generator:
    """Makes views of scenes.

    Args:
        config: What they are made of.
        seed: Of all random choices.
        domain: Held-out scenes differ in seeds, textures and shapes.
        device: Where they are made.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        seed: int,
        domain: Domain = "train",
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.seed = config, seed
        self.domain: Domain = domain
        self.device = torch.device(device)
        self.bank: TextureBank = make_bank(
            seed,
            domain,
            num_textures=config.num_textures,
            size=config.texture_size,
            has_photographs=config.has_photographs,
            device=self.device,
        )

    @torch.no_grad()
    def views(self, indices: Tensor, size: tuple[int, int], num_views: int | None = None) -> Views:
        """Make scenes.

        Args:
            indices: Which scenes, ``[B]`` int64.
            size: Height and width of the photos.
            num_views: Views along each path, if not those of the configuration.

        Returns:
            The views of each scene in the order of the camera's motion.
        """
        config, indices = self.config, indices.to(self.device)
        count = num_views or config.num_views
        world, stage = draw_world(
            self.seed, self.domain, indices, config.slots, config.num_textures
        )
        cameras = draw_cameras(self.seed, self.domain, indices, stage, world.surroundings, count)
        world = clear_cameras(world, cameras)
        rgb, depth = render(world, cameras, self.bank, size, config.slots, config.options)
        return Views(
            images=develop(rgb, self.seed, self.domain, indices),
            depth=depth,
            cam_from_world=cameras.cam_from_world,
            intrinsics=cameras.intrinsics(*size),
        )
