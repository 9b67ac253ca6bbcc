# SPDX-License-Identifier: Apache-2.0
"""The stages in order: photos, weights, prediction, scene, scene folder.

Everything that the command line, the nerfstudio command and the dataparser do is `process`.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from . import __version__, export, frames, scene
from .attention import AttentionPlan, LayerStats
from .conditioning import KnownOptions, load_known
from .frames.content import find_blank, find_copies
from .frames.masks import name_some
from .models.compute import InferenceOptions
from .models.loading import load_model
from .models.registry import ModelName, find_model
from .models.weight_set import WeightsInfo
from .options import ExportOptions, FrameOptions, SceneOptions
from .predicting import predict_scene
from .prediction import Prediction, StageRecord
from .refine import Given, RefineOptions, refine_prediction
from .stages import Progress, StageRecorder

UNVERIFIED_NOTE = (
    "The weights are unverified: no published or shipped set. What untrained or unknown weights "
    "predict means nothing."
)

AttentionName = Literal[
    "exact", "auto", "balanced", "fast", "paper-s50", "paper-s75", "block-sparse"
]


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Which weights run, and where."""

    weights: str | None = None
    """A named set (such as vggt-1b-commercial), a Hugging Face repository (owner/name), a local
    folder, .safetensors or .pt file; tiny: a small VGGT that ships with the package; or seeded /
    seeded-small: random numbers, for tests. None: the model's published set, which is vggt-1b, pi3,
    pi3x or map-anything."""
    commercial: bool = False
    """Refuse weights whose licence forbids or does not clearly allow commercial use."""
    device: str = "auto"
    """cuda, cuda:1, cpu, or auto: the GPU if there is one."""

    def resolve_device(self) -> torch.device:
        """Return the device that the options name.

        Raises:
            ValueError: If the name is unknown or there is no such device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(
                f"`device` must be auto, cpu, cuda or cuda:N, got {self.device!r}."
            ) from None
        num_devices = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= num_devices:
            raise ValueError(
                f"`device` is {self.device!r}, but torch {torch.__version__} sees {num_devices} "
                "CUDA devices. Use --device cpu, or install a CUDA build of torch."
            )
        return device


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What the global attention layers do."""

    attention: AttentionName = "exact"
    """exact: every layer dense, as the model was trained. balanced, fast: early layers within
    photos, then a quarter or a tenth of the key blocks. auto: balanced where that was measured to
    be faster than exact. paper-s50, paper-s75: the published block-sparse method at about 50 and
    70 per cent sparsity, for comparison. block-sparse: training-free selection of key blocks in all
    layers; needs `density`, `mass` or both."""
    density: float | None = None
    """Share of the key blocks that each query block keeps, 0 to 1; an upper bound if `mass` is
    given."""
    mass: float | None = None
    """Share of the pooled attention that the kept blocks must reach, 0 to 1."""
    coarse: bool = True
    """Let key blocks that block-sparse leaves out contribute through their means."""

    def __post_init__(self) -> None:
        has_shares = (self.density, self.mass) != (None, None)
        if self.attention != "block-sparse" and (has_shares or not self.coarse):
            raise ValueError(
                f"`density`, `mass` and `coarse` have no effect with `attention` {self.attention}; "
                "set block-sparse."
            )
        for name in ("density", "mass"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"`{name}` must be above 0 and at most 1, got {value:g}.")
        self.plan()

    def plan(self, model: ModelName = "vggt", weights: str | None = None) -> AttentionPlan:
        """Return the plan that the options describe for a model and its weights."""
        if self.attention == "block-sparse":
            return AttentionPlan.block_sparse(
                density=self.density, mass=self.mass, coarse=self.coarse
            )
        return find_model(model).plan(self.attention, weights)


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Everything that turns photos into a scene folder."""

    model: ModelName = "vggt"
    """The model that looks at the photos."""
    data: Path
    """Folder of photos (sub-folders included), or one photo."""
    output_dir: Path
    """Folder to write the scene to; must not exist yet, or be empty, unless `overwrite` is set."""
    eval_data: Path | None = None
    """Second folder of photos, posed together with the first but kept for evaluation instead of
    training. Names in the scene then begin with train/ and eval/, and so must those of masks."""
    reference: str = "auto"
    """Photo that the model sees first, for models to which that one is special (VGGT and
    MapAnything): auto, the one that overlaps the others most; first, by name; or its name."""
    known: KnownOptions = field(default_factory=KnownOptions)
    weights: WeightsOptions = field(default_factory=WeightsOptions)
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    frames: FrameOptions = field(default_factory=FrameOptions)
    scene: SceneOptions = field(default_factory=SceneOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    export: ExportOptions = field(default_factory=ExportOptions)


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What a run made."""

    folder: export.SceneFolder
    scene: scene.Scene
    weights: WeightsInfo
    stages: tuple[StageRecord, ...]
    attention: tuple[LayerStats, ...]
    notes: tuple[str, ...]
    """Sentences that the user should read."""
    is_trusted: bool
    """Whether matches between the photos confirm the scene; true as well if nobody looked."""


def process(options: ProcessOptions, *, progress: Progress | None = None) -> ProcessResult:
    """Turn a folder of photos into a scene folder.

    Args:
        options: What to read, how to compute, where to write.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The scene and its folder, which appears whole or not at all.

    Raises:
        ValueError: If an option, a photo or the weights are unusable; the message says which and
            what to do.
        ReconstructionError: If a stage cannot go on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _process(options, Path(scratch), progress)


def _process(options: ProcessOptions, scratch: Path, progress: Progress | None) -> ProcessResult:
    """Do the work of `process`, with a folder for what need not outlive it."""
    entry = find_model(options.model)
    plan = options.attention.plan(options.model, options.weights.weights)
    device = options.weights.resolve_device()
    for source in filter(None, (options.data, options.eval_data)):
        export.check_output(options.output_dir, source, options.export)
    before, after = StageRecorder(device, progress), StageRecorder(device, progress)
    with before.stage("load photos") as report:
        photos = frames.load(
            options.data,
            entry.sized(options.frames, options.weights.weights),
            eval_data=options.eval_data,
            progress=report,
        )
        known = load_known(options.known, photos)
    with before.stage("load weights", 1) as report:
        model, weights = load_model(
            entry.family,
            options.weights.weights,
            commercial=options.weights.commercial,
            device=device,
        )
        report(1)
    predicted = predict_scene(
        model,
        entry,
        photos,
        plan=plan,
        inference=options.inference,
        scene=options.scene,
        reference=options.reference,
        known=known,
        recorder=before,
        progress=progress,
    )
    prediction = predicted.prediction
    del model  # Building the scene may need the memory.
    given = Given()
    if known is not None:
        given = Given(poses=frozenset(known.posed), intrinsics=known.calibrated)
    database = scratch / "database.db" if options.refine.keep_database else None
    with after.stage("build scene" if options.refine.refine == "none" else "refine and build"):
        refined = refine_prediction(
            prediction,
            photos,
            options.scene,
            options.refine,
            given=given,
            database_path=database,
            progress=progress,
        )
        if known is not None and known.posed:
            built, levelling = refined.scene, scene.Levelling.of_known_poses()
        else:
            built, levelling = scene.level_world(refined.scene, options.scene)
    notes = (
        *(() if weights.verified else (UNVERIFIED_NOTE,)),
        *_input_notes(photos),
        *built.notes,
    )
    run = _RunFacts(
        options=options,
        device=device,
        weights=weights,
        prediction=prediction,
        stages=(*before.records, *prediction.stages, *after.records),
        notes=notes,
    )
    with after.stage("write scene", 1) as report:
        folder = export.write_scene(
            built,
            photos,
            options.output_dir,
            options.export,
            manifest={
                **_manifest(run, photos, built),
                "reference": predicted.reference,
                "scale": prediction.scale,
                "world": levelling,
                "refinement": refined.manifest(),
            },
            config=vars(options),
            progress=report,
        )
        if database is not None and database.is_file():
            shutil.move(database, folder.root / "colmap" / database.name)
    return ProcessResult(
        folder=folder,
        scene=built,
        weights=weights,
        stages=(*before.records, *prediction.stages, *after.records),
        attention=prediction.attention,
        notes=notes,
        is_trusted=refined.is_trusted,
    )


def _input_notes(photos: frames.Frames) -> tuple[str, ...]:
    """Say what a user should know about the photos, whatever the model makes of them."""
    notes = []
    copies = find_copies(photos)
    if copies and len(copies) == len(photos) - 1:
        notes.append(
            "All photos show the same picture: without a second point of view nothing can be "
            "triangulated."
        )
    elif copies:
        pairs = [f"{copy} of {original}" for copy, original in copies.items()]
        notes.append(f"Photos that are copies of others add nothing: {name_some(pairs)}.")
    blank = find_blank(photos)
    if blank:
        notes.append(f"Photos that show nothing cannot be placed: {name_some(blank)}.")
    if photos.skipped:
        left_out = [f"{file.path.name} ({file.reason})" for file in photos.skipped]
        notes.append(f"Left out of the folder: {name_some(left_out)}.")
    return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class _RunFacts:
    """What is known about a run before its scene is written."""

    options: ProcessOptions
    device: torch.device
    weights: WeightsInfo
    prediction: Prediction
    stages: tuple[StageRecord, ...]
    notes: tuple[str, ...]


def _manifest(run: _RunFacts, photos: frames.Frames, built: scene.Scene) -> dict[str, object]:
    """Gather what a reader of the scene folder may want to know about the run."""
    is_cuda = run.device.type == "cuda"
    return {
        "version": __version__,
        "model": run.options.model,
        "weights": run.weights,
        "options": run.options,
        "machine": {
            "device": torch.cuda.get_device_name(run.device) if is_cuda else "cpu",
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "stages": run.stages,
        "peak_memory_gib": max(stage.peak_memory_gib for stage in run.stages),
        "attention": run.prediction.attention,
        "images": built.summaries,
        "skipped": photos.skipped,
        "notes": list(run.notes),
    }
