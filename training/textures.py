# SPDX-License-Identifier: Apache-2.0
"""Procedural textures, painted in batches and looked up with coarser copies.

A scene does not paint: it chooses from a bank of a few hundred textures and changes their colours
and scale, so that a look-up costs the same for every kind. A bank follows from a seed alone.

Axes: ``T`` textures, ``S`` texels along one side, ``P`` points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draws
from training.photographs import Domain, load_photographs

_EXPONENT_SHIFT, _EXPONENT_BIAS = 23, 127
"""Where a float32 keeps its exponent."""
_NUM_CELLS = 48
"""Cell centres of a Voronoi texture."""
_NUM_MARKS = 40
"""Rectangles and discs on a poster."""


@dataclass(frozen=True, kw_only=True)
class TextureBank:
    """Textures with all their mip levels, one after the other in one tensor."""

    texels: Tensor  # [texels of all levels, 3] float32 in [0, 1]
    size: int
    """Texels along one side of the finest level, a power of two."""
    num_textures: int

    @property
    def num_levels(self) -> int:
        """Levels down to a single texel."""
        return self.size.bit_length()

    @property
    def device(self) -> torch.device:
        """Where the texels are."""
        return self.texels.device

    def sample(
        self,
        texture: Tensor,  # [P]
        uv: Tensor,  # [P, 2]
        footprint: Tensor,  # [P]
    ) -> Tensor:
        """Look colours up.

        Args:
            texture: Which texture, int64.
            uv: Place in units of the texture's side; beyond [0, 1] it is mirrored.
            footprint: Side of the surface that a sample stands for, in the same unit.

        Returns:
            ``[P, 3]`` in [0, 1].
        """
        # The exponent of a float is its logarithm rounded down; the factor makes it round to the
        # nearest.
        scaled = (footprint * (self.size * math.sqrt(2.0))).clamp_(min=1.0)
        level = (scaled.view(torch.int32) >> _EXPONENT_SHIFT) - _EXPONENT_BIAS
        level = level.clamp_(max=self.num_levels - 1).long()
        width = self.size >> level
        side = width.float()
        # Levels are stored fine to coarse.
        sides = [self.size >> number for number in range(self.num_levels)]
        starts = torch.tensor([0, *(self.num_textures * n * n for n in sides)], device=self.device)
        offset = starts.cumsum(0)[level]
        folded = uv.remainder(2.0)
        position = torch.minimum(folded, 2.0 - folded) * side[:, None] - 0.5
        position = position.clamp_(min=0.0).minimum(side[:, None] - 1.0)
        whole = position.floor()
        weight = (position - whole).unsqueeze(-1)
        first = whole.long()
        second = torch.minimum(first + 1, width[:, None] - 1)
        row = offset + texture * width * width
        top, bottom = row + first[:, 1] * width, row + second[:, 1] * width
        corners = torch.stack(
            [top + first[:, 0], top + second[:, 0], bottom + first[:, 0], bottom + second[:, 0]]
        )
        colours = self.texels.index_select(0, corners.flatten()).unflatten(0, corners.shape)
        upper = torch.lerp(colours[0], colours[1], weight[:, 0])
        lower = torch.lerp(colours[2], colours[3], weight[:, 0])
        return torch.lerp(upper, lower, weight[:, 1])


def make_bank(
    seed: int,
    domain: Domain,
    *,
    num_textures: int,
    size: int,
    has_photographs: bool,
    device: torch.device | str = "cpu",
) -> TextureBank:
    """Paint a bank.

    Args:
        seed: Gives the same bank on every machine.
        domain: The kinds of texture and the photographs of the two domains have nothing in common.
        num_textures: How many.
        size: Texels along one side, a power of two.
        has_photographs: Whether cuttings of photographs are among them.
        device: Where to paint and keep them.

    Raises:
        ValueError: If the size is no power of two.
        ModuleNotFoundError: If photographs are wanted and scikit-image is missing.
    """
    if size < 2 or size & (size - 1):
        raise ValueError(f"`size` must be a power of two, got {size}.")
    painters: dict[str, Painter] = dict(PAINTERS[domain])
    if has_photographs:
        painters["photograph"] = lambda draws, size: _cut_photographs(draws, size, domain)
    share = torch.arange(num_textures, device=device) % len(painters)
    base = torch.empty(num_textures, 3, size, size, device=device)
    for number, (name, paint) in enumerate(painters.items()):
        members = (share == number).nonzero().flatten()
        if len(members):
            base[members] = paint(Draws(seed, f"{domain}/texture/{name}", members), size)
    levels = [base.clamp_(0.0, 1.0)]
    while levels[-1].shape[-1] > 1:
        levels.append(F.avg_pool2d(levels[-1], 2))
    texels = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 3) for level in levels])
    return TextureBank(texels=texels, size=size, num_textures=num_textures)


Painter = Callable[[Draws, int], Tensor]
"""Takes random numbers of ``T`` textures and the size ``S``, returns ``[T, 3, S, S]``."""


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the columns and rows of texel centres in [0, 1], ``[1, S, S]`` each."""
    line = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def _device(draws: Draws) -> torch.device:
    return draws.uniform(1).device


def _noise(draws: Draws, size: int, *, first: int = 4, num_octaves: int = 5) -> Tensor:
    """Return smooth noise of several octaves, about -1 to 1, ``[T, S, S]``."""
    total, amplitude, cells = torch.zeros(1, device=_device(draws)), 1.0, first
    for _ in range(num_octaves):
        coarse = draws.uniform(1, min(cells, size), min(cells, size), low=-1.0)
        fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        total = total + amplitude * fine[:, 0]
        amplitude, cells = amplitude * 0.65, cells * 2
    return total


def _blend(draws: Draws, value: Tensor) -> Tensor:
    """Colour values ``[T, S, S]`` in [0, 1] by a ramp of four random colours each."""
    colours = draws.uniform(4, 3)
    place = value.clamp(0.0, 1.0) * 3.0
    weights = 1.0 - (place[:, None] - torch.arange(4.0, device=value.device)[:, None, None]).abs()
    return torch.einsum("tkyx,tkc->tcyx", weights.clamp_(min=0.0), colours)


def _pick(draws: Draws, key: Tensor, num_colours: int = 64) -> Tensor:
    """Give each integer key ``[T, S, S]`` a random colour."""
    palette = draws.uniform(num_colours, 3)
    flat = (key.flatten(1) % num_colours).unsqueeze(-1).expand(-1, -1, 3)
    return palette.gather(1, flat).transpose(1, 2).unflatten(2, key.shape[1:])


def _turned(draws: Draws, size: int) -> tuple[Tensor, Tensor]:
    """Return coordinates turned by a random angle and slightly bent, ``[T, S, S]`` each."""
    x, y = _grid(size, _device(draws))
    angle = draws.uniform(1, 1, high=2.0 * math.pi)
    bend = draws.uniform(1, 1, high=0.04)
    cos, sin = angle.cos(), angle.sin()
    u, v = cos * x - sin * y, sin * x + cos * y
    return u + bend * _noise(draws, size, num_octaves=2), v


def _paint_noise(draws: Draws, size: int) -> Tensor:
    return _blend(draws, 0.5 + 0.6 * _noise(draws, size))


def _paint_stripes(draws: Draws, size: int) -> Tensor:
    u, _ = _turned(draws, size)
    count = draws.log_uniform(1, 1, low=3.0, high=18.0)
    colours = _pick(draws, (u * count).floor().long() % 97)
    return colours * (0.85 + 0.15 * _noise(draws, size)[:, None])


def _paint_checker(draws: Draws, size: int) -> Tensor:
    u, v = _turned(draws, size)
    count = draws.log_uniform(1, 1, low=3.0, high=14.0)
    column, row = (u * count).floor().long(), (v * count).floor().long()
    is_plain = draws.chance(0.4, 1, 1)
    return _pick(draws, torch.where(is_plain, column + row & 1, column * 7 + row * 13 + 1000))


def _paint_voronoi(draws: Draws, size: int) -> Tensor:
    x, y = _grid(size, _device(draws))
    places = draws.uniform(_NUM_CELLS, 2)
    distance = (x.flatten(1)[:, None] - places[:, :, :1]).square()
    distance = distance + (y.flatten(1)[:, None] - places[:, :, 1:]).square()
    nearest, which = distance.topk(2, dim=1, largest=False)
    edge = (nearest[:, 1].sqrt() - nearest[:, 0].sqrt()).unflatten(1, (size, size))
    colours = _pick(draws, which[:, 0].unflatten(1, (size, size)))
    joint = (edge / draws.uniform(1, 1, low=0.004, high=0.02)).clamp(max=1.0)
    return torch.lerp(draws.uniform(3, 1, 1), colours, joint[:, None])


def _paint_bricks(draws: Draws, size: int) -> Tensor:
    x, y = _grid(size, _device(draws))
    rows = draws.log_uniform(1, 1, low=4.0, high=14.0)
    columns = rows * draws.uniform(1, 1, low=0.25, high=0.7)
    row = (y * rows).floor()
    along = x * columns + 0.5 * (row % 2.0)
    # The joint is a share of a row's height on all sides.
    joint = draws.uniform(1, 1, low=0.06, high=0.14)
    to_side = (along % 1.0 - 0.5).abs() * (rows / columns)
    to_bed = (y * rows % 1.0 - 0.5).abs()
    is_brick = (to_side < 0.5 * rows / columns - joint) & (to_bed < 0.5 - joint)
    tone = draws.uniform(3, 1, 1, low=0.2, high=0.9)
    spread = _pick(draws, row.long() * 31 + along.floor().long() * 7) - 0.5
    brick = tone + 0.35 * spread + 0.12 * _noise(draws, size, first=8)[:, None]
    return torch.where(is_brick[:, None], brick, draws.uniform(3, 1, 1))


def _paint_poster(draws: Draws, size: int) -> Tensor:
    x, y = _grid(size, _device(draws))
    picture = _blend(draws, 0.5 + 0.4 * _noise(draws, size, first=2, num_octaves=2))
    # Large marks below small ones.
    for mark in range(_NUM_MARKS):
        largest = 0.35 * (1.0 - mark / _NUM_MARKS) + 0.03
        half = draws.uniform(2, 1, 1, low=0.25 * largest, high=largest)
        place, colour = draws.uniform(2, 1, 1), draws.uniform(3, 1, 1)
        dx, dy = (x - place[:, 0]) / half[:, 0], (y - place[:, 1]) / half[:, 1]
        is_disc = draws.chance(0.4, 1, 1)
        reach = torch.where(is_disc, dx.square() + dy.square(), torch.maximum(dx.abs(), dy.abs()))
        picture = torch.where((reach < 1.0)[:, None], colour, picture)
    return picture


def _paint_marble(draws: Draws, size: int) -> Tensor:
    u, v = _turned(draws, size)
    veins = (u * draws.uniform(1, 1, low=2.0, high=8.0) + 1.2 * _noise(draws, size, first=3)) % 1.0
    return _blend(draws, (2.0 * veins - 1.0).abs() + 0.2 * v)


def _paint_rings(draws: Draws, size: int) -> Tensor:
    x, y = _grid(size, _device(draws))
    centre = draws.uniform(2, 1, 1)
    radius = ((x - centre[:, 0]).square() + (y - centre[:, 1]).square()).sqrt()
    radius = radius + 0.05 * _noise(draws, size, num_octaves=3)
    return _pick(draws, (radius * draws.log_uniform(1, 1, low=6.0, high=25.0)).floor().long())


def _paint_weave(draws: Draws, size: int) -> Tensor:
    u, v = _turned(draws, size)
    count = draws.log_uniform(1, 1, low=4.0, high=14.0)
    warp, weft = (u * count).floor().long(), (v * count).floor().long()
    is_above = (warp + weft) % 2 == 0
    thread = torch.where(is_above, warp * 5 + 500, weft * 11 + 501)
    shade = torch.where(is_above, u * count % 1.0, v * count % 1.0)
    return _pick(draws, thread) * (0.5 + 0.5 * (math.pi * shade).sin())[:, None]


def _paint_rows_of_signs(draws: Draws, size: int) -> Tensor:
    """Paint rows of small dark cells on a light ground, as a page of writing looks from afar."""
    x, y = _grid(size, _device(draws))
    rows = draws.log_uniform(1, 1, low=6.0, high=16.0).floor()
    row, column = (y * rows).floor().long(), (x * rows * 8.0).floor().long()
    level = (y * rows % 1.0 * 5.0).floor().long()
    is_ink = _pick(draws, row * 733 + column * 29 + level * 7, 251)[:, 0] < 0.45
    is_line = (y * rows % 1.0 > 0.2) & (y * rows % 1.0 < 0.8)
    ground, ink = draws.uniform(3, 1, 1, low=0.5), draws.uniform(3, 1, 1, high=0.5)
    return torch.where((is_ink & is_line)[:, None], ink, ground.expand(-1, -1, size, size))


def _cut_photographs(draws: Draws, size: int, domain: Domain) -> Tensor:
    """Cut a square of random place, size and orientation out of a random photograph each."""
    photographs = load_photographs(domain)
    device = _device(draws)
    which = draws.integers(1, high=len(photographs))[:, 0]
    cuts = torch.empty(len(draws), 3, size, size, device=device)
    side = draws.uniform(1, 1, 1, low=0.35)
    place = draws.uniform(2, 1, 1)
    x, y = _grid(size, device)
    u, v = (
        2.0 * (place[:, i] * (1.0 - side[:, 0]) + side[:, 0] * t) - 1.0 for i, t in ((0, x), (1, y))
    )
    is_mirrored = draws.chance(0.5, 1, 1)
    grid = torch.stack([torch.where(is_mirrored, -u, u), v], dim=-1)
    for number, photograph in enumerate(photographs):
        members = (which == number).nonzero().flatten()
        if not len(members):
            continue
        # Shrinking first keeps the look-up of single points from aliasing.
        square = F.interpolate(
            photograph[None].to(device), size=(2 * size, 2 * size), mode="bilinear", antialias=True
        )
        cuts[members] = F.grid_sample(
            square.expand(len(members), -1, -1, -1), grid[members], align_corners=False
        )
    return cuts


PAINTERS: dict[Domain, dict[str, Painter]] = {
    "train": {
        "noise": _paint_noise,
        "stripes": _paint_stripes,
        "checker": _paint_checker,
        "voronoi": _paint_voronoi,
        "bricks": _paint_bricks,
        "poster": _paint_poster,
    },
    "held_out": {
        "marble": _paint_marble,
        "rings": _paint_rings,
        "weave": _paint_weave,
        "signs": _paint_rows_of_signs,
    },
}
"""Kinds of texture by name; the domains share none."""
