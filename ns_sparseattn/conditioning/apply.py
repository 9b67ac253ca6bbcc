# SPDX-License-Identifier: Apache-2.0
"""What is known holds in the scene, whatever the network made of it.

Given intrinsics and poses replace predicted ones, the predicted world is brought into the frame and
scale of the poses, and given depth replaces the predicted one where it is known.

Axes: ``F`` frames, ``H`` x ``W`` network pixels.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..frames.masks import name_some
from ..frames.types import Frames
from ..geometry import camera_centers, nearest_rotation
from ..options import SceneOptions
from ..prediction import Prediction
from ..scene.grouping import group_frames
from .depth_scale import DepthScale, find_depth_scale
from .known import Known

DOUBTFUL_OFFSET = 0.2
"""A note warns if the median predicted camera lies farther from its known place than this share of
the extent of the known cameras. Chosen: networks that see the scene are within a few per cent."""
DOUBTFUL_RATIO = 2.0
"""A note warns if known depth is this many times farther or nearer than what else is known says.
Chosen: networks that see the scene are within a few per cent, and wrong units, such as feet or
centimetres, differ by more."""
_SMALLEST_SPREAD = 1e-9
"""Cameras closer together than this, in their own unit, have no distance that could be compared."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """``known_from_predicted``: x_known = scale R x_predicted + t."""

    scale: float
    rotation: Tensor  # [3, 3] float64
    translation: Tensor  # [3] float64
    has_scale: bool
    """Whether the cameras' distances tell the scale; otherwise it is 1."""
    median_offset: float
    """Median distance of aligned cameras from the known ones, share of the latter's extent."""

    def move(self, cam_from_world: Tensor) -> Tensor:
        """Bring poses ``[F, 3, 4]`` from the predicted world into the known one."""
        centers = self.scale * camera_centers(cam_from_world) @ self.rotation.T + self.translation
        rotations = cam_from_world[..., :3] @ self.rotation.T
        return torch.cat([rotations, -(rotations @ centers.unsqueeze(-1))], dim=-1)


def align(
    predicted: Tensor,  # [F, 3, 4]
    known: Tensor,  # [F, 3, 4]
    *,
    scale: float = 1.0,
) -> Alignment:
    """Find the similarity that brings predicted cameras onto known ones.

    The rotation is the mean of what each camera says, so that two cameras are enough and cameras on
    a line, too; scale and translation are then the least squares over their centres.

    Args:
        predicted: ``cam_from_world`` of at least one camera.
        known: Those of the same cameras in the other world.
        scale: Scale to take if the cameras do not tell one.
    """
    predicted, known = predicted.double(), known.double()
    rotation = nearest_rotation((known[..., :3].mT @ predicted[..., :3]).sum(0))
    source, target = camera_centers(predicted) @ rotation.T, camera_centers(known)
    from_source, from_target = source - source.mean(0), target - target.mean(0)
    spread = float(from_source.square().sum())
    extent = float(from_target.norm(dim=-1).max())
    has_scale = spread > _SMALLEST_SPREAD**2 and extent > _SMALLEST_SPREAD
    if has_scale:
        scale = float((from_source * from_target).sum()) / spread
        if scale <= 0:
            # The prediction contradicts the poses; its extent is all that can be kept.
            scale = float(from_target.square().sum() / spread) ** 0.5
    translation = target.mean(0) - scale * source.mean(0)
    offset = (scale * source + translation - target).norm(dim=-1).median()
    return Alignment(
        scale=scale,
        rotation=rotation,
        translation=translation,
        has_scale=has_scale,
        median_offset=float(offset) / extent if has_scale else 0.0,
    )


def apply_known(
    prediction: Prediction, known: Known, photos: Frames, options: SceneOptions
) -> Prediction:
    """Let what is known hold in a prediction.

    Args:
        prediction: What the network predicted for the photos.
        known: What is known of them.
        photos: The photos, in the same order.
        options: How photos share cameras.

    Returns:
        The prediction in the frame and scale of the known poses; without any, in metres if some
        depth is known. Its notes say what does not fit.
    """
    notes = list(known.notes)
    if any(matrix is not None for matrix in known.intrinsics):
        prediction = _with_intrinsics(prediction, known, photos, options, notes)
    if known.posed:
        prediction = _with_poses(prediction, known, notes)
    if any(depth is not None for depth in known.depth):
        prediction = _with_depth(prediction, known, photos, options.depth_tolerance, notes)
    return replace(prediction, notes=(*prediction.notes, *notes))


def _with_intrinsics(
    prediction: Prediction, known: Known, photos: Frames, options: SceneOptions, notes: list[str]
) -> Prediction:
    """Replace intrinsics, also those of photos that share a camera with one whose are known."""
    intrinsics = prediction.intrinsics.clone()
    for members in group_frames(photos.frames, options.camera_mode):
        given = [matrix for i in members if (matrix := known.intrinsics[i]) is not None]
        if not given:
            continue
        shared = torch.stack(given).median(0).values
        if any(not torch.allclose(matrix, shared, rtol=1e-6) for matrix in given):
            names = [photos.frames[i].name for i in members]
            notes.append(
                f"Photos that are taken for those of one camera came with different intrinsics, "
                f"whose median is used: {name_some(names)}. --camera-mode per-image keeps each."
            )
        for index in members:
            pixel_map = photos.frames[index].pixel_map
            intrinsics[index] = pixel_map.intrinsics_to_network(shared).to(intrinsics)
    return replace(prediction, intrinsics=intrinsics)


def _with_poses(prediction: Prediction, known: Known, notes: list[str]) -> Prediction:
    """Bring the world into the frame and scale of the known poses, and take these."""
    poses = torch.stack([pose for pose in known.cam_from_world if pose is not None])
    posed = torch.tensor(known.posed)
    predicted = prediction.cam_from_world.double()
    is_usable = torch.isfinite(predicted[posed]).flatten(1).all(1)
    if not bool(is_usable.any()):
        notes.append("No photo with a known pose has a usable predicted one to align it with.")
        is_usable = torch.ones_like(is_usable)
        predicted = predicted.clone()
        predicted[posed] = poses
    metres = _metres(_depth_ratios(prediction, known)) if known.has_metric_poses else None
    aligned = align(predicted[posed][is_usable], poses[is_usable], scale=metres or 1.0)
    tells_metres = metres is not None or prediction.scale == "metric"
    if not aligned.has_scale and not (tells_metres and known.has_metric_poses):
        notes.append(
            "The known poses do not tell the scale, because no two of them stand apart; depth "
            "keeps the scale of the network."
        )
    if aligned.median_offset > DOUBTFUL_OFFSET:
        notes.append(
            "The network contradicts the known poses: its median camera lies "
            f"{100 * aligned.median_offset:.0f} per cent of their extent away; the points are "
            "doubtful."
        )
    moved = aligned.move(predicted)
    moved[posed] = poses
    return replace(
        prediction,
        cam_from_world=moved.to(prediction.cam_from_world),
        depth=prediction.depth * aligned.scale,
        scale="metric" if known.has_metric_poses else "relative",
    )


def _with_depth(
    prediction: Prediction, known: Known, photos: Frames, tolerance: float, notes: list[str]
) -> Prediction:
    """Take depth where it is known, with the confidence of the best pixels.

    The scene becomes metric, unless it has the scale of poses; then the depth takes that.
    """
    found = _depth_scale(prediction, known, tolerance)
    depth = prediction.depth.clone()
    confidence = prediction.confidence.clone()
    ratios = _depth_ratios(prediction, known)
    metres = _metres(ratios) or 1.0
    notes += _doubts({photos.frames[index].name: values for index, values in ratios.items()})
    has_scale_of_poses = bool(known.posed)
    poses = prediction.cam_from_world
    unit, scale = 1.0, prediction.scale
    if not has_scale_of_poses:
        depth *= metres
        poses = torch.cat([poses[..., :3], poses[..., 3:] * metres], dim=-1)
        scale = "metric"
    elif not known.has_metric_poses:
        # Metres of the depth in units of the poses: as views agree, else as the network says.
        unit = 1.0 / metres if found is None else found.factor
        depth *= metres * unit
    elif found is not None and found.is_better_than_one and _is_doubtful(found.factor):
        notes.append(
            "The known depth contradicts the known poses, which are said to be in metres: views "
            f"agree on it if it is multiplied by {found.factor:.2g}. Check --depth-unit and "
            "--metric-poses."
        )
    else:
        # Measured depth tells the scale of the rest better than the cameras' distances do.
        depth *= metres
    finite = confidence[torch.isfinite(confidence)]
    best = float(finite.max()) if finite.numel() else 1.0
    for index, given in enumerate(known.depth):
        if given is not None:
            depth[index] = torch.where(given > 0, given * unit, depth[index])
            confidence[index] = confidence[index].masked_fill(given > 0, best)
    if not ratios:
        notes.append("The network has no usable depth where some is known to compare it with.")
    return replace(
        prediction, cam_from_world=poses, depth=depth, confidence=confidence, scale=scale
    )


def _depth_ratios(prediction: Prediction, known: Known) -> dict[int, Tensor]:
    """Return known over predicted depth, by photo, where both are there."""
    ratios = {}
    for index, given in enumerate(known.depth):
        if given is not None:
            layer = prediction.depth[index]
            both = (given > 0) & torch.isfinite(layer) & (layer > 0)
            if bool(both.any()):
                ratios[index] = given[both] / layer[both]
    return ratios


def _metres(ratios: dict[int, Tensor]) -> float | None:
    """Return the metres of one unit of the network, if known depth tells."""
    return float(torch.cat(list(ratios.values())).median()) if ratios else None


def _depth_scale(prediction: Prediction, known: Known, tolerance: float) -> DepthScale | None:
    """Return what brings known depth into the unit of known poses, if the photos with both tell."""
    both = [
        (index, depth)
        for index, depth in enumerate(known.depth)
        if depth is not None and index in known.posed
    ]
    if len(both) < 2:
        return None
    indices = [index for index, _ in both]
    return find_depth_scale(
        prediction.cam_from_world[indices],
        prediction.intrinsics[indices],
        torch.stack([depth for _, depth in both]),
        tolerance=tolerance,
    )


def _doubts(ratios: dict[str, Tensor]) -> list[str]:
    """Say which known depth contradicts other depth, from known over predicted by photo."""
    medians = {name: float(values.median()) for name, values in ratios.items()}
    typical = statistics.median(medians.values()) if medians else 1.0
    odd = [name for name, ratio in medians.items() if _is_doubtful(ratio / typical)]
    if not odd:
        return []
    return [
        f"The known depth of {name_some(odd)} contradicts that of the other photos: beside what "
        f"the network sees it is more than {DOUBTFUL_RATIO:g} times as far or as near. Is all "
        "depth in one unit?"
    ]


def _is_doubtful(ratio: float) -> bool:
    return not 1 / DOUBTFUL_RATIO <= ratio <= DOUBTFUL_RATIO
