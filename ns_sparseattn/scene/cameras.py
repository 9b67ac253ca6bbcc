# SPDX-License-Identifier: Apache-2.0
"""Predicted cameras become those of the scene: grouped, in original pixels, with usable poses.

Axes: ``F`` frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ReconstructionError
from ..frames.types import Frame
from ..geometry import camera_centers, nearest_rotation
from ..options import SceneOptions
from ..prediction import Prediction
from .grouping import group_frames
from .intrinsics import intrinsics_in_original, share_camera
from .types import Camera


@dataclass(frozen=True, kw_only=True)
class SceneCameras:
    """The cameras of all frames, as the scene will hold them."""

    cameras: tuple[Camera, ...]
    camera_ids: tuple[int, ...]
    """Camera of each frame."""
    cam_from_world: Tensor  # [F, 3, 4] float64
    is_posed: Tensor  # [F] bool
    """False where the predicted pose was no pose and another frame's stands in for it."""
    original_intrinsics: Tensor  # [F, 3, 3] float64
    network_intrinsics: Tensor  # [F, 3, 3] float64
    """The shared cameras seen through each frame's pixel map."""
    image_notes: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @property
    def centers(self) -> Tensor:
        """Camera centres in the world, ``[F, 3]``."""
        return camera_centers(self.cam_from_world)


def build_cameras(
    prediction: Prediction, frames: tuple[Frame, ...], options: SceneOptions
) -> SceneCameras:
    """Group the frames into physical cameras and clean their intrinsics and poses.

    Args:
        prediction: What the model predicted for these frames.
        frames: The photos, in the prediction's order.
        options: Grouping, camera type and plausibility bounds.

    Raises:
        ValueError: If the camera mode puts photos of different sizes into one camera.
        ReconstructionError: If no frame has a usable pose.
    """
    predicted = intrinsics_in_original(prediction.intrinsics, frames)
    cameras: list[Camera] = []
    camera_ids = [0] * len(frames)
    focal_notes: dict[int, str] = {}
    for members in group_frames(frames, options.camera_mode):
        camera, notes = share_camera(len(cameras) + 1, members, frames, predicted, options)
        cameras.append(camera)
        focal_notes.update(notes)
        for index in members:
            camera_ids[index] = camera.camera_id
    cam_from_world, is_posed, pose_notes = clean_poses(prediction.cam_from_world, frames, options)
    original = torch.stack([cameras[camera_id - 1].intrinsics for camera_id in camera_ids])
    network = torch.stack(
        [
            frame.pixel_map.intrinsics_to_network(matrix)
            for frame, matrix in zip(frames, original, strict=True)
        ]
    )
    return SceneCameras(
        cameras=tuple(cameras),
        camera_ids=tuple(camera_ids),
        cam_from_world=cam_from_world,
        is_posed=is_posed,
        original_intrinsics=original,
        network_intrinsics=network,
        image_notes=tuple(
            tuple(notes[index] for notes in (pose_notes, focal_notes) if index in notes)
            for index in range(len(frames))
        ),
        notes=_summarise(len(frames), len(focal_notes), len(pose_notes)),
    )


def clean_poses(
    cam_from_world: Tensor,  # [F, 3, 4]
    frames: tuple[Frame, ...],
    options: SceneOptions,
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Turn predicted transforms into rigid ones.

    Matrices close to a rotation are projected onto it. A transform that is not finite or far from
    rigid is replaced by that of the nearest frame before it that has one, else of the first frame
    that has one.

    Args:
        cam_from_world: The predicted transforms.
        frames: The photos, for the notes.
        options: Hold the tolerance.

    Returns:
        The poses ``[F, 3, 4]`` float64, whether each one is the frame's own ``[F]``, and a sentence
        for each that is not.

    Raises:
        ReconstructionError: If no frame has a usable pose.
    """
    matrices = cam_from_world.double()
    is_finite = torch.isfinite(matrices).all(-1).all(-1)
    identity = torch.eye(3, 4, dtype=torch.float64)
    matrices = torch.where(is_finite[:, None, None], matrices, identity)
    rotations = nearest_rotation(matrices[..., :3])
    error = torch.linalg.matrix_norm(rotations - matrices[..., :3])
    is_posed = is_finite & (error <= options.rotation_tolerance)
    if not bool(is_posed.any()):
        raise ReconstructionError(
            "The model predicted no usable camera pose: none of the "
            f"{len(frames)} transforms is finite and rigid. Check the weights, and try full "
            "precision (float32)."
        )
    first = int(is_posed.nonzero()[0])
    last_posed, source = first, []
    for index, posed in enumerate(is_posed.tolist()):
        last_posed = index if posed else last_posed
        source.append(last_posed)
    poses = torch.cat([rotations, matrices[..., 3:]], dim=-1)[source]
    notes = {
        index: (
            f"The predicted pose is {'no rigid transform' if is_finite[index] else 'not finite'}; "
            f"that of {frames[source[index]].name} stands in for it, and the photo makes no points."
        )
        for index in (~is_posed).nonzero().flatten().tolist()
    }
    return poses, is_posed, notes


def _summarise(num_frames: int, num_focals: int, num_poses: int) -> tuple[str, ...]:
    """Say how many intrinsics and poses were replaced."""
    notes = []
    if num_poses:
        notes.append(
            f"{num_poses} of {num_frames} photos have no usable predicted pose; another photo's "
            "stands in for it."
        )
    if num_focals:
        notes.append(
            f"{num_focals} of {num_frames} photos have an implausible predicted focal length, "
            "which was replaced."
        )
    return tuple(notes)
