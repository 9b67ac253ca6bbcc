# SPDX-License-Identifier: Apache-2.0
"""Cameras between a scene and pycolmap: another camera model, poses and intrinsics read back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..geometry import camera_centers, nearest_rotation
from ..scene.types import PARAM_NAMES, Camera, CameraModel, Scene


def convert_cameras(scene: Scene, model: CameraModel, *, held: Collection[int] = ()) -> Scene:
    """Return the scene with its cameras in another model; parameters that are new are zero.

    Args:
        scene: The scene.
        model: COLMAP's name of the model.
        held: Ids of cameras that stay as they are.
    """
    cameras = tuple(
        camera if camera.camera_id in held else _convert(camera, model) for camera in scene.cameras
    )
    return replace(scene, cameras=cameras)


def with_cameras(scene: Scene, source: Scene, chosen: Collection[int]) -> Scene:
    """Return the scene with some cameras, by their id, as another scene has them."""
    theirs = {camera.camera_id: camera for camera in source.cameras}
    cameras = tuple(
        theirs[camera.camera_id] if camera.camera_id in chosen else camera
        for camera in scene.cameras
    )
    return replace(scene, cameras=cameras)


def with_poses(scene: Scene, poses: Mapping[int, Tensor]) -> Scene:
    """Return the scene with other poses ``[3, 4]`` for some images, by their number."""
    images = tuple(
        replace(image, cam_from_world=poses[index]) if index in poses else image
        for index, image in enumerate(scene.images)
    )
    return replace(scene, images=images)


def read_back(scene: Scene, reconstruction: Any) -> tuple[Scene, frozenset[int]]:
    """Return the scene with the cameras and poses of a reconstruction of its database.

    Returns:
        The scene, and the numbers of the images that the reconstruction has poses for.
    """
    cameras = tuple(
        replace(
            camera,
            model=reconstruction.camera(camera.camera_id).model.name,
            params=tuple(float(v) for v in reconstruction.camera(camera.camera_id).params),
        )
        if reconstruction.exists_camera(camera.camera_id)
        else camera
        for camera in scene.cameras
    )
    poses = {
        image_id - 1: torch.from_numpy(reconstruction.image(image_id).cam_from_world().matrix())
        for image_id in reconstruction.reg_image_ids()
    }
    return replace(with_poses(scene, poses), cameras=cameras), frozenset(poses)


def align(
    poses: Tensor,  # [F, 3, 4]
    reference: Tensor,  # [F, 3, 4]
) -> tuple[float, Tensor, Tensor]:
    """Find the similarity that brings poses to reference poses.

    The rotation comes from the cameras' rotations, so that cameras on a line, which leave a
    rotation about it open, are no special case. Medians keep single wrong poses from mattering.

    Args:
        poses: At least one.
        reference: Of the same cameras.

    Returns:
        Scale, rotation ``[3, 3]`` and translation ``[3]`` of reference_from_world.
    """
    # Wrong cameras vote for arbitrary rotations; dropping the farther half leaves the right ones.
    votes = reference[..., :3].transpose(-1, -2) @ poses[..., :3]
    pairwise = torch.linalg.matrix_norm(votes[:, None] - votes[None])
    center = pairwise.median(dim=1).values.argmin()
    near = pairwise[center] <= pairwise[center].median()
    rotation = nearest_rotation(votes[near].mean(0))
    source, target = camera_centers(poses), camera_centers(reference)
    source_spread = torch.cdist(source, source)
    target_spread = torch.cdist(target, target)
    is_pair = source_spread > 1e-12
    ratios = target_spread[is_pair] / source_spread[is_pair]
    scale = float(ratios.median()) if ratios.numel() else 1.0
    scale = scale if scale > 0 else 1.0
    translation = (target - scale * source @ rotation.T).median(dim=0).values
    return scale, rotation, translation


def transform_scene(scene: Scene, scale: float, rotation: Tensor, translation: Tensor) -> Scene:
    """Return a scene in another world; the similarity is new_from_old."""
    poses = {}
    for index, image in enumerate(scene.images):
        turned = image.cam_from_world[:, :3] @ rotation.T
        # x_cam = R x + t with x = R_s^T (x_new - t_s) / s, times s, so that depth scales, too.
        moved = scale * image.cam_from_world[:, 3] - turned @ translation
        poses[index] = torch.cat([turned, moved[:, None]], dim=1)
    points = replace(scene.points, xyz=scale * scene.points.xyz @ rotation.T + translation)
    return replace(with_poses(scene, poses), points=points)


def _convert(camera: Camera, model: CameraModel) -> Camera:
    if camera.model == model:
        return camera
    named = camera.named_params
    fx, fy = named.get("fx", named.get("f", 0.0)), named.get("fy", named.get("f", 0.0))
    known = {**named, "fx": fx, "fy": fy, "f": (fx + fy) / 2.0}
    params = tuple(known.get(name, 0.0) for name in PARAM_NAMES[model])
    return replace(camera, model=model, params=params)
