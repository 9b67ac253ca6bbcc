# SPDX-License-Identifier: Apache-2.0
"""What the matches of two images say about their poses.

Axes: ``M`` matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.colmap import import_pycolmap
from ..scene.types import Scene
from .database import PairMatches
from .options import AuditOptions

_MAX_ITERATIONS = 20
"""Of the local search for a relative pose; it converges in fewer or is lost."""

_MIN_RAYS = 8
"""Matches with rays that a check needs; five define a relative pose."""

_FOCAL_FACTORS = tuple(float(factor) for factor in np.geomspace(0.8, 1.25, 9))
"""Focal lengths tried for a pure rotation, as shares of the given one."""


@dataclass(frozen=True, kw_only=True)
class PairCheck:
    """A pair's matches against its poses."""

    first: int
    second: int
    num_matches: int
    rotation_error_deg: float
    """How far the relative rotation must turn to explain the matches; 180 if none near does."""
    epipolar_error_px: float
    """Median distance of a match from its epipolar line under the poses as they are."""
    rotation_only_px: float
    """Median error of the pure rotation that fits best; small if the pair shows no parallax."""


@dataclass(frozen=True, kw_only=True)
class SceneRays:
    """pycolmap's cameras and the poses of a scene, as checks need them."""

    cameras: dict[int, Any]
    camera_ids: tuple[int, ...]
    cam_from_world: NDArray[np.float64]  # [F, 3, 4]

    @classmethod
    def of(cls, scene: Scene) -> SceneRays:
        """Collect them."""
        pycolmap = import_pycolmap()
        cameras = {
            camera.camera_id: pycolmap.Camera(
                camera_id=camera.camera_id,
                model=camera.model,
                width=camera.width,
                height=camera.height,
                params=list(camera.params),
            )
            for camera in scene.cameras
        }
        return cls(
            cameras=cameras,
            camera_ids=tuple(image.camera_id for image in scene.images),
            cam_from_world=np.stack([image.cam_from_world.numpy() for image in scene.images]),
        )

    def camera(self, index: int) -> Any:
        """Return the camera of an image."""
        return self.cameras[self.camera_ids[index]]


def check_pair(pair: PairMatches, rays: SceneRays, options: AuditOptions) -> PairCheck:
    """Measure how far the poses of a pair are from what its matches say.

    The relative pose is refined from the predicted one by the Sampson error of the matches.
    Starting there, instead of estimating it anew, makes the test independent of the ambiguities of
    planar and distant scenes: asked is whether a pose near the predicted one explains the matches.

    Args:
        pair: Verified matches.
        rays: Cameras and poses.
        options: Thresholds.
    """
    pycolmap = import_pycolmap()
    chosen = np.linspace(0, len(pair) - 1, min(len(pair), options.max_checked_matches))
    chosen = chosen.round().astype(int)
    xy_first, xy_second = pair.xy_first[chosen], pair.xy_second[chosen]
    first, second = rays.camera(pair.first), rays.camera(pair.second)
    on_first, on_second = first.cam_from_img(xy_first), second.cam_from_img(xy_second)
    # A strong distortion, as of a model gone astray, has no ray for pixels far from the middle.
    has_rays = np.isfinite(on_first).all(1) & np.isfinite(on_second).all(1)
    if has_rays.sum() < _MIN_RAYS:
        return _hopeless(pair)
    xy_first, xy_second = xy_first[has_rays], xy_second[has_rays]
    on_first, on_second = on_first[has_rays], on_second[has_rays]
    focal = (first.mean_focal_length() + second.mean_focal_length()) / 2.0
    rotation, translation = relative_pose(
        rays.cam_from_world[pair.first], rays.cam_from_world[pair.second]
    )
    distance = np.linalg.norm(translation)
    before = focal * sampson_error(on_first, on_second, rotation, translation)
    found = None
    if distance > 0:
        settings = _solver_options()
        found = pycolmap.refine_relative_pose(
            pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), translation / distance),
            first,
            xy_first,
            second,
            xy_second,
            np.ones(len(xy_first), dtype=bool),
            settings,
        )
    error_deg = 180.0
    if found is not None:
        pose = found["cam2_from_cam1"]
        refined = pose.rotation.matrix()
        after = focal * sampson_error(on_first, on_second, refined, pose.translation)
        if np.median(after) <= options.epipolar_tolerance_px:
            error_deg = angle_deg(refined, rotation)
    return PairCheck(
        first=pair.first,
        second=pair.second,
        num_matches=len(pair),
        rotation_error_deg=float(error_deg),
        epipolar_error_px=float(np.median(before)),
        rotation_only_px=rotation_only_error(on_first, on_second, focal),
    )


def _hopeless(pair: PairMatches) -> PairCheck:
    """Return the verdict on a pair whose cameras do not even have rays for its matches."""
    return PairCheck(
        first=pair.first,
        second=pair.second,
        num_matches=len(pair),
        rotation_error_deg=180.0,
        epipolar_error_px=float("inf"),
        rotation_only_px=float("inf"),
    )


def relative_pose(
    first_from_world: NDArray[np.float64],  # [3, 4]
    second_from_world: NDArray[np.float64],  # [3, 4]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rotation ``[3, 3]`` and translation ``[3]`` of second_from_first."""
    rotation = second_from_world[:, :3] @ first_from_world[:, :3].T
    return rotation, second_from_world[:, 3] - rotation @ first_from_world[:, 3]


def angle_deg(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the angle between two rotations, degrees."""
    # From the chord, because the arc cosine of the trace loses half the digits of small angles.
    chord = np.linalg.norm(first - second) / (2.0 * np.sqrt(2.0))
    return float(np.degrees(2.0 * np.arcsin(np.clip(chord, 0.0, 1.0))))


def sampson_error(
    on_first: NDArray[np.float64],  # [M, 2]
    on_second: NDArray[np.float64],  # [M, 2]
    rotation: NDArray[np.float64],  # [3, 3]
    translation: NDArray[np.float64],  # [3]
) -> NDArray[np.float64]:
    """Return first-order distances ``[M]`` from the epipolar geometry, on the plane z = 1.

    Hartley and Zisserman, *Multiple View Geometry*, 2nd edition, equation 11.9.
    """
    x, y, z = translation
    essential = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]) @ rotation
    first = np.column_stack([on_first, np.ones(len(on_first))])
    second = np.column_stack([on_second, np.ones(len(on_second))])
    lines_second, lines_first = first @ essential.T, second @ essential
    squared = (lines_second[:, :2] ** 2).sum(1) + (lines_first[:, :2] ** 2).sum(1)
    residual = np.abs((second * lines_second).sum(1))
    return residual / np.sqrt(np.maximum(squared, np.finfo(np.float64).tiny))


def rotation_only_error(
    on_first: NDArray[np.float64],  # [M, 2]
    on_second: NDArray[np.float64],  # [M, 2]
    focal: float,
) -> float:
    """Return the median pixel error of the rotation that best maps one set of rays to the other.

    Focal lengths somewhat off the given one are tried as well, because a wrong one bends rays so
    that no rotation fits.
    """
    factors = np.array(_FOCAL_FACTORS)[:, None, None]
    first, second = _unit_rays(on_first / factors), _unit_rays(on_second / factors)
    # Kabsch: the rotation that maximizes the trace of R * sum(first second^T).
    u, _, vt = np.linalg.svd(second.swapaxes(1, 2) @ first)
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    residual = np.linalg.norm(first @ (u @ vt).swapaxes(1, 2) - second, axis=2)
    return float((focal * factors[:, 0, 0] * np.median(residual, axis=1)).min())


def _unit_rays(on_plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit vectors ``[..., M, 3]`` through points ``[..., M, 2]`` on the plane z = 1."""
    rays = np.concatenate([on_plane, np.ones((*on_plane.shape[:-1], 1))], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def _solver_options() -> Any:
    from pycolmap.pyceres import SolverOptions

    settings = SolverOptions()
    settings.max_num_iterations = _MAX_ITERATIONS
    settings.num_threads = 1
    return settings
