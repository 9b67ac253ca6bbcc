# SPDX-License-Identifier: Apache-2.0
"""Scenes as files: the scene folder, COLMAP models, nerfstudio's own files."""

from .colmap import read_colmap, write_colmap
from .folder import SceneFolder, write_scene, write_undistorted
from .nerfstudio import write_nerfstudio
from .output import check_output, is_scene_folder, read_manifest

__all__ = [
    "SceneFolder",
    "check_output",
    "is_scene_folder",
    "read_colmap",
    "read_manifest",
    "write_colmap",
    "write_nerfstudio",
    "write_scene",
    "write_undistorted",
]
