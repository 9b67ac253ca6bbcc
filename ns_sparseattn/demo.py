# SPDX-License-Identifier: Apache-2.0
"""``python -m ns_sparseattn.demo``: the whole pipeline on rendered views, or on your photos."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from .console import run_process
from .demo_picture import draw_scene
from .export import read_manifest
from .options import ExportOptions
from .pipeline import ProcessOptions, ProcessResult, WeightsOptions
from .refine import RefineOptions

_ABOUT_TINY = (
    "Network: tiny, which ships with this package so that it can be tried without a download. It "
    "is small and was trained on a CPU, on synthetic scenes alone: its own poses are rough. "
    "Matches between the photos then correct them, or give the poses where they contradict it. "
    "For work, use published weights: `ns-sparseattn models` lists them."
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make a scene from rendered sample views or your own photos, with the network that ships."""

    photos: Path | None = None
    """Folder of photos; by default sample views are rendered into the output folder."""
    output_dir: Path = Path("demo")
    """Folder for the sample views, the scene, and a picture of it."""
    num_views: int = 12
    """Sample views to render."""
    weights: str = "tiny"
    """Weights, as `ns-sparseattn process vggt --weights` takes them."""

    def main(self) -> None:
        """Render the views if needed, run the pipeline, draw the scene."""
        if self.weights == "tiny":
            _say(_ABOUT_TINY)
        photos = self.photos if self.photos is not None else self._render()
        result = run_process(
            ProcessOptions(
                data=photos,
                output_dir=self.output_dir / "scene",
                weights=WeightsOptions(weights=self.weights),
                # What a demo shows is the summary with its notes, not an exit code.
                refine=RefineOptions(accept_untrusted=True),
                export=ExportOptions(overwrite=True),
            ),
            verbose=False,
        )
        picture = self.output_dir / "scene.png"
        draw_scene(result.scene, picture)
        _say(_describe_poses(result))
        _say(f"Picture: {picture}")

    def _render(self) -> Path:
        from .testing.synthetic import make_room, write_photos

        folder = self.output_dir / "photos"
        write_photos(make_room(num_views=self.num_views), folder)
        return folder


def _describe_poses(result: ProcessResult) -> str:
    """Say where the poses of a scene are from."""
    refinement = (read_manifest(result.folder.root) or {}).get("refinement")
    name = result.weights.name
    if refinement is None or not refinement["is_refined"]:
        return f"Poses: those that {name} predicted; the notes say why nothing corrected them."
    trust = "confirm" if refinement["is_trusted"] else "do not confirm"
    if refinement["source"] == "prediction":
        return f"Poses: predicted by {name}, corrected by matches, which {trust} the result."
    return (
        f"Poses: matches contradicted what {name} predicted; they are from COLMAP's "
        f"{refinement['source']} mapper on the same matches, which {trust} the result."
    )


def _say(text: str) -> None:
    Console(file=sys.stdout).print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    tyro.cli(Demo).main()
