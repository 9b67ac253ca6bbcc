# SPDX-License-Identifier: Apache-2.0
"""Photos and scenes of closed form for the export tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ns_sparseattn.frames import Frames, load
from ns_sparseattn.geometry import project, transform_points
from ns_sparseattn.options import FrameOptions
from ns_sparseattn.scene.types import Camera, CameraModel, Points, PosedImage, Scene

MakePhoto = Callable[..., Path]
MakeScene = Callable[..., Scene]

_EXTRA_PARAMS: dict[CameraModel, int] = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 0,
    "SIMPLE_RADIAL": 1,
    "OPENCV": 4,
}


@pytest.fixture
def make_photo() -> MakePhoto:
    """Write a photo whose pixels all differ a little, so that mix-ups show."""

    def make(
        path: Path,
        size: tuple[int, int] = (61, 45),
        *,
        mode: str = "RGB",
        seed: int = 0,
        orientation: int | None = None,
        **save_options: Any,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        small = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        if mode == "I;16":
            gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
            image = Image.fromarray(gray)
        else:
            image = image.convert(mode)
        if orientation is not None:
            exif = Image.Exif()
            exif[0x0112] = orientation
            exif[0x010F] = "Maker"
            save_options["exif"] = exif.tobytes()
        image.save(path, **save_options)
        return path

    return make


@pytest.fixture
def load_photos() -> Callable[..., Frames]:
    """Load photos at a network size that costs nothing."""

    def load_small(path: Path, masks: Path | None = None) -> Frames:
        return load(path, FrameOptions(long_side=56, masks=masks))

    return load_small


@pytest.fixture
def make_scene() -> MakeScene:
    """Make a scene for frames: a ring of cameras around a cloud, points seen where they project."""

    def make(
        frames: Frames,
        *,
        model: CameraModel = "PINHOLE",
        num_points: int = 40,
        one_camera: bool = False,
        seed: int = 0,
    ) -> Scene:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        xyz = random(num_points, 3) - 0.5
        cameras: list[Camera] = []
        images: list[PosedImage] = []
        seen: list[tuple[int, int, torch.Tensor]] = []
        for index, frame in enumerate(frames.frames):
            if not cameras or not one_camera:
                width, height = frame.size
                focal = 0.9 * max(width, height) + index
                focals = (focal,) if model.startswith("SIMPLE") else (focal, focal + 1.5)
                center = (width / 2 + 0.25, height / 2 - 0.5)
                params = (*focals, *center, *[0.0] * _EXTRA_PARAMS[model])
                camera_id = len(cameras) + (1 if one_camera else 3)
                cameras.append(
                    Camera(
                        camera_id=camera_id,
                        model=model,
                        width=width,
                        height=height,
                        params=params,
                    )
                )
            cam_from_world = _pose_on_ring(index, len(frames), random(3))
            images.append(
                PosedImage(
                    image_id=index + 1,
                    name=frame.name,
                    camera_id=cameras[-1].camera_id,
                    cam_from_world=cam_from_world,
                )
            )
            pixels, _ = project(transform_points(cam_from_world, xyz), cameras[-1].intrinsics)
            inside = (pixels >= 0) & (pixels <= pixels.new_tensor(frame.size))
            seen += [(p, index, pixels[p]) for p in inside.all(-1).nonzero()[:, 0].tolist()]
        seen.sort(key=lambda row: row[:2])
        points = Points(
            xyz=xyz,
            rgb=(random(num_points, 3) * 256).to(torch.uint8),
            error=random(num_points),
            obs_point=torch.tensor([row[0] for row in seen], dtype=torch.int64),
            obs_image=torch.tensor([row[1] for row in seen], dtype=torch.int64),
            obs_xy=torch.stack([row[2] for row in seen]) if seen else torch.zeros(0, 2).double(),
        )
        return Scene(cameras=tuple(cameras), images=tuple(images), points=points)

    return make


@pytest.fixture(scope="session")
def torchvision() -> object:
    """torchvision, whose compiled operators a CPU build of torch cannot load.

    nerfstudio imports torchvision but uses none of them; declaring the two that torchvision looks
    for is enough.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library = torch.library.Library("torchvision", "DEF")
        library.define(f"nms{schema}")
        library.define(f"qnms{schema}")
        import torchvision

        return torchvision, library
    return torchvision


def _pose_on_ring(index: int, count: int, jitter: torch.Tensor) -> torch.Tensor:
    """Return ``cam_from_world`` ``[3, 4]`` of a camera that looks at the origin."""
    angle = 2 * np.pi * index / count
    center = torch.tensor([3 * np.cos(angle), -0.7, 3 * np.sin(angle)]) + 0.2 * jitter
    forward = -center / center.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).double(), forward)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return torch.cat([rotation, -(rotation @ center)[:, None]], dim=1)
