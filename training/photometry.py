# SPDX-License-Identifier: Apache-2.0
"""What lies between light and file: exposure, white balance, blur, noise, sRGB, JPEG.

Axes: ``B`` scenes, ``V`` views, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draws
from training.photographs import Domain

_NOISE_TILE = 512
_BLUR_RADIUS = 2
_JPEG_SHARE = 0.5
_LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of quality 50, ITU-T T.81, table K.1."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def develop(rgb: Tensor, seed: int, domain: Domain, indices: Tensor) -> Tensor:
    """Turn linear RGB into photos.

    Args:
        rgb: ``[B, V, 3, H, W]``, linear, not clipped; overwritten.
        seed: Of the run.
        domain: Of the scenes.
        indices: Which scenes, ``[B]``.

    Returns:
        sRGB, uint8 ``[B, V, 3, H, W]``.
    """
    num_views = rgb.shape[1]
    draws = Draws(seed, f"{domain}/photometry", indices)
    rgb = _expose(rgb, draws, num_views)
    rgb = _blur(rgb, draws, num_views)
    rgb = _add_noise(rgb, draws, num_views)
    # A root with a bend is close to powers of 1 / 1.9 to 1 / 2.6 and cheaper than they are.
    bend = draws.uniform(1, 1, 1, 1, low=-0.05, high=0.3)
    root = rgb.clamp_(0.0, 1.0).sqrt_()
    srgb = root + bend * (root - root.square())
    srgb = _compress(srgb, draws, num_views)
    return srgb.mul_(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)


def _expose(rgb: Tensor, draws: Draws, num_views: int) -> Tensor:
    """Meter the scene, miss a little, tint, and darken the corners."""
    # One exposure for all views of a scene, then what a camera's own metering changes.
    mean = rgb.mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
    wanted = draws.log_uniform(1, 1, 1, 1, low=0.12, high=0.35)
    stops = 0.25 * draws.normal(num_views, 1, 1, 1)
    tint = (
        1.0 + 0.10 * draws.uniform(1, 3, 1, 1, low=-1.0) + 0.03 * draws.normal(num_views, 3, 1, 1)
    )
    height, width = rgb.shape[-2:]
    y = torch.linspace(-1.0, 1.0, height, device=rgb.device)[:, None]
    x = torch.linspace(-1.0, 1.0, width, device=rgb.device)
    corner = draws.uniform(1, 1, 1, 1, high=0.25) * (0.5 * (x * x + y * y))
    return rgb.mul_(wanted / mean * torch.exp2(stops) * tint).mul_(1.0 - corner)


def _blur(rgb: Tensor, draws: Draws, num_views: int) -> Tensor:
    """Blur each view by a Gaussian of its own width, at most a pixel or so."""
    sigma = draws.uniform(num_views, 1, low=0.2, high=0.75)
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=rgb.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum(-1, keepdim=True)
    # Shifted sums: convolutions with a kernel for each view run slower.
    for axis in (-1, -2):
        pad = (
            (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0) if axis == -1 else (0, 0, _BLUR_RADIUS, _BLUR_RADIUS)
        )
        padded = F.pad(rgb.flatten(0, 1), pad, mode="replicate").unflatten(0, rgb.shape[:2])
        rgb = torch.zeros_like(rgb)
        for shift in range(2 * _BLUR_RADIUS + 1):
            part = padded.narrow(axis, shift, rgb.shape[axis])
            rgb.addcmul_(part, kernel[:, :, shift, None, None, None])
    return rgb


@functools.lru_cache(maxsize=4)
def _noise_tile(device: torch.device) -> Tensor:
    draws = Draws(0, "noise tile", torch.zeros(1, dtype=torch.int64))
    return draws.normal(_NOISE_TILE, _NOISE_TILE)[0].to(device)


def _add_noise(rgb: Tensor, draws: Draws, num_views: int) -> Tensor:
    """Add noise that grows with the signal, cut from one tile at random places."""
    height, width = rgb.shape[-2:]
    tile = _noise_tile(rgb.device)
    corner = draws.integers(num_views, 3, 2, high=_NOISE_TILE)
    rows = (corner[..., 0, None] + torch.arange(height, device=rgb.device)) % _NOISE_TILE
    columns = (corner[..., 1, None] + torch.arange(width, device=rgb.device)) % _NOISE_TILE
    noise = tile[rows[..., :, None], columns[..., None, :]]
    level = draws.log_uniform(1, 1, 1, 1, low=0.002, high=0.03)
    return rgb.addcmul_(noise * level, (rgb.clamp(min=0.0) + 0.02).sqrt_())


@functools.lru_cache(maxsize=4)
def _cosine_matrix(device: torch.device) -> Tensor:
    """Return the orthonormal discrete cosine transform of eight samples, ``[8, 8]``."""
    k, n = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    matrix = torch.cos(math.pi * (2.0 * n + 1.0) * k / 16.0) * 0.5
    matrix[0] = math.sqrt(1.0 / 8.0)
    return matrix.to(device)


def _compress(srgb: Tensor, draws: Draws, num_views: int) -> Tensor:
    """Leave the traces of JPEG on some scenes: quantised 8 x 8 blocks of luminance and chroma."""
    is_jpeg = draws.chance(_JPEG_SHARE)
    quality = draws.uniform(1, 1, low=35.0, high=95.0)
    members = is_jpeg.nonzero().flatten()
    if not len(members):
        return srgb
    quality = quality[members]
    scale = torch.where(quality < 50.0, 50.0 / quality, 2.0 - quality / 50.0)
    height, width = srgb.shape[-2:]
    to_ycc = srgb.new_tensor(_TO_YCC)
    ycc = torch.einsum("ij,bvjyx->bviyx", to_ycc, srgb[members] * 255.0).flatten(0, 1)
    ycc = F.pad(ycc, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = ycc.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    matrix = _cosine_matrix(srgb.device)
    steps = srgb.new_tensor(_LUMINANCE_TABLE) * scale[..., None]  # [members, 1, 8, 8] below
    steps = steps.view(-1, 1, 1, 1, 1, 8, 8).clamp(min=1.0)
    frequencies = (matrix @ blocks @ matrix.T).unflatten(0, (len(members), num_views))
    # Chroma is quantised about twice as coarsely at low frequencies.
    coarse = srgb.new_tensor([1.0, 1.6, 1.6]).view(1, 1, 3, 1, 1, 1, 1)
    frequencies = (frequencies / (steps * coarse)).round_() * (steps * coarse)
    blocks = matrix.T @ frequencies @ matrix
    ycc = blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)[..., :height, :width]
    rgb = torch.einsum("ij,bvjyx->bviyx", to_ycc.inverse(), ycc) / 255.0
    return srgb.index_copy(0, members, rgb.clamp_(0.0, 1.0))
