# SPDX-License-Identifier: Apache-2.0
"""Poses in plain text: TUM trajectories, RealEstate10K's camera files, Tanks and Temples' logs.

* TUM RGB-D, ETH3D SLAM: ``time tx ty tz qx qy qz qw``, world from camera (OpenCV axes), seconds;
  https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.
* RealEstate10K: the video's address, then ``time fx fy cx cy 0 0`` and the twelve numbers of
  ``cam_from_world`` row by row; microseconds, intrinsics as shares of width and height;
  https://google.github.io/realestate10k/download.html.
* Tanks and Temples: for each photo a line of three integers, then ``world_from_cam`` as four lines
  of four numbers; the photos are 000001.jpg and so on; https://www.tanksandtemples.org/tutorial.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..geometry import invert_rigid, quaternion_to_rotation
from .rotations import check_poses
from .types import Lens, PosedModel

_TUM_COLUMNS = 8
_REALESTATE_COLUMNS = 19
_LOG_LINES = 5
_LOG_COLUMNS = [3, 4, 4, 4, 4]


def read_trajectory(path: Path) -> PosedModel:
    """Read a text file of poses, of any of these kinds.

    Args:
        path: The file.

    Returns:
        Its poses. Those of a TUM trajectory are named by their time and taken independently of the
        photos; the others are named as the data set names its photos.

    Raises:
        ValueError: If it is none of them, or a pose is unusable.
    """
    lines = [line.split() for line in _text_lines(path)]
    if lines and "://" in lines[0][0]:
        lines = lines[1:]
    widths = {len(line) for line in lines}
    if widths == {_TUM_COLUMNS}:
        return _read_tum(path, lines)
    if widths == {_REALESTATE_COLUMNS}:
        return _read_realestate(path, lines)
    starts = range(0, len(lines), _LOG_LINES)
    if lines and all(
        [len(line) for line in lines[start : start + _LOG_LINES]] == _LOG_COLUMNS
        for start in starts
    ):
        return _read_log(path, [lines[start + 1 : start + _LOG_LINES] for start in starts])
    raise ValueError(
        f"{path} must be a TUM trajectory ({_TUM_COLUMNS} numbers a line), a camera file of "
        f"RealEstate10K ({_REALESTATE_COLUMNS}) or a log of Tanks and Temples, got "
        f"{f'lines of {sorted(widths)} words' if widths else 'no line'}."
    )


def _read_tum(path: Path, lines: list[list[str]]) -> PosedModel:
    numbers = _numbers(path, lines)
    names = [line[0] for line in lines]
    norm = numbers[:, 4:].norm(dim=-1)
    if bool((norm == 0).any()):
        raise ValueError(
            f"{path} must hold quaternions, got zeros at {names[int((norm == 0).nonzero()[0])]} s."
        )
    x, y, z, w = numbers[:, 4:].unbind(-1)
    rotations = quaternion_to_rotation(torch.stack([w, x, y, z], dim=-1))
    world_from_cam = torch.cat([rotations, numbers[:, 1:4, None]], dim=-1)
    return PosedModel(
        source=str(path),
        kind="TUM trajectory",
        names=tuple(names),
        cam_from_world=invert_rigid(check_poses(world_from_cam, names, path)),
        lenses=(None,) * len(names),
        has_times=True,
    )


def _read_realestate(path: Path, lines: list[list[str]]) -> PosedModel:
    numbers = _numbers(path, lines)
    names = [line[0] for line in lines]
    return PosedModel(
        source=str(path),
        kind="RealEstate10K camera file",
        names=tuple(names),
        cam_from_world=check_poses(numbers[:, 7:].reshape(-1, 3, 4), names, path),
        lenses=tuple(_share_lens(row) for row in numbers[:, 1:5].tolist()),
    )


def _read_log(path: Path, blocks: list[list[list[str]]]) -> PosedModel:
    names = [f"{number:06d}" for number in range(1, len(blocks) + 1)]
    rows = _numbers(path, [row for block in blocks for row in block])
    world_from_cam = rows.reshape(len(blocks), 4, 4)[:, :3]
    return PosedModel(
        source=str(path),
        kind="Tanks and Temples log",
        names=tuple(names),
        cam_from_world=invert_rigid(check_poses(world_from_cam, names, path)),
        lenses=(None,) * len(names),
    )


def _share_lens(params: list[float]) -> Lens:
    """Return a pinhole camera of an image of size 1 by 1."""
    focal_x, focal_y, center_x, center_y = params
    return Lens(
        model="PINHOLE",
        width=1.0,
        height=1.0,
        params=(focal_x, focal_y, center_x, center_y),
        focal=(focal_x, focal_y),
        center=(center_x, center_y),
    )


def _text_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file of poses, got a binary one.") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _numbers(path: Path, lines: list[list[str]]) -> Tensor:
    try:
        return torch.tensor([[float(word) for word in line] for line in lines], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"{path} must hold numbers, got something else: {error}.") from error
