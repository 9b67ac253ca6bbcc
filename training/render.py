# SPDX-License-Identifier: Apache-2.0
"""Photos and exact depth of a batch of scenes, all views at once.

Axes: ``B`` scenes, ``V`` views, ``N`` views of a chunk, ``S`` slots, ``P = N H W`` pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.intersect import Rays, first_hits, sum_of_products
from training.textures import TextureBank
from training.world import Cameras, Slots, Surroundings, World

_SHADOW_BIAS_M = 2e-3
_MIN_COSINE = 0.08
"""At grazing angles a sample stands for at most ``1 / _MIN_COSINE`` times its width."""
_STAIN_STRIDE = 17
_STAIN_SCALE = 0.23
_STAIN_RANGE = (0.5, 1.5)
"""Factors of colours where the stain is black and where it is white."""
_SKY = ((0.45, 0.62, 0.9), (0.85, 0.88, 0.92))
"""Colour overhead and at the horizon, linear RGB."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How photos are made."""

    supersample: int = 1
    """Samples of a pixel along each side."""
    has_shadows: bool = False
    """Whether objects shade each other from the lamp."""
    views_per_chunk: int = 2
    """Views rendered together: on a CPU few, whose arrays stay in the cache, on a GPU many."""
    workers: int = 1
    """Chunks rendered side by side. Chunks of two small views are too little for torch to share
    among cores."""


def render(
    world: World,
    cameras: Cameras,
    bank: TextureBank,
    size: tuple[int, int],
    slots: Slots,
    options: RenderOptions,
) -> tuple[Tensor, Tensor]:
    """Render all views.

    Args:
        world: ``B`` scenes.
        cameras: ``[B, V]`` cameras; none inside an object.
        bank: Textures.
        size: Height and width.
        slots: Of the scenes.
        options: Quality and chunks.

    Returns:
        Linear RGB ``[B, V, 3, H, W]``, not clipped, and z-depth at the pixel centres ``[B, V, H,
        W]``, zero for the sky.
    """
    num_scenes, num_views = cameras.focal.shape
    scene = torch.arange(num_scenes, device=bank.device).repeat_interleave(num_views)
    focal = cameras.focal.flatten() * max(size)
    poses = cameras.cam_from_world.flatten(0, 1)

    def render_chunk(members: Tensor) -> tuple[Tensor, Tensor]:
        chunk = world.take(scene[members])
        return _render_chunk(chunk, poses[members], focal[members], bank, size, slots, options)

    chunks = torch.arange(len(scene), device=bank.device).split(options.views_per_chunk)
    if options.workers > 1:
        with ThreadPoolExecutor(max_workers=options.workers) as pool:
            parts = list(pool.map(render_chunk, chunks))
    else:
        parts = [render_chunk(members) for members in chunks]
    rgb, depth = zip(*parts, strict=True)
    shape = (num_scenes, num_views)
    return torch.cat(rgb).unflatten(0, shape), torch.cat(depth).unflatten(0, shape)


def _make_rays(poses: Tensor, focal: Tensor, size: tuple[int, int], samples: int) -> Rays:
    height, width = size
    x, y = (
        (torch.arange(side * samples, device=focal.device) + 0.5) / samples - side / 2.0
        for side in (width, height)
    )
    return Rays(columns=x / focal[:, None], rows=y / focal[:, None], cam_from_world=poses)


def _render_chunk(
    world: World,
    poses: Tensor,
    focal: Tensor,
    bank: TextureBank,
    size: tuple[int, int],
    slots: Slots,
    options: RenderOptions,
) -> tuple[Tensor, Tensor]:
    samples = options.supersample
    rays = _make_rays(poses, focal, size, samples)
    hits = first_hits(rays, world.objects, world.surroundings, slots)
    rgb = _shade(world, rays, *hits, focal * samples, bank, slots, options)
    if samples > 1:
        rgb = F.avg_pool2d(rgb.clamp(max=1.0), samples)
        rays = _make_rays(poses, focal, size, 1)
        hits = first_hits(rays, world.objects, world.surroundings, slots)
    depth, slot = hits
    is_sky = _is_sky(world, rays, depth, slot, slots)
    return rgb, torch.where(is_sky, 0.0, depth)


def _is_sky(world: World, rays: Rays, depth: Tensor, slot: Tensor, slots: Slots) -> Tensor:
    """Return where an open shell is met above its floor."""
    identity = torch.eye(3, device=depth.device).expand(len(depth), 3, 3)
    height = rays.origins[:, 2, None, None] + depth * rays.directions(identity)[2]
    is_above = height > 1e-3 * world.surroundings.shell_half[:, 2, None, None]
    is_shell = (slot == slots.shell) & world.surroundings.is_open[:, None, None]
    # Where there are waves, the floor of the shell lies below them and is never ground.
    return is_shell & (is_above | world.surroundings.has_terrain[:, None, None])


def _slot_table(world: World, slots: Slots) -> Tensor:
    """Return what shading needs to know of each slot, ``[N, S, 26]``."""
    objects, around = world.objects, world.surroundings
    identity = torch.eye(3, device=around.lamp.device).expand(len(around.lamp), 1, 3, 3)
    turn = torch.cat([objects.world_from_object, identity, identity], dim=1).flatten(2)
    origin = around.shell_center[:, None]
    center = torch.cat([objects.center, origin, origin], dim=1)
    extent = around.shell_half[:, None]
    half = torch.cat([objects.half, extent, extent], dim=1)
    flat = torch.zeros_like(objects.taper[:, :2])
    taper = torch.cat([objects.taper, flat], dim=1)
    looks = world.looks
    scalars = torch.stack([taper, looks.texture.float(), looks.metres, looks.gloss], dim=-1)
    return torch.cat([turn, center, half, scalars, looks.shift, looks.gain, looks.offset], dim=-1)


def _shade(
    world: World,
    rays: Rays,
    depth: Tensor,
    slot: Tensor,
    focal: Tensor,
    bank: TextureBank,
    slots: Slots,
    options: RenderOptions,
) -> Tensor:
    """Return linear RGB ``[N, 3, H, W]`` of what rays meet."""
    num_views, around = len(depth), world.surroundings
    view = torch.arange(num_views, device=depth.device)
    row = (view[:, None, None] * slots.total + slot).flatten()
    table = _slot_table(world, slots).flatten(0, 1).index_select(0, row).T.contiguous()
    turn, center, half = table[:9], table[9:12], table[12:15]
    taper, texture, metres, gloss = table[15:19]
    shift, gain, offset = table[19:21], table[21:24], table[24:27]

    identity = torch.eye(3, device=depth.device).expand(num_views, 3, 3)
    direction = [d.flatten() for d in rays.directions(identity)]
    pixels = depth[0].numel()

    def per_pixel(values: Tensor) -> Tensor:  # [N] to [P]
        return values[:, None].expand(-1, pixels).reshape(-1)

    z = depth.flatten()
    point = [per_pixel(rays.origins[:, i]) + z * direction[i] for i in range(3)]
    away = [point[i] - center[i] for i in range(3)]
    # Rows of the rotation are world axes: its transpose brings points into the object's frame.
    local = [turn[i] * away[0] + turn[3 + i] * away[1] + turn[6 + i] * away[2] for i in range(3)]
    normal = _local_normals(local, half, taper, slot.flatten(), slots)
    uv = _surface_coordinates(local, normal)
    world_normal = [
        sum_of_products(tuple(turn[3 * i : 3 * i + 3]), tuple(normal)) for i in range(3)
    ]
    world_normal = _with_terrain(world_normal, point, slot.flatten(), around, slots, pixels)
    facing = sum_of_products(tuple(world_normal), tuple(direction))
    length = sum_of_products(tuple(direction), tuple(direction)).sqrt_()
    flip = -facing.sign()
    cosine = (facing.abs() / length).clamp_(min=_MIN_COSINE)
    footprint = z * length / per_pixel(focal) / cosine.sqrt() / metres
    place = torch.stack([uv[0] / metres + shift[0], uv[1] / metres + shift[1]], dim=-1)
    colour = bank.sample(texture.long(), place, footprint).T * gain + offset
    # Stains: another texture, much larger, makes places of a repeated pattern different.
    other = (texture.long() * _STAIN_STRIDE + 1) % bank.num_textures
    stain = bank.sample(other, _STAIN_SCALE * place.flip(-1), _STAIN_SCALE * footprint).mean(-1)
    colour = colour * (_STAIN_RANGE[0] + (_STAIN_RANGE[1] - _STAIN_RANGE[0]) * stain)

    to_lamp = [per_pixel(around.lamp[:, i]) - point[i] for i in range(3)]
    lamp_distance = sum_of_products(tuple(to_lamp), tuple(to_lamp)).sqrt_().clamp_(min=1e-3)
    lit = flip * sum_of_products(tuple(world_normal), tuple(to_lamp)) / lamp_distance
    lit = lit.clamp_(min=0.0)
    if options.has_shadows:
        lit = lit * _unshaded(world, point, world_normal, flip, slots, depth.shape)
    strength = per_pixel(around.lamp_strength)
    # A soft fill from above gives faces different tones also where the lamp does not reach.
    fill = per_pixel(around.ambient) * (0.8 + 0.2 * flip * world_normal[2])
    half_way = [to_lamp[i] / lamp_distance - direction[i] / length for i in range(3)]
    half_length = sum_of_products(tuple(half_way), tuple(half_way)).sqrt_().clamp_(min=1e-3)
    mirror = flip * sum_of_products(tuple(world_normal), tuple(half_way)) / half_length
    # Exponent 24 of Blinn and Phong's reflection, by squaring.
    eighth = mirror.clamp_(min=0.0).square_().square_().square_()
    highlight = gloss * strength * eighth * eighth.square()
    rgb = colour * (fill + strength * lit) + highlight
    rgb = rgb.unflatten(1, depth.shape).transpose(0, 1)
    return _with_sky(rgb, world, rays, depth, slot, direction[2].view_as(depth), length, slots)


def _local_normals(
    local: list[Tensor], half: Tensor, taper: Tensor, slot: Tensor, slots: Slots
) -> list[Tensor]:
    """Return normals ``3 x [P]`` in the object's frame; of either sign for the shell."""
    unit = [local[i] / half[i] for i in range(3)]
    size = [u.abs() for u in unit]
    is_x = (size[0] >= size[1]) & (size[0] >= size[2])
    is_y = ~is_x & (size[1] >= size[2])
    is_round = (slot >= slots.boxes) & (slot < slots.objects)
    is_cylinder = is_round & (slot >= slots.boxes + slots.ellipsoids)
    round_normal = [unit[i] / half[i] for i in range(3)]
    radius = 1.0 - 0.5 * taper * (unit[2] + 1.0)
    # The side of a cone leans: the derivative of the radius with height.
    round_normal[2] = torch.where(is_cylinder, 0.5 * taper * radius / half[2], round_normal[2])
    squared = sum_of_products(tuple(round_normal), tuple(round_normal))
    inverse = squared.clamp_(min=1e-12).rsqrt_()
    is_cap = is_cylinder & (size[2] > 1.0 - 1e-4)
    is_flat = ~is_round | is_cap
    faces = [is_x & ~is_cap, is_y & ~is_cap, ~(is_x | is_y) | is_cap]
    return [
        torch.where(is_flat, unit[i].sign() * faces[i], round_normal[i] * inverse) for i in range(3)
    ]


def _surface_coordinates(local: list[Tensor], normal: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Project points along the axis that their normal is closest to; metres.

    Faces of different axes are shifted apart, so that they do not show the same place of a texture.
    """
    size = [n.abs() for n in normal]
    is_x = (size[0] >= size[1]) & (size[0] >= size[2])
    is_z = ~is_x & (size[2] >= size[1])
    u = torch.where(is_x, local[1] + 3.7, local[0])
    v = torch.where(is_z, local[1] + 1.9, local[2])
    # Opposite faces, too.
    side = torch.where(is_x, normal[0], torch.where(is_z, normal[2], normal[1])).sign()
    return u + 5.3 * side, v


def _with_terrain(
    normal: list[Tensor],
    point: list[Tensor],
    slot: Tensor,
    around: Surroundings,
    slots: Slots,
    pixels: int,
) -> list[Tensor]:
    """Replace the normals of pixels that see waves."""
    members = (slot == slots.terrain).nonzero().flatten()
    if not len(members):
        return normal
    view = members // pixels
    place = torch.stack([point[0][members], point[1][members]], dim=-1)
    vector = around.wave_vector[view]
    angle = (place[:, None] * vector).sum(-1) + around.wave_phase[view]
    slope = ((around.wave_height[view] * angle.cos())[..., None] * vector).sum(1)
    up = F.normalize(torch.cat([-slope, torch.ones_like(slope[:, :1])], dim=-1), dim=-1)
    return [normal[i].index_copy(0, members, up[:, i]) for i in range(3)]


def _unshaded(
    world: World,
    point: list[Tensor],
    normal: list[Tensor],
    flip: Tensor,
    slots: Slots,
    shape: torch.Size,
) -> Tensor:
    """Return 0 where an object stands between a point and the lamp, else 1, ``[P]``.

    Boxes and cylinders shade as they are, without regard to tapers; the shell and waves do not.
    """
    objects, lamp = world.objects, world.surroundings.lamp
    start = [(point[i] + _SHADOW_BIAS_M * flip * normal[i]).view(shape) for i in range(3)]
    unit_from_world = objects.world_from_object.transpose(-1, -2) / objects.half[..., None]
    dark = torch.zeros(shape, dtype=torch.bool, device=lamp.device)
    for k in range(slots.objects):
        matrix, center = (
            unit_from_world[:, k, :, :, None, None],
            objects.center[:, k, :, None, None],
        )
        away = [start[i] - center[:, i] for i in range(3)]
        to_lamp = [lamp[:, i, None, None] - start[i] for i in range(3)]
        o, d = (
            [
                matrix[:, i, 0] * v[0] + matrix[:, i, 1] * v[1] + matrix[:, i, 2] * v[2]
                for i in range(3)
            ]
            for v in (away, to_lamp)
        )
        if k < slots.boxes:
            is_hit = _crosses_box(o, d)
        elif k < slots.boxes + slots.ellipsoids:
            is_hit = _crosses_ball(o, d)
        else:
            is_hit = _crosses_ball([o[0], o[1], 0.0 * o[2]], [d[0], d[1], 0.0 * d[2]])
            is_hit = is_hit & _crosses_box(o, d)
        dark |= is_hit & objects.is_there[:, k, None, None]
    return (~dark).float().flatten()


def _crosses_box(o: list[Tensor], d: list[Tensor]) -> Tensor:
    """Return whether segments ``o + t d``, 0 < t < 1, pass through the cube from -1 to 1."""
    enter, leave = torch.zeros_like(o[0]), torch.ones_like(o[0])
    for i in range(3):
        inverse = d[i].reciprocal()
        middle, reach = -o[i] * inverse, inverse.abs()
        enter, leave = torch.maximum(enter, middle - reach), torch.minimum(leave, middle + reach)
    return enter < leave


def _crosses_ball(o: list[Tensor], d: list[Tensor]) -> Tensor:
    """Return whether segments come within the unit ball: their nearest point to the middle does."""
    squared = sum_of_products(tuple(d), tuple(d)).clamp(min=1e-12)
    t = (-sum_of_products(tuple(o), tuple(d)) / squared).clamp_(0.0, 1.0)
    nearest = [o[i] + t * d[i] for i in range(3)]
    return sum_of_products(tuple(nearest), tuple(nearest)) < 1.0


def _with_sky(
    rgb: Tensor,
    world: World,
    rays: Rays,
    depth: Tensor,
    slot: Tensor,
    rise: Tensor,
    length: Tensor,
    slots: Slots,
) -> Tensor:
    """Paint the sky from the horizon upwards."""
    if not bool(world.surroundings.is_open.any()):
        return rgb
    is_sky = _is_sky(world, rays, depth, slot, slots)
    upward = (rise / length.view_as(rise)).clamp(0.0, 1.0).sqrt()[:, None]
    overhead, horizon = (rgb.new_tensor(c).view(1, 3, 1, 1) for c in _SKY)
    return torch.where(is_sky[:, None], torch.lerp(horizon, overhead, upward), rgb)


def clear_cameras(world: World, cameras: Cameras, margin: float = 0.15) -> World:
    """Return the scenes without the objects that a camera would be in, or all but touch.

    Args:
        world: The scenes.
        cameras: Their cameras.
        margin: How near a camera may come, in units of the object's half sizes and in metres.
    """
    objects = world.objects
    away = cameras.centers[:, :, None] - objects.center[:, None]  # [B, V, K, 3]
    rotation = objects.world_from_object[:, None]
    local = (rotation.transpose(-1, -2) @ away[..., None])[..., 0]
    reach = objects.half[:, None] * (1.0 + margin) + margin
    is_inside = (local.abs() < reach).all(-1).any(1)
    kept = type(objects)(
        center=objects.center,
        world_from_object=objects.world_from_object,
        half=objects.half,
        taper=objects.taper,
        is_there=objects.is_there & ~is_inside,
    )
    return World(objects=kept, surroundings=world.surroundings, looks=world.looks)
