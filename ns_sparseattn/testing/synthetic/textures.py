# SPDX-License-Identifier: Apache-2.0
"""Procedural textures without repetition, rich in corners and blobs at all scales.

Axes: ``T`` texels along one side, ``P`` points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

TextureKind = Literal["bricks", "marble", "mural", "planks", "plaster", "terrazzo"]

_PALETTES: dict[TextureKind, tuple[str, ...]] = {
    "bricks": ("#a4533b", "#b8674a", "#8d4331", "#c47f5d", "#96503f", "#ad7157"),
    "marble": ("#e9e4da", "#d8d0c4", "#b9ada0", "#f4f1ea"),
    "mural": (
        "#1f3b57", "#d9603b", "#f2c14e", "#5b8c85", "#f7f0e3", "#8b3a62", "#2c6e9c", "#20262e",
    ),
    "planks": ("#8c6239", "#9c7045", "#7a5230", "#ab7f52", "#86603c", "#b58a5d"),
    "plaster": ("#d9d2c2", "#cfc6b3", "#e2dccf"),
    "terrazzo": ("#c8553d", "#2f4858", "#f0b67f", "#6b8f71", "#3a3335", "#e8dfd0", "#588b8b"),
}  # fmt: skip


_painting = Lock()
"""Held while a texture is looked up, so that no two threads paint the same one."""


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A square picture on a surface, mirrored at its ends, with coarser copies."""

    kind: TextureKind
    seed: int
    metres: float
    """Length of one side on the surface."""
    texels: int = 1024

    def sample(
        self,
        uv: Tensor,  # [P, 2]
        footprint: Tensor,  # [P]
    ) -> Tensor:
        """Look colours up.

        Args:
            uv: Coordinates on the surface, metres.
            footprint: Side of the surface patch that one sample stands for, metres.

        Returns:
            Linear RGB from 0 to 1, ``[P, 3]`` float32.
        """
        with _painting:
            levels = _levels(self.kind, self.seed, self.texels, self.metres)
        texel = self.metres / self.texels
        level = (footprint / texel).log2().round().clamp(0, len(levels) - 1).nan_to_num(0).long()
        # Mirroring keeps the picture continuous, and no two parts within it are alike.
        folded = (uv / self.metres + 0.5).remainder(2.0)
        unit = torch.where(folded > 1.0, 2.0 - folded, folded)
        rgb = torch.empty(uv.shape[0], 3)
        for index in level.unique().tolist():
            members = level == index
            rgb[members] = _bilinear(levels[index], unit[members])
        return rgb


def _bilinear(picture: Tensor, unit: Tensor) -> Tensor:
    """Sample ``[T, T, 3]`` at positions in [0, 1]^2, ``[P, 2]``."""
    size = picture.shape[0]
    position = (unit * size - 0.5).clamp(0.0, size - 1.0)
    first = position.floor().long()
    weight = (position - first).float()[:, None, :]
    second = (first + 1).clamp(max=size - 1)
    flat = picture.reshape(-1, 3)
    (x0, y0), (x1, y1) = first.unbind(-1), second.unbind(-1)
    y0, y1 = y0 * size, y1 * size
    top = torch.lerp(flat[y0 + x0].float(), flat[y0 + x1].float(), weight[..., 0])
    bottom = torch.lerp(flat[y1 + x0].float(), flat[y1 + x1].float(), weight[..., 0])
    return torch.lerp(top, bottom, weight[..., 1])


@lru_cache(maxsize=32)
def _levels(kind: TextureKind, seed: int, texels: int, metres: float) -> tuple[Tensor, ...]:
    """Paint a texture and halve it down to 4 texels; linear RGB ``[T, T, 3]`` float16 each."""
    rng = np.random.default_rng(seed)
    # Shapes are drawn with hard edges, which the blur rounds off.
    painted = _paint(kind, texels, metres, rng).filter(ImageFilter.GaussianBlur(0.8))
    picture = torch.from_numpy(np.asarray(painted, dtype=np.float32) / 255.0)
    grain = _noise(rng, texels, first=8)
    strength = 0.55 if kind in ("plaster", "marble") else 0.4
    level = (picture**2.2 * (1.0 + strength * grain[..., None])).clamp(0.0, 1.0).permute(2, 0, 1)
    levels = []
    while level.shape[-1] >= 4:
        # Half precision: the finest levels are large.
        levels.append(level.permute(1, 2, 0).contiguous().half())
        level = torch.nn.functional.avg_pool2d(level[None], 2)[0]
    return tuple(levels)


def _noise(rng: np.random.Generator, texels: int, *, first: int) -> Tensor:
    """Return fractal noise ``[T, T]`` of about [-1, 1], starting at `first` cells a side."""
    total, weight = torch.zeros(1, 1, 1, 1), 0.5
    for level in range((texels // first).bit_length()):
        # Each octave is twice as fine as the last, and all are enlarged together.
        cells = min(first << level, texels)
        total = torch.nn.functional.interpolate(
            total, size=(cells, cells), mode="bicubic", align_corners=False
        )
        grid = torch.from_numpy(rng.standard_normal((cells, cells), dtype=np.float32))
        total += weight * grid
        weight *= 0.7
    total = torch.nn.functional.interpolate(
        total, size=(texels, texels), mode="bicubic", align_corners=False
    )
    return (total[0, 0] / 1.5).clamp(-1.0, 1.0)


def _paint(kind: TextureKind, texels: int, metres: float, rng: np.random.Generator) -> Image.Image:
    """Paint the coarse pattern of a texture; patterns keep their size in metres."""
    palette = _PALETTES[kind]
    image = Image.new("RGB", (texels, texels), palette[0])
    draw = ImageDraw.Draw(image)
    if kind == "mural":
        # Large shapes below small ones, in proportion to the picture.
        large = min(metres, 7.0)
        density = (metres / large) ** 2
        sizes = (0.08 * large / metres, 0.3 * large / metres)
        _scatter(draw, texels, rng, palette, count=round(60 * density), sizes=sizes)
        sizes = (0.008 * large / metres, 0.05 * large / metres)
        _scatter(draw, texels, rng, palette, count=round(600 * density), sizes=sizes)
    elif kind == "terrazzo":
        image.paste("#ddd5c6", (0, 0, texels, texels))
        count = round(700 * metres**2)
        _scatter(draw, texels, rng, palette, count=count, sizes=(0.005 / metres, 0.035 / metres))
    elif kind == "planks":
        length = (0.5 / metres, 1.6 / metres)
        _courses(
            draw, texels, rng, palette, rows=round(metres / 0.17), length=length, joint="#3b2817"
        )
    elif kind == "bricks":
        length = (0.16 / metres, 0.26 / metres)
        _courses(
            draw, texels, rng, palette, rows=round(metres / 0.09), length=length, joint="#c9bfae"
        )
    elif kind == "marble":
        return _marble(texels, rng, palette)
    else:
        image.paste(palette[0], (0, 0, texels, texels))
        sizes = (0.05 / metres, 0.4 / metres)
        _scatter(draw, texels, rng, palette, count=round(8 * metres**2), sizes=sizes)
    return image


def _scatter(
    draw: ImageDraw.ImageDraw,
    texels: int,
    rng: np.random.Generator,
    palette: tuple[str, ...],
    *,
    count: int,
    sizes: tuple[float, float],
) -> None:
    """Draw random polygons, discs and rings; sizes are shares of the side."""
    for _ in range(count):
        x, y = rng.random(2) * texels
        radius = texels * math.exp(rng.uniform(math.log(sizes[0]), math.log(sizes[1])))
        colour = palette[int(rng.integers(len(palette)))]
        shape = int(rng.integers(4))
        if shape == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif shape == 1:
            width = max(1, round(radius / 3))
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius), outline=colour, width=width
            )
        else:
            corners = int(rng.integers(3, 7))
            angles = np.sort(rng.random(corners)) * 2 * math.pi
            lengths = radius * rng.uniform(0.5, 1.2, corners)
            outline = zip(x + lengths * np.cos(angles), y + lengths * np.sin(angles), strict=True)
            draw.polygon([(float(a), float(b)) for a, b in outline], fill=colour)


def _courses(
    draw: ImageDraw.ImageDraw,
    texels: int,
    rng: np.random.Generator,
    palette: tuple[str, ...],
    *,
    rows: int,
    length: tuple[float, float],
    joint: str,
) -> None:
    """Draw rows of planks or bricks of random length and colour."""
    draw.rectangle((0, 0, texels, texels), fill=joint)
    height, gap = texels / rows, max(1.0, texels / rows / 16)
    for row in range(rows):
        x = -rng.random() * length[1] * texels
        while x < texels:
            step = rng.uniform(*length) * texels
            colour = palette[int(rng.integers(len(palette)))]
            top = row * height
            draw.rectangle((x + gap, top + gap, x + step - gap, top + height - gap), fill=colour)
            x += step


def _marble(texels: int, rng: np.random.Generator, palette: tuple[str, ...]) -> Image.Image:
    """Draw veins along the level lines of warped noise."""
    warp = _noise(rng, texels, first=3)
    ramp = torch.linspace(0.0, 5.0, texels)
    veins = (1.0 - ((ramp + ramp[:, None] * 0.6 + 2.5 * warp) * math.pi).sin().abs()) ** 6
    tones = torch.tensor([_rgb(colour) for colour in palette], dtype=torch.float32)
    blend = (_noise(rng, texels, first=6) * 0.5 + 0.5)[..., None]
    base = torch.lerp(tones[2], tones[3], blend)
    dark = torch.tensor(_rgb("#3f4a5a"), dtype=torch.float32)
    picture = torch.lerp(base, dark, 0.85 * veins[..., None])
    return Image.fromarray(picture.round().clamp(0, 255).to(torch.uint8).numpy())


def _rgb(colour: str) -> tuple[int, int, int]:
    """Read ``#rrggbb``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
