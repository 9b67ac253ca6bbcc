# SPDX-License-Identifier: Apache-2.0
"""Scenes: repeatable, consistent among their views, varied, and apart from the held-out ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ns_sparseattn.geometry import (
    invert_rigid,
    pixel_centers,
    project,
    transform_points,
    unproject,
)
from training.cameras import PATHS, draw_cameras
from training.generator import Generator, GeneratorConfig
from training.overlap import measure_overlap
from training.scenes import KINDS, draw_world
from training.world import Views


def test_a_scene_depends_on_seed_and_index_alone(generator: Generator, views: Views) -> None:
    some = generator.views(torch.tensor([17, 3]), (48, 64))
    torch.testing.assert_close(some.cam_from_world, views.cam_from_world[[17, 3]])
    torch.testing.assert_close(some.depth, views.depth[[17, 3]], atol=1e-4, rtol=1e-5)
    # Colours are rounded to bytes, and sums may be taken in another order.
    difference = (some.images.int() - views.images[[17, 3]].int()).abs()
    assert float((difference > 1).float().mean()) < 1e-3
    other = Generator(generator.config, seed=12).views(torch.tensor([17]), (48, 64))
    assert not torch.equal(other.depth, some.depth[:1])


def test_everything_is_finite_and_photos_have_contrast(views: Views) -> None:
    assert views.images.dtype == torch.uint8
    assert bool(views.depth.isfinite().all())
    assert bool((views.depth >= 0).all())
    assert 0.8 < float(views.valid.float().mean()) <= 1.0
    spread = views.images.float().flatten(2).std(-1)
    assert float((spread > 8).float().mean()) > 0.95
    brightness = views.images.float().mean((1, 2, 3, 4))
    assert 40 < float(brightness.median()) < 190


def test_cameras_are_rigid_and_their_fields_of_view_are_in_range(views: Views) -> None:
    rotation = views.cam_from_world[..., :3]
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-4, rtol=0)
    assert bool((torch.linalg.det(rotation) > 0).all())
    fov_deg = torch.rad2deg(2 * torch.atan(32.0 / views.intrinsics[..., 0, 0]))
    # A zoom of 15 per cent widens the range of 35 to 90 degrees.
    assert float(fov_deg.min()) > 30
    assert float(fov_deg.max()) < 100
    assert float(fov_deg.max() - fov_deg.min()) > 40


def reprojection_errors(views: Views) -> Tensor:
    """Depth of the points of each view in the next, against that view's own depth where nearer."""
    height, width = views.depth.shape[-2:]
    pixels = pixel_centers(height, width, dtype=torch.float32)
    in_cam = unproject(pixels, views.depth[:, :-1], views.intrinsics[:, :-1, None, None])
    in_world = transform_points(
        invert_rigid(views.cam_from_world[:, :-1])[:, :, None, None], in_cam
    )
    other = transform_points(views.cam_from_world[:, 1:, None, None], in_world)
    pixel, depth = project(other, views.intrinsics[:, 1:, None, None])
    column, row = (pixel - 0.5).round().long().unbind(-1)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth > 0.05)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(2)
    surface = views.depth[:, 1:].flatten(2).gather(2, place).view(depth.shape)
    kept = is_inside & views.valid[:, :-1] & (surface > 0)
    return ((depth - surface) / surface)[kept]


def test_views_of_a_scene_agree_on_where_things_are(views: Views) -> None:
    errors = reprojection_errors(views)
    # A point is where the other view sees it, or hidden behind something. In front of what the
    # other view sees it can only be where half a pixel makes a difference: edges and steep planes.
    assert float((errors.abs() < 0.02).float().mean()) > 0.75
    assert float((errors < -0.05).float().mean()) < 0.04
    # The check would notice every other camera being a little off.
    moved = dataclasses.replace(views, cam_from_world=views.cam_from_world.clone())
    moved.cam_from_world[:, 1::2, :, 3] += 0.2
    assert float((reprojection_errors(moved).abs() < 0.02).float().mean()) < 0.55


def test_neighbours_on_a_path_share_what_they_see(views: Views) -> None:
    overlap = measure_overlap(views)
    index = torch.arange(views.depth.shape[1] - 1)
    neighbours = torch.minimum(overlap[:, index, index + 1], overlap[:, index + 1, index])
    assert float(neighbours.median()) > 0.5
    assert float((neighbours > 0.2).float().mean()) > 0.85


def test_all_kinds_of_scenes_and_paths_occur(generator: Generator) -> None:
    config = generator.config
    indices = torch.arange(400)
    world, stage = draw_world(11, "train", indices, config.slots, config.num_textures)
    shares = torch.bincount(stage.kind, minlength=len(KINDS)) / len(indices)
    assert float(shares.min()) > 0.07
    assert bool((world.objects.taper == 0).all())
    cameras = draw_cameras(11, "train", indices, stage, world.surroundings, 8)
    turned = cameras.cam_from_world[:, 0, 2, :3] * cameras.cam_from_world[:, -1, 2, :3]
    angle_deg = torch.rad2deg(turned.sum(-1).clamp(-1, 1).acos())
    assert len(PATHS) == 4
    assert float((angle_deg < 10).float().mean()) > 0.1
    assert float((angle_deg > 60).float().mean()) > 0.1
    # Inside the room, and never inside the ground.
    inside = cameras.centers - world.surroundings.shell_center[:, None]
    assert bool((inside.abs() < world.surroundings.shell_half[:, None]).all())


def test_held_out_scenes_have_other_shapes_and_numbers(generator: Generator) -> None:
    config, indices = generator.config, torch.arange(50)
    train = draw_world(11, "train", indices, config.slots, config.num_textures)
    held_out = draw_world(11, "held_out", indices, config.slots, config.num_textures)
    assert float(held_out[0].objects.taper.min()) >= 0.4
    assert not torch.equal(train[0].objects.center, held_out[0].objects.center)


def test_quality_changes_pictures_and_leaves_depth_alone(
    generator_config: GeneratorConfig, generator: Generator
) -> None:
    options = dataclasses.replace(
        generator_config.options, supersample=2, has_shadows=True, views_per_chunk=5, workers=2
    )
    better = Generator(dataclasses.replace(generator_config, options=options), seed=11)
    indices = torch.arange(6)
    plain, fine = (g.views(indices, (42, 28), 3) for g in (generator, better))
    torch.testing.assert_close(fine.depth, plain.depth, atol=1e-4, rtol=1e-4)
    difference = (fine.images.float() - plain.images.float()).abs().mean((1, 2, 3, 4))
    assert float(difference.min()) > 0.5
    assert float(difference.median()) < 30


@pytest.mark.gpu
def test_a_gpu_makes_the_same_scenes(generator_config: GeneratorConfig, views: Views) -> None:
    made = Generator(generator_config, seed=11, device="cuda").views(torch.arange(40), (48, 64))
    torch.testing.assert_close(
        made.cam_from_world.cpu(), views.cam_from_world, atol=1e-4, rtol=1e-4
    )
    close = (made.depth.cpu() - views.depth).abs() < 1e-2 * views.depth.clamp(min=0.1)
    assert float(close.float().mean()) > 0.99
