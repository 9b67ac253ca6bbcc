# SPDX-License-Identifier: Apache-2.0
"""The photos of a scene folder that was written before, as frames to write again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ReconstructionError
from ..frames.pixel_map import PixelMap
from ..frames.types import ExifCamera, Frame
from ..scene.types import Scene
from .names import mask_name


def written_frames(scene_dir: Path, scene: Scene, manifest: Mapping[str, Any]) -> list[Frame]:
    """Return a frame per image of a scene folder.

    Args:
        scene_dir: The folder.
        scene: What `read_colmap` returns for it.
        manifest: What `read_manifest` returns for it.

    Returns:
        Frames in the order of the images. They have no network pixels: the pixel map is the
        identity.

    Raises:
        ReconstructionError: If the model has an image that the manifest does not know.
    """
    known = {str(photo["name"]) for photo in manifest["photos"]}
    unknown = [image.name for image in scene.images if image.name not in known]
    if unknown:
        raise ReconstructionError(
            f"The manifest of {scene_dir} does not list {unknown[0]}, an image of its COLMAP "
            "model: the folder was changed after it was written. Write it again."
        )
    held_out = scene_dir / "test_list.txt"
    eval_names = set(held_out.read_text("utf-8").splitlines()) if held_out.is_file() else set()
    has_masks = (scene_dir / "masks").is_dir()
    frames = []
    for image in scene.images:
        camera = scene.camera_of(image)
        size = (camera.width, camera.height)
        frames.append(
            Frame(
                name=image.name,
                path=scene_dir / "images" / image.name,
                size=size,
                orientation=1,
                trainer_ready=True,
                exif=ExifCamera(),
                pixel_map=PixelMap(
                    original_size=size, resized_size=size, shift=(0, 0), network_size=size
                ),
                mask_path=scene_dir / "masks" / mask_name(image.name) if has_masks else None,
                is_eval=image.name in eval_names,
            )
        )
    return frames
