# SPDX-License-Identifier: Apache-2.0
"""Runs of the whole pipeline on small photos with a small untrained network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from ns_sparseattn.options import ExportOptions, FrameOptions, SceneOptions
from ns_sparseattn.pipeline import ProcessOptions, ProcessResult, WeightsOptions, process
from ns_sparseattn.refine import RefineMode, RefineOptions

LONG_SIDE = 112


@dataclass(frozen=True, kw_only=True)
class WrittenScene:
    """A scene folder as its users read it."""

    root: Path
    result: ProcessResult
    model: Any  # pycolmap.Reconstruction

    @property
    def notes(self) -> str:
        """All notes in one text."""
        return "\n".join(self.result.notes)

    @property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says."""
        return json.loads((self.root / "manifest.json").read_text(encoding="utf-8"))

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Width and height of each image's camera, by name."""
        cameras = {image.name: image.camera for image in self.model.images.values()}
        return {name: (camera.width, camera.height) for name, camera in sorted(cameras.items())}

    @property
    def cameras(self) -> dict[str, int]:
        """Camera of each image, by name."""
        return {image.name: image.camera_id for image in self.model.images.values()}


RunPipeline = Callable[..., WrittenScene]


@pytest.fixture
def make_scene(tmp_path: Path) -> RunPipeline:
    """Run the pipeline on a folder, read the scene back and check it against its own photos."""

    def make(
        data: Path,
        *,
        frames: FrameOptions | None = None,
        scene: SceneOptions | None = None,
        export: ExportOptions | None = None,
        refine: RefineMode = "fast",
    ) -> WrittenScene:
        import pycolmap

        result = process(
            ProcessOptions(
                data=data,
                output_dir=tmp_path / "scene",
                weights=WeightsOptions(weights="seeded-small", device="cpu"),
                frames=frames or FrameOptions(long_side=LONG_SIDE),
                scene=scene or SceneOptions(),
                refine=RefineOptions(refine=refine),
                export=export or ExportOptions(),
            )
        )
        root = result.folder.root
        model = pycolmap.Reconstruction(str(root / "colmap/sparse/0"))
        written = WrittenScene(root=root, result=result, model=model)
        check_photos(written)
        assert {path.name for path in tmp_path.iterdir()} >= {"scene"}
        assert not leftovers(tmp_path)
        return written

    return make


def check_photos(written: WrittenScene) -> None:
    """Every image has its photo, upright and of its camera's size, in all folders and files."""
    transforms = json.loads((written.root / "transforms.json").read_text(encoding="utf-8"))
    assert len(transforms["frames"]) == written.model.num_images()
    for frame in transforms["frames"]:
        assert (written.root / frame["file_path"]).is_file()
    for name, size in written.sizes.items():
        for factor in (1, 2, 4, 8):
            folder = "images" if factor == 1 else f"images_{factor}"
            with Image.open(written.root / folder / name) as photo:
                assert photo.getexif().get(ExifTags.Base.Orientation, 1) == 1
                assert photo.size == (size[0] // factor, size[1] // factor)
                photo.load()


def leftovers(folder: Path) -> list[Path]:
    """Half-written scenes beside the outputs of a folder."""
    return [path for path in folder.iterdir() if ".tmp-" in path.name or ".old-" in path.name]


@pytest.fixture(scope="session")
def ns_sparseattn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command ``ns-sparseattn`` with arguments, as a user does."""
    command = Path(sys.executable).with_name("ns-sparseattn")

    def run(
        *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables},
        )

    return run
