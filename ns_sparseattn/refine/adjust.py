# SPDX-License-Identifier: Apache-2.0
"""Triangulate with given poses, then adjust poses, intrinsics and points: round by round.

The first round takes tracks whose rays miss each other by many degrees, as those of predicted poses
do, and a robust loss; each round after it is stricter. Every step is kept only if it lowers the
median reprojection error and no image loses its points.

Axes: ``F`` frames.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..export.colmap import import_pycolmap
from ..geometry import camera_centers
from ..scene.types import Scene
from .cameras import align
from .database import open_database
from .features import num_threads
from .given import Given, Held
from .options import RefineOptions, Round
from .pairs import scene_extent

_logger = logging.getLogger(__name__)

_MIN_PRIORS = 3
"""Positions that a similarity needs, by which pycolmap aligns a model with its priors."""

_MAX_POINT_ITERATIONS = 2
"""Of an adjustment that moves points alone, each of which is a small problem of its own."""

_MIN_GAUGE = 2
"""Held poses that leave neither place nor scale of a scene open."""

_MAX_ITERATIONS = 100
"""Of one adjustment: COLMAP's default."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one round did."""

    num_images: int
    """Images that see enough points to be adjusted."""
    num_points: int
    error_before_px: float
    """Median reprojection error of the triangulated points."""
    error_after_px: float
    """The same after the adjustment."""
    is_kept: bool

    @property
    def error_px(self) -> float:
        """Median reprojection error that the round left."""
        return self.error_after_px if self.is_kept else self.error_before_px


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pycolmap reconstruction over a database's matches. Its contents change in place."""

    reconstruction: Any
    graph: Any
    manager: Any
    prior_centers: NDArray[np.float64]  # [F, 3]
    prior_sigmas: NDArray[np.float64]  # [F]
    """Standard deviations of the prior centres, world units."""
    held: Held
    """Poses and cameras that no adjustment touches."""
    held_out: set[int]
    """Images that the prior says nothing about, because they were found to stand elsewhere."""

    @property
    def image_ids(self) -> list[int]:
        """Ids of the images that have a pose, sorted."""
        return sorted(self.reconstruction.reg_image_ids())

    def median_error(self) -> float:
        """Return the median reprojection error of the points, pixels; infinity without any."""
        self.reconstruction.update_point_3d_errors()
        errors = [point.error for point in self.reconstruction.points3D.values()]
        return float(np.median(errors)) if errors else float("inf")

    def num_observations(self, image_id: int) -> int:
        """Return how many triangulated points an image sees."""
        return int(self.manager.num_observations(image_id))


def load_model(
    database_path: Path,
    scene: Scene,
    options: RefineOptions,
    *,
    given: Given,
    held: Held,
    left_out: Collection[int],
) -> Model:
    """Put the poses of a scene over the matches of its database.

    Args:
        database_path: Holds verified matches; camera models are the scene's.
        scene: Cameras and poses, by which later rounds are weakly held.
        options: Hold the weight of these poses.
        given: Images whose poses are known.
        held: Poses and cameras that no adjustment may touch.
        left_out: Numbers of images that get no pose.
    """
    pycolmap = import_pycolmap()
    with open_database(database_path) as database:
        settings = pycolmap.DatabaseCacheOptions()
        settings.min_num_matches = options.audit.min_pair_matches
        cache = pycolmap.DatabaseCache.create(database, settings)
    reconstruction = pycolmap.Reconstruction()
    reconstruction.load(cache)
    for camera in scene.cameras:
        if reconstruction.exists_camera(camera.camera_id):
            reconstruction.camera(camera.camera_id).params = list(camera.params)
    manager = pycolmap.ObservationManager(reconstruction, cache.correspondence_graph)
    centers = camera_centers(torch.stack([image.cam_from_world for image in scene.images]))
    trusted = [index for index in range(len(scene.images)) if index not in set(left_out)]
    extent = scene_extent(centers[trusted])
    sigmas = np.full(len(scene.images), options.prior_position_share * (extent or 1.0))
    if options.known_position_sigma is not None:
        sigmas[sorted(given.poses)] = options.known_position_sigma
    model = Model(
        reconstruction=reconstruction,
        graph=cache.correspondence_graph,
        manager=manager,
        prior_centers=centers.numpy(),
        prior_sigmas=sigmas,
        held=held,
        held_out=set(left_out),
    )
    for index in trusted:
        place(model, index, scene.images[index].cam_from_world.numpy())
    return model


def place(model: Model, index: int, cam_from_world: NDArray[np.float64]) -> bool:
    """Give an image a pose; returns false if the database has no matches of it."""
    pycolmap = import_pycolmap()
    reconstruction = model.reconstruction
    if not reconstruction.exists_image(index + 1):
        return False
    image = reconstruction.image(index + 1)
    image.frame.set_cam_from_world(image.camera_id, pycolmap.Rigid3d(cam_from_world))
    if not reconstruction.frame(image.frame_id).has_pose or index + 1 not in model.image_ids:
        reconstruction.register_frame(image.frame_id)
    return True


def run_round(model: Model, settings: Round, options: RefineOptions) -> Step:
    """Triangulate anew with the poses as they are, then adjust; undo the adjustment if worse."""
    triangulate(model, settings, options, has_long_tracks=settings.refine_distortion)
    if settings.points_per_image is not None:
        _thin(model, settings.points_per_image)
    minimum = options.min_image_observations
    seen = {i for i in model.image_ids if model.num_observations(i) >= minimum}
    before = model.median_error()
    if len(seen) < 2:
        return Step(
            num_images=len(seen),
            num_points=model.reconstruction.num_points3D(),
            error_before_px=before,
            error_after_px=before,
            is_kept=False,
        )
    backup = _save(model)
    is_usable = _adjust(model, seen, settings, options)
    after = model.median_error()
    model.manager.filter_all_points3D(settings.max_error_px, options.min_track_angle_deg)
    lost = [i for i in seen if model.num_observations(i) < minimum]
    is_kept = is_usable and after <= before and not lost
    if not is_kept:
        _restore(model, backup)
        triangulate(model, settings, options, has_long_tracks=settings.refine_distortion)
    step = Step(
        num_images=len(seen),
        num_points=model.reconstruction.num_points3D(),
        error_before_px=before,
        error_after_px=after,
        is_kept=is_kept,
    )
    _logger.info("Adjustment: %s", step)
    return step


def finish(model: Model, settings: Round, options: RefineOptions) -> None:
    """Triangulate all tracks with the adjusted cameras, and move the points to where they fit best.

    The adjustments may have looked at some of the tracks only.
    """
    triangulate(model, settings, options)
    pycolmap = import_pycolmap()
    reconstruction = model.reconstruction
    if not reconstruction.num_points3D():
        return
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.image_ids:
        config.add_image(image_id)
        config.set_constant_rig_from_world_pose(reconstruction.image(image_id).frame_id)
    for camera_id in reconstruction.cameras:
        config.set_constant_cam_intrinsics(camera_id)
    adjustment = _adjustment_options(settings, options)
    adjustment.ceres.solver_options.max_num_iterations = _MAX_POINT_ITERATIONS
    pycolmap.create_default_bundle_adjuster(adjustment, config, reconstruction).solve()
    model.manager.filter_all_points3D(settings.max_error_px, options.min_track_angle_deg)
    model.manager.filter_observations_with_negative_depth()


def triangulate(
    model: Model, settings: Round, options: RefineOptions, *, has_long_tracks: bool = True
) -> None:
    """Replace all points by tracks triangulated with the poses as they are.

    Args:
        model: Poses and matches; changed in place.
        settings: Thresholds.
        options: Threads, smallest angle.
        has_long_tracks: Join tracks of one point, which poses that are far off do not allow yet.
    """
    pycolmap = import_pycolmap()
    reconstruction, manager = model.reconstruction, model.manager
    for point_id in list(reconstruction.point3D_ids()):
        manager.delete_point3D(point_id)
    triangulator = pycolmap.IncrementalTriangulator(model.graph, reconstruction, manager)
    thresholds = triangulation_options(settings, options)
    for image_id in model.image_ids:
        triangulator.triangulate_image(thresholds, image_id)
    if has_long_tracks:
        triangulator.complete_all_tracks(thresholds)
        triangulator.merge_all_tracks(thresholds)
    manager.filter_all_points3D(settings.max_error_px, options.min_track_angle_deg)
    manager.filter_observations_with_negative_depth()


def _thin(model: Model, points_per_image: int) -> None:
    """Drop points that are among the longest tracks of no image."""
    reconstruction = model.reconstruction
    seen = [
        np.array(
            [e.point3D_id for e in reconstruction.image(i).get_observation_points2D()], np.int64
        )
        for i in model.image_ids
    ]
    counts = np.array([len(ids) for ids in seen], dtype=np.int64)
    image = np.repeat(np.arange(len(seen)), counts)
    every = np.concatenate([np.zeros(0, dtype=np.int64), *seen])
    ids, point, length = np.unique(every, return_inverse=True, return_counts=True)
    # By image, then the longest first, then the point of the smallest id.
    order = np.lexsort((point, -length[point], image))
    starts = np.searchsorted(image[order], image[order])
    is_kept = np.zeros(len(ids), dtype=bool)
    is_kept[point[order[np.arange(len(order)) - starts < points_per_image]]] = True
    for point_id in ids[~is_kept].tolist():
        model.manager.delete_point3D(point_id)


def triangulation_options(settings: Round, options: RefineOptions) -> Any:
    """Return pycolmap's thresholds of a round."""
    thresholds = import_pycolmap().IncrementalTriangulatorOptions()
    thresholds.create_max_angle_error = settings.max_angle_deg
    thresholds.continue_max_angle_error = settings.max_angle_deg
    thresholds.merge_max_reproj_error = settings.max_error_px
    thresholds.complete_max_reproj_error = settings.max_error_px
    thresholds.min_angle = options.min_track_angle_deg
    # Guided matching leaves out many pairs, so that good tracks may be short.
    thresholds.ignore_two_view_tracks = False
    thresholds.random_seed = 0
    return thresholds


def _adjust(model: Model, seen: Collection[int], settings: Round, options: RefineOptions) -> bool:
    """Run bundle adjustment over the images that see enough; returns whether it converged."""
    pycolmap = import_pycolmap()
    reconstruction = model.reconstruction
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(seen):
        config.add_image(image_id)
        if image_id - 1 in model.held.poses:
            config.set_constant_rig_from_world_pose(reconstruction.image(image_id).frame_id)
    for camera_id in reconstruction.cameras:
        if camera_id in model.held.cameras or _is_unsafe(model, seen):
            config.set_constant_cam_intrinsics(camera_id)
    adjustment = _adjustment_options(settings, options)
    held = [i for i in sorted(seen) if i - 1 in model.held.poses]
    priors = [] if len(held) == len(seen) else _priors(model, seen)
    if len(priors) >= _MIN_PRIORS:
        prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
        # Three sigmas: farther off, a prior is no guide to the gauge.
        prior_options.alignment_ransac.max_error = 3.0 * float(model.prior_sigmas.max())
        prior_options.alignment_ransac.random_seed = 0
        before = {i: reconstruction.image(i).cam_from_world().matrix() for i in held}
        adjuster = pycolmap.create_pose_prior_bundle_adjuster(
            adjustment, prior_options, config, priors, reconstruction
        )
        is_usable = bool(adjuster.solve().is_solution_usable())
        _undo_alignment(model, before)
        return is_usable
    if len(held) < _MIN_GAUGE:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_bundle_adjuster(adjustment, config, reconstruction)
    return bool(adjuster.solve().is_solution_usable())


def _undo_alignment(model: Model, held: dict[int, NDArray[np.float64]]) -> None:
    """Bring a reconstruction back to where its held poses were.

    pycolmap first aligns the whole with the priors, held poses as well, and then keeps those.
    """
    if not held:
        return
    pycolmap = import_pycolmap()
    reconstruction = model.reconstruction
    ids = sorted(held)
    now = torch.stack(
        [torch.from_numpy(reconstruction.image(i).cam_from_world().matrix()) for i in ids]
    )
    scale, rotation, translation = align(now, torch.from_numpy(np.stack([held[i] for i in ids])))
    reconstruction.transform(
        pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation.numpy()), translation.numpy())
    )


def _is_unsafe(model: Model, seen: Collection[int]) -> bool:
    """Whether intrinsics must not be adjusted: two views of unknown pose do not tell them."""
    return len(seen) <= 2 and not {i - 1 for i in seen} <= model.held.poses


def _adjustment_options(settings: Round, options: RefineOptions) -> Any:
    pycolmap = import_pycolmap()
    adjustment = pycolmap.BundleAdjustmentOptions()
    adjustment.refine_focal_length = True
    adjustment.refine_principal_point = False
    adjustment.refine_extra_params = settings.refine_distortion
    adjustment.print_summary = False
    ceres = adjustment.ceres
    ceres.use_gpu = False
    ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    ceres.loss_function_scale = settings.robust_scale_px
    ceres.solver_options.num_threads = num_threads(options.match)
    ceres.solver_options.max_num_iterations = _MAX_ITERATIONS
    ceres.solver_options.function_tolerance = settings.tolerance
    return adjustment


def _priors(model: Model, seen: Collection[int]) -> list[Any]:
    """Return the predicted centres as priors, but for images that were placed elsewhere."""
    pycolmap = import_pycolmap()
    priors = []
    for image_id in sorted(seen):
        if image_id - 1 in model.held_out:
            continue
        prior = pycolmap.PosePrior()
        prior.corr_data_id = model.reconstruction.image(image_id).data_id
        prior.position = model.prior_centers[image_id - 1]
        prior.position_covariance = np.eye(3) * model.prior_sigmas[image_id - 1] ** 2
        prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
        priors.append(prior)
    return priors


@dataclass(frozen=True, kw_only=True)
class _Backup:
    poses: dict[int, NDArray[np.float64]]
    params: dict[int, NDArray[np.float64]]


def _save(model: Model) -> _Backup:
    reconstruction = model.reconstruction
    return _Backup(
        poses={i: reconstruction.image(i).cam_from_world().matrix() for i in model.image_ids},
        params={i: np.array(c.params) for i, c in reconstruction.cameras.items()},
    )


def _restore(model: Model, backup: _Backup) -> None:
    for image_id, pose in backup.poses.items():
        place(model, image_id - 1, pose)
    for camera_id, params in backup.params.items():
        model.reconstruction.camera(camera_id).params = params
