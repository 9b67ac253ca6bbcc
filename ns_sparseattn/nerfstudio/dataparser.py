# SPDX-License-Identifier: Apache-2.0
"""The dataparsers ``sparse-MODEL-data``: ``ns-train METHOD sparse-vggt-data --data ./imgs``.

On first use it runs the pipeline and keeps the scene in a cache named after the photos' content and
the options; from then on it behaves as nerfstudio's ``colmap`` dataparser does on that scene.

nerfstudio imports this module on every ``ns-train``, outside any guard. It therefore imports
nothing but nerfstudio and the standard library; everything that can fail is imported when the
parser is used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional, Type  # noqa: UP035 - tyro reads these on 3.10.

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser, ColmapDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

if TYPE_CHECKING:
    from ..pipeline import ProcessOptions

_logger = logging.getLogger(__name__)

_Model = Literal["vggt", "pi3", "pi3x", "mapanything"]


@dataclass
class SparseVGGTDataParserConfig(ColmapDataParserConfig):
    """Photos without poses: VGGT with sparse attention finds cameras and points on first use."""

    model: ClassVar[_Model] = "vggt"

    _target: Type = field(default_factory=lambda: SparseVGGTDataParser)  # noqa: UP006
    data: Path = Path()
    """Folder of photos."""
    eval_data: Optional[Path] = None  # noqa: UP045
    """Second folder of photos, kept for evaluation; without it, `eval_mode` splits the first."""
    cache_dir: Optional[Path] = None  # noqa: UP045
    """Where scenes are kept. By default .ns_sparseattn in the photos' folder, or the user's cache
    folder if that cannot be written."""
    weights: Optional[str] = None  # noqa: UP045
    """A named set, a Hugging Face repository, a local file, or tiny, which ships with the package.
    None: the model's published set."""
    commercial: bool = False
    """Refuse weights whose licence forbids or does not clearly allow commercial use."""
    device: str = "auto"
    """cuda, cuda:1, cpu, or auto: the GPU if there is one."""
    attention: Literal[
        "exact", "auto", "balanced", "fast", "paper-s50", "paper-s75", "block-sparse"
    ] = "exact"
    """exact; balanced or fast, sparse; auto, balanced where that is faster; paper-s50 or paper-s75,
    the published block-sparse method; or block-sparse with `density`, `mass` or both."""
    density: Optional[float] = None  # noqa: UP045
    """Share of the key blocks that each query block keeps, 0 to 1."""
    mass: Optional[float] = None  # noqa: UP045
    """Share of the pooled attention that the kept blocks must reach, 0 to 1."""
    reference: str = "auto"
    """Photo that the model sees first, where that one is special: auto, first, or its name."""
    intrinsics: Optional[str] = None  # noqa: UP045
    """Known cameras: a COLMAP model or its cameras.txt, a transforms.json, an OpenCV YAML file, or
    exif."""
    poses: Optional[Path] = None  # noqa: UP045
    """Known poses, whose frame and scale the scene takes: a transforms.json, a COLMAP model or its
    images.txt, or a scene folder."""
    metric_poses: bool = False
    """The unit of the known poses is the metre."""
    depth: Optional[Path] = None  # noqa: UP045
    """Folder of known depth, matched by name: 16-bit PNG or .npy."""
    depth_unit: Optional[float] = None  # noqa: UP045
    """Metres of one unit of the depth files. None: 0.001 for PNG, 1 for .npy."""
    photo_masks: Optional[Path] = None  # noqa: UP045
    """Folder of mask images matched by name; black pixels are ignored."""
    skip_broken: bool = False
    """Leave out files that cannot be read instead of stopping."""
    resize: Literal["auto", "fit", "crop", "pad", "area", "cover"] = "auto"
    """How photos become network inputs. auto: by the model's own rule."""
    long_side: Optional[int] = None  # noqa: UP045
    """Longest side of the network's input, pixels. None: what the weights were trained at."""
    camera_mode: Literal["auto", "single", "per-folder", "per-image"] = "auto"
    """Which photos share one camera."""
    max_points: int = 200_000
    """Points kept at most."""
    refine: Literal["none", "fast", "full"] = "fast"
    """Correct the predicted cameras by matches between the full-resolution photos: none, fast, or
    full with twice the pairs and more rounds."""
    accept_untrusted: bool = False
    """Train also on a scene that matches do not confirm."""


@dataclass
class SparsePi3DataParserConfig(SparseVGGTDataParserConfig):
    """Photos without poses: Pi3 with sparse attention finds cameras and points on first use."""

    model: ClassVar[_Model] = "pi3"


@dataclass
class SparsePi3XDataParserConfig(SparseVGGTDataParserConfig):
    """Photos without poses: Pi3X with sparse attention finds cameras and points on first use."""

    model: ClassVar[_Model] = "pi3x"


@dataclass
class SparseMapAnythingDataParserConfig(SparseVGGTDataParserConfig):
    """Photos without poses: MapAnything with sparse attention finds cameras and points."""

    model: ClassVar[_Model] = "mapanything"


@dataclass
class SparseVGGTDataParser(DataParser):
    """Runs the pipeline once, then parses its scene folder as a COLMAP scene."""

    config: SparseVGGTDataParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def _generate_dataparser_outputs(
        self, split: str = "train", **kwargs: Any
    ) -> DataparserOutputs:
        from .scene_cache import cached_scene

        scene_dir = cached_scene(
            process_options(self.config),
            cache_dir=self.config.cache_dir,
            is_evaluation=split == "test",
        )
        _check_trust(self.config, scene_dir)
        inherited = {f.name: getattr(self.config, f.name) for f in fields(ColmapDataParserConfig)}
        inherited |= {"_target": ColmapDataParser, "data": scene_dir}
        if self.config.masks_path is None and (scene_dir / "masks").is_dir():
            inherited["masks_path"] = Path("masks")
        if _num_photos(scene_dir) == 1:
            # The one photo would go to evaluation and leave nothing to train on, and nerfstudio
            # would divide by the extent of the cameras.
            inherited |= {"eval_mode": "all", "auto_scale_poses": False}
        return ColmapDataParser(ColmapDataParserConfig(**inherited)).get_dataparser_outputs(
            split, **kwargs
        )


def _check_trust(config: SparseVGGTDataParserConfig, scene_dir: Path) -> None:
    """Stop before hours go into a scene that matches do not confirm, or warn.

    Raises:
        ReconstructionError: If matches do not confirm the scene, and the config does not accept it.
    """
    from ..errors import ReconstructionError
    from ..export import read_manifest

    refinement = (read_manifest(scene_dir) or {}).get("refinement")
    if refinement is None or refinement["is_trusted"]:
        return
    verdict = f"The scene of {config.data} cannot be trusted: {' '.join(refinement['reasons'])}"
    if config.accept_untrusted:
        _logger.warning(verdict)
        return
    raise ReconstructionError(
        f"{verdict} It is in {scene_dir}. Train on it anyway with --accept-untrusted True, or on "
        "the prediction as it is with --refine none."
    )


def _num_photos(scene_dir: Path) -> int:
    from ..export import read_manifest

    return len((read_manifest(scene_dir) or {}).get("photos", ()))


def process_options(config: SparseVGGTDataParserConfig) -> ProcessOptions:
    """Return the pipeline options that a config stands for; the cache chooses the output folder.

    Raises:
        ValueError: If an option is out of range.
    """
    from ..conditioning import KnownOptions
    from ..options import FrameOptions, SceneOptions
    from ..pipeline import AttentionOptions, ProcessOptions, WeightsOptions
    from ..refine import RefineOptions

    return ProcessOptions(
        model=config.model,
        data=config.data,
        output_dir=Path(),
        eval_data=config.eval_data,
        reference=config.reference,
        known=KnownOptions(
            intrinsics=config.intrinsics,
            poses=config.poses,
            metric_poses=config.metric_poses,
            depth=config.depth,
            depth_unit=config.depth_unit,
        ),
        weights=WeightsOptions(
            weights=config.weights, commercial=config.commercial, device=config.device
        ),
        attention=AttentionOptions(
            attention=config.attention, density=config.density, mass=config.mass
        ),
        frames=FrameOptions(
            masks=config.photo_masks,
            skip_broken=config.skip_broken,
            resize=config.resize,
            long_side=config.long_side,
        ),
        scene=SceneOptions(camera_mode=config.camera_mode, max_points=config.max_points),
        refine=RefineOptions(refine=config.refine, accept_untrusted=config.accept_untrusted),
    )


sparse_vggt_data = DataParserSpecification(
    config=SparseVGGTDataParserConfig(),
    description="Photos without poses: VGGT with sparse attention finds cameras and points.",
)

sparse_pi3_data = DataParserSpecification(
    config=SparsePi3DataParserConfig(),
    description="Photos without poses: Pi3 with sparse attention finds cameras and points.",
)

sparse_pi3x_data = DataParserSpecification(
    config=SparsePi3XDataParserConfig(),
    description="Photos without poses: Pi3X with sparse attention finds cameras and points.",
)

sparse_mapanything_data = DataParserSpecification(
    config=SparseMapAnythingDataParserConfig(),
    description="Photos without poses: MapAnything with sparse attention finds cameras and points.",
)
