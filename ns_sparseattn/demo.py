# SPDX-License-Identifier: Apache-2.0
"""``python -m ns_sparseattn.demo``: the whole pipeline on rendered views, or on your photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from .console import run_process
from .options import ExportOptions
from .pipeline import ProcessOptions, WeightsOptions
from .refine import RefineOptions


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make a scene from rendered sample views or your own photos, with an untrained network."""

    photos: Path | None = None
    """Folder of photos; by default sample views are rendered into the output folder."""
    output_dir: Path = Path("demo")
    """Folder for the sample views and the scene."""
    num_views: int = 12
    """Sample views to render."""
    weights: str = "seeded-small"
    """Weights, as `ns-sparseattn process vggt --weights` takes them."""

    def main(self) -> None:
        """Render the views if needed, then run the pipeline."""
        photos = self.photos if self.photos is not None else self._render()
        run_process(
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

    def _render(self) -> Path:
        from .testing.synthetic import make_room, write_photos

        folder = self.output_dir / "photos"
        write_photos(make_room(num_views=self.num_views), folder)
        return folder


if __name__ == "__main__":
    tyro.cli(Demo).main()
