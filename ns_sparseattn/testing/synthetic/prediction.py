# SPDX-License-Identifier: Apache-2.0
"""What a perfect model would predict for a synthetic scene.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

import torch

from ...frames.types import Frames
from ...geometry import pixel_centers
from ...prediction import Prediction
from .scenes import SyntheticScene

_PADDING_CONFIDENCE = 0.0
_CONFIDENCE = 1.0


def exact_prediction(scene: SyntheticScene, frames: Frames) -> Prediction:
    """Predict cameras and depth without error, but for the rounding to float32.

    Depth is cast at the centre of each network pixel, not interpolated, also in the padding, where
    its confidence is lowest. Pixels that see nothing have depth 0. Confidence falls slightly with
    depth, so that percentiles have something to choose from.

    Args:
        scene: The scene; views are matched to frames by name.
        frames: Define the network pixels of each photo.

    Returns:
        The prediction, in the scene's world and metres.
    """
    width, height = frames.network_size
    centers = pixel_centers(height, width)
    views = [scene.view(name) for name in frames.names]
    depth = torch.stack(
        [
            scene.depth_at(view, frame.pixel_map.to_original(centers))
            for view, frame in zip(views, frames.frames, strict=True)
        ]
    )
    depth = torch.where(torch.isfinite(depth), depth, 0.0).float()
    is_photo = torch.stack([frame.pixel_map.valid_mask() for frame in frames.frames])
    confidence = torch.where(is_photo, _CONFIDENCE + 1.0 / (1.0 + depth), _PADDING_CONFIDENCE)
    intrinsics = torch.stack(
        [
            frame.pixel_map.intrinsics_to_network(view.intrinsics)
            for view, frame in zip(views, frames.frames, strict=True)
        ]
    )
    return Prediction(
        cam_from_world=torch.stack([view.cam_from_world for view in views]).float(),
        intrinsics=intrinsics.float(),
        depth=depth,
        confidence=confidence.float(),
    )
