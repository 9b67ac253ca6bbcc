# SPDX-License-Identifier: Apache-2.0
"""A prediction becomes a scene: cameras, filters, multi-view agreement, tracks, colours.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns, ``P`` points.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ReconstructionError
from ..frames.types import Frames
from ..options import SceneOptions
from ..prediction import Prediction
from .cameras import SceneCameras, build_cameras
from .colours import ReadRgb, sample_colours
from .filters import Candidates, confidence_threshold, find_candidates, valid_depth
from .progress import Progress
from .summary import summarise_images
from .tracks import Tracks, count_views, lift, make_tracks
from .types import Points, PosedImage, Scene
from .views import make_views
from .voxel import thin_points

_logger = logging.getLogger(__name__)

_A_PAIR = 2
"""Views without which nothing is confirmed."""


def build_scene(
    prediction: Prediction,
    frames: Frames,
    options: SceneOptions,
    *,
    progress: Progress | None = None,
    read_rgb: ReadRgb | None = None,
) -> Scene:
    """Turn what a model predicted into a scene in original pixels.

    Points come from depth and the shared cameras. Those that other views confirm are fused and get
    tracks. If the views do not agree, unchecked points of single views are kept, and the scene's
    notes say so. The result is the same, bit for bit, for the same input and number of threads.

    Args:
        prediction: What the model predicted for these frames.
        frames: The photos, in the prediction's order.
        options: Filters and camera grouping.
        progress: Called as ``progress(stage, done, total)``.
        read_rgb: Reads the upright full-resolution photo of a frame;
            `ns_sparseattn.frames.read_rgb` if not given.

    Returns:
        The scene: one posed image per frame, in order, with at most `options.max_points` points.

    Raises:
        ValueError: If prediction and frames do not belong together, or photos of different sizes
            shall share a camera, or a photo has changed on disk.
        ReconstructionError: If no frame has a usable pose, or no pixel a usable depth.

    Example:
        >>> from ns_sparseattn.scene import build_scene, SceneOptions
        >>> from ns_sparseattn.testing.synthetic import exact_prediction, make_frames, make_plane
        >>> plane = make_plane(num_views=2, size=(64, 48))
        >>> frames = make_frames(plane, long_side=28)
        >>> prediction = exact_prediction(plane, frames)
        >>> options = SceneOptions(max_points=100)
        >>> scene = build_scene(prediction, frames, options, read_rgb=plane.read_rgb)
        >>> len(scene.images), len(scene.points) <= 100
        (2, True)
    """
    _check_match(prediction, frames)
    if read_rgb is None:
        from ..frames import read_rgb as read_rgb_from_disk

        read_rgb = read_rgb_from_disk
    cameras = build_cameras(prediction, frames.frames, options)
    depth = valid_depth(prediction, frames, cameras.is_posed)
    if not bool((depth > 0).any()):
        raise ReconstructionError(_no_depth_message(prediction, frames, cameras))
    tracked = _track(prediction, frames, depth, cameras, options, progress)
    tracks = tracked.tracks
    source, source_xy = _source_observations(tracks)
    points = Points(
        xyz=tracks.xyz,
        rgb=sample_colours(frames.frames, source, source_xy, read_rgb, progress),
        error=tracks.error,
        **_sorted_observations(tracks),
    )
    images = tuple(
        PosedImage(image_id=index + 1, name=frame.name, camera_id=camera_id, cam_from_world=pose)
        for index, (frame, camera_id, pose) in enumerate(
            zip(frames.frames, cameras.camera_ids, cameras.cam_from_world, strict=True)
        )
    )
    scene = Scene(
        cameras=cameras.cameras,
        images=images,
        points=points,
        summaries=summarise_images(prediction, depth, cameras, points, frames.names),
        notes=(*prediction.notes, *cameras.notes, *tracked.notes),
    )
    _logger.info(
        "Scene: %d cameras, %d images, %d points, %d observations.",
        len(scene.cameras),
        len(images),
        len(points),
        points.obs_point.shape[0],
    )
    return scene


@dataclass(frozen=True, kw_only=True)
class _Tracked:
    """Tracks, and what the user should know about them."""

    tracks: Tracks
    notes: tuple[str, ...]


def _track(
    prediction: Prediction,
    frames: Frames,
    depth: Tensor,  # [F, H, W]
    cameras: SceneCameras,
    options: SceneOptions,
    progress: Progress | None,
) -> _Tracked:
    """Find candidates, keep those that other views confirm, thin and fuse them."""
    threshold = confidence_threshold(prediction.confidence, depth, options.confidence_percentile)
    limit = max(round(options.candidates_per_point * options.max_points), options.min_candidates)
    candidates = find_candidates(
        prediction, depth, threshold, options, limit=limit, progress=progress
    )
    views = make_views(depth, frames, cameras)
    points = lift(candidates, cameras)
    num_views, difference = count_views(candidates, points, views, options, progress)
    agrees = num_views >= options.min_views
    share = float(agrees.double().mean()) if len(candidates) else 0.0
    _logger.info(
        "%d of %d candidates are seen by %d or more views.",
        int(agrees.sum()),
        len(candidates),
        options.min_views,
    )
    if int(agrees.sum()) >= options.min_agreeing_points:
        chosen = agrees.nonzero().flatten()
        kept = thin_points(
            points[chosen],
            max_points=options.max_points,
            track_length=num_views[chosen].clamp(max=options.max_track_length),
            error=difference[chosen],
        )
        chosen = chosen[kept]
        tracks = make_tracks(
            candidates.select(chosen), points[chosen], views, cameras, options, progress
        )
        # Rounding at the very border of a photo may cost single points, hardly ever all.
        if tracks.xyz.shape[0]:
            num_shared = int((num_views >= _A_PAIR).sum())
            notes = _agreement_notes(tracks, share, num_shared, len(frames), options)
            return _Tracked(tracks=tracks, notes=notes)
    return _unchecked(prediction, frames, depth, candidates, cameras, options, limit)


def _agreement_notes(
    tracks: Tracks, share: float, num_shared: int, num_frames: int, options: SceneOptions
) -> tuple[str, ...]:
    """Warn of few confirmed points and of cameras that hardly move."""
    notes = []
    if share < options.min_agreement_share:
        notes.append(
            f"Only {100 * share:.1f} per cent of the pixels tried are confirmed by another view; "
            "the geometry is doubtful."
        )
    is_shared = torch.bincount(tracks.obs_point, minlength=tracks.xyz.shape[0]) >= _A_PAIR
    if num_shared < options.min_agreeing_points or not bool(is_shared.any()):
        # Only reached when one view is enough for a point.
        return (*notes, _disagreement_note(num_frames, options))
    angle = float(tracks.angle_deg[is_shared].median())
    if angle < options.min_triangulation_angle_deg:
        notes.append(
            "The cameras hardly move compared with the depth (the median point is seen under "
            f"{angle:.2g} degrees): nothing can be triangulated, so the views cannot check depth."
        )
    return tuple(notes)


def _unchecked(
    prediction: Prediction,
    frames: Frames,
    depth: Tensor,  # [F, H, W]
    candidates: Candidates,
    cameras: SceneCameras,
    options: SceneOptions,
    limit: int,
) -> _Tracked:
    """Keep the most confident pixels of single views, for a look at what went wrong."""
    notes = [_disagreement_note(len(frames), options)]
    if not len(candidates):
        notes.append("All confident pixels lie on depth edges, so those are kept, too.")
        lowest = float(prediction.confidence[depth > 0].min())
        candidates = find_candidates(
            prediction, depth, lowest, options, limit=limit, keep_edges=True
        )
    num_kept = min(options.max_unchecked_points, options.max_points)
    best = candidates.confidence.sort(stable=True, descending=True).indices[:num_kept]
    candidates = candidates.select(best.sort().values)
    num_points = len(candidates)
    tracks = Tracks(
        candidate=torch.arange(num_points),
        xyz=lift(candidates, cameras),
        error=torch.zeros(num_points, dtype=torch.float64),
        angle_deg=torch.zeros(num_points, dtype=torch.float64),
        obs_point=torch.arange(num_points),
        obs_frame=candidates.frame,
        obs_xy=_to_original(candidates, frames),
    )
    return _Tracked(tracks=tracks, notes=tuple(notes))


def _to_original(candidates: Candidates, frames: Frames) -> Tensor:
    """Return the original pixels of candidates, ``[C, 2]`` float64."""
    maps = [frame.pixel_map for frame in frames.frames]
    scale = torch.tensor([pixel_map.scale for pixel_map in maps], dtype=torch.float64)
    shift = torch.tensor([pixel_map.shift for pixel_map in maps], dtype=torch.float64)
    return (candidates.pixel - shift[candidates.frame]) / scale[candidates.frame]


def _disagreement_note(num_frames: int, options: SceneOptions) -> str:
    """Say why points are unchecked."""
    kept = "the points are unchecked depth of single views."
    if num_frames == 1:
        return f"One photo alone: no second view can confirm its depth; {kept}"
    if options.min_views > num_frames:
        return f"`min_views` is {options.min_views}, but there are only {num_frames} photos; {kept}"
    who = "two views" if options.min_views <= 2 else f"{options.min_views} views"
    return (
        f"No {who} agree on {options.min_agreeing_points} points or more; "
        f"the geometry cannot be trusted, and {kept}"
    )


def _source_observations(tracks: Tracks) -> tuple[Tensor, Tensor]:
    """Return frame ``[P]`` and pixel ``[P, 2]`` of each point's source view, first in its track."""
    is_first = torch.ones_like(tracks.obs_point, dtype=torch.bool)
    is_first[1:] = tracks.obs_point[1:] != tracks.obs_point[:-1]
    return tracks.obs_frame[is_first], tracks.obs_xy[is_first]


def _sorted_observations(tracks: Tracks) -> dict[str, Tensor]:
    """Return the observations sorted by point, then by image."""
    num_frames = int(tracks.obs_frame.max()) + 1
    order = (tracks.obs_point * num_frames + tracks.obs_frame).sort(stable=True).indices
    return {
        "obs_point": tracks.obs_point[order],
        "obs_image": tracks.obs_frame[order],
        "obs_xy": tracks.obs_xy[order],
    }


def _check_match(prediction: Prediction, frames: Frames) -> None:
    """Raise ``ValueError`` unless the prediction has the frames' number and size."""
    width, height = frames.network_size
    expected = (len(frames), height, width)
    if tuple(prediction.depth.shape) != expected:
        raise ValueError(
            f"`prediction` must be of the frames given, with depth {list(expected)}, "
            f"got {list(prediction.depth.shape)}."
        )


def _no_depth_message(prediction: Prediction, frames: Frames, cameras: SceneCameras) -> str:
    """Say why no pixel has a usable depth, and what to try."""
    has_depth = torch.isfinite(prediction.depth) & (prediction.depth > 0)
    if frames.masks is not None and bool(has_depth.any()):
        in_photo = torch.stack([frame.pixel_map.valid_mask() for frame in frames.frames])
        usable = has_depth & in_photo & cameras.is_posed[:, None, None]
        if bool(usable.any()) and not bool((usable & frames.masks).any()):
            return (
                "The masks leave no pixel with a usable depth. In a mask, black means ignore: "
                "check that the masks are not inverted."
            )
    return (
        "The model predicted no usable depth: no pixel of the photos has a finite positive depth "
        "and a finite confidence. Check the weights, and try full precision (float32)."
    )
