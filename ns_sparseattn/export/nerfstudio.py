# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's own files: ``transforms.json`` and ``sparse_pc.ply``, as by ``ns-process-data``.

nerfstudio's cameras are OpenGL's (x right, y up, z backward) and its world has z up. Both files
therefore hold everything in a world turned by `APPLIED_TRANSFORM`, which takes COLMAP's guess of
gravity (-y is up) to +z; the file says so under ``applied_transform``. Intrinsics are the same
numbers as in the COLMAP model.

Axes: ``P`` points.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry import invert_rigid, transform_points
from ..scene.types import Camera, Points, Scene
from .json_file import write_json

APPLIED_TRANSFORM = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0))
"""``saved_from_world``: (x, y, z) becomes (x, z, -y)."""

PLY_NAME = "sparse_pc.ply"
TRANSFORMS_NAME = "transforms.json"

_EVAL_LISTS = ("test_list.txt", "val_list.txt", "validation_list.txt")
"""Names under which the ``colmap`` parser looks for the photos to evaluate on; 1.1.5 reads the
second where it announces the third."""

_PLY_HEADER = """ply
format ascii 1.0
element vertex {num_points}
property float x
property float y
property float z
property uint8 red
property uint8 green
property uint8 blue
end_header
"""


def saved_from_opengl_camera(cam_from_world: Tensor) -> Tensor:
    """Turn poses ``[..., 3, 4]`` into nerfstudio's ``transform_matrix``, ``[..., 4, 4]``."""
    world_from_cam = invert_rigid(cam_from_world.double())
    opencv_from_opengl = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    saved_from_world = torch.tensor(APPLIED_TRANSFORM, dtype=torch.float64)[:, :3]
    rows = saved_from_world @ (world_from_cam * opencv_from_opengl)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(*rows.shape[:-2], 1, 4)
    # Adding zero turns -0.0 into 0.0, which reads better and means the same.
    return torch.cat([rows, last], dim=-2) + 0.0


def transforms(
    scene: Scene,
    image_paths: Mapping[str, str],
    mask_paths: Mapping[str, str] | None = None,
    *,
    eval_names: Collection[str] = (),
) -> dict[str, object]:
    """Return the content of ``transforms.json``.

    Args:
        scene: The scene.
        image_paths: Path of each image relative to the file, by image name. nerfstudio finds
            smaller copies by the last part of the path alone, which must therefore be unique.
        mask_paths: The same for masks; ``None`` without masks.
        eval_names: Names of the images to evaluate on; without any, the parser splits as it likes.

    Returns:
        A mapping for JSON. Intrinsics stand at the top if all images share one camera, else with
        each frame. There is no ``applied_scale``: nerfstudio would apply it to the points but not
        to the poses.
    """
    cameras = {camera.camera_id: camera for camera in scene.cameras}
    is_shared = len({image.camera_id for image in scene.images}) == 1
    frames: list[dict[str, object]] = []
    for image in scene.images:
        frame: dict[str, object] = {
            "file_path": image_paths[image.name],
            "transform_matrix": saved_from_opengl_camera(image.cam_from_world).tolist(),
            "colmap_im_id": image.image_id,
        }
        if mask_paths is not None:
            frame["mask_path"] = mask_paths[image.name]
        if not is_shared:
            frame.update(_intrinsics(cameras[image.camera_id]))
        frames.append(frame)
    shared = _intrinsics(cameras[scene.images[0].camera_id]) if is_shared else {}
    train, held_out = _split(scene, eval_names)
    splits = {"train": train, "val": held_out, "test": held_out} if eval_names else {}
    return {
        **shared,
        **{
            f"{split}_filenames": [image_paths[name] for name in names]
            for split, names in splits.items()
        },
        # The parser reads the kind of camera at the top only; all of ours are this kind.
        "camera_model": "OPENCV",
        "frames": frames,
        "applied_transform": APPLIED_TRANSFORM,
        "ply_file_path": PLY_NAME,
    }


def write_nerfstudio(
    scene: Scene,
    folder: Path,
    image_paths: Mapping[str, str],
    mask_paths: Mapping[str, str] | None = None,
    *,
    eval_names: Collection[str] = (),
) -> None:
    """Write ``transforms.json`` and ``sparse_pc.ply``, and lists of photos if there is a split.

    The point file is written and named even when it has no points: without the entry nerfstudio
    asks a question on the terminal.

    Args:
        scene: The scene; it is not changed.
        folder: Where both files go.
        image_paths: See `transforms`.
        mask_paths: See `transforms`.
        eval_names: See `transforms`; the ``colmap`` parser reads the same split from text files.
    """
    content = transforms(scene, image_paths, mask_paths, eval_names=eval_names)
    write_json(folder / TRANSFORMS_NAME, content)
    (folder / PLY_NAME).write_bytes(_ply(scene.points))
    if eval_names:
        train, held_out = _split(scene, eval_names)
        for name in ("train_list.txt", *_EVAL_LISTS):
            lines = held_out if name in _EVAL_LISTS else train
            text = "".join(f"{line}\n" for line in lines)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _split(scene: Scene, eval_names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the names of the images to train on, and of those to evaluate on."""
    names = [image.name for image in scene.images]
    return (
        [name for name in names if name not in eval_names],
        [name for name in names if name in eval_names],
    )


def _ply(points: Points) -> bytes:
    """Return the points as ASCII PLY, in the turned world; nine digits hold a float32 exactly."""
    xyz = (
        transform_points(torch.tensor(APPLIED_TRANSFORM, dtype=torch.float64), points.xyz.double())
        + 0.0
    )
    rows = np.concatenate(
        [xyz.float().double().numpy(), points.rgb.numpy().astype(np.float64)], axis=1
    )
    buffer = io.BytesIO()
    buffer.write(_PLY_HEADER.format(num_points=len(points)).encode())
    np.savetxt(buffer, rows, fmt="%.9g %.9g %.9g %d %d %d")
    return buffer.getvalue()


def _intrinsics(camera: Camera) -> dict[str, object]:
    """Return a camera in nerfstudio's words; every model of ours is a special case of OPENCV."""
    named = camera.named_params
    return {
        "w": camera.width,
        "h": camera.height,
        "fl_x": named.get("fx", named.get("f")),
        "fl_y": named.get("fy", named.get("f")),
        "cx": named["cx"],
        "cy": named["cy"],
        "k1": named.get("k1", 0.0),
        "k2": named.get("k2", 0.0),
        "p1": named.get("p1", 0.0),
        "p2": named.get("p2", 0.0),
        "camera_model": "OPENCV",
    }
