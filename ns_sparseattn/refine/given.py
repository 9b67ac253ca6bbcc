# SPDX-License-Identifier: Apache-2.0
"""What a user has said about cameras and poses, and what of it an adjustment may not touch."""

from __future__ import annotations

from dataclasses import dataclass

from ..scene.types import Scene
from .options import RefineOptions


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images, by their number in the scene, of which something is known rather than predicted."""

    poses: frozenset[int] = frozenset()
    intrinsics: frozenset[int] = frozenset()


NOTHING_GIVEN = Given()


@dataclass(frozen=True, kw_only=True)
class Held:
    """What stays as it is."""

    poses: frozenset[int]
    """Images, by their number."""
    cameras: frozenset[int]
    """Cameras, by their id."""
    has_all_poses: bool

    @classmethod
    def of(cls, scene: Scene, given: Given, options: RefineOptions) -> Held:
        """Resolve what the options say about what is given."""
        everything = frozenset(range(len(scene.images)))
        poses = given.poses if options.known_position_sigma is None else frozenset()
        poses = everything if options.hold_poses else poses
        known = frozenset() if options.adjust_known_intrinsics else given.intrinsics
        images = everything if options.hold_intrinsics else known
        return cls(
            poses=poses,
            cameras=frozenset(scene.images[index].camera_id for index in images),
            has_all_poses=poses == everything,
        )
