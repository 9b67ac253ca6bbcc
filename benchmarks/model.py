# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.model``: a whole forward pass of a network, dense and sparse, in one run.

The network, VGGT-1B unless another is named, has the published size and seeded weights: the
arithmetic of a plan with given densities does not depend on the weights. Dense attention runs with
each of torch's kernels that the device has; on a GPU torch's flash kernel is FlashAttention-2, the
peer that publications quote, and cuDNN is usually the fastest. Speed-ups are over the fastest of
them.

A plan is ``dense``, ``density 0.25``, ``frames 9 + density 0.1`` (the first nine global layers
within frames), or the name of a preset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.machine import describe
from benchmarks.rows import append
from benchmarks.timing import measure
from ns_sparseattn.attention import AttentionPlan, FramePolicy
from ns_sparseattn.models.compute import InferenceOptions, Precision
from ns_sparseattn.models.mapanything_config import MapAnythingConfig
from ns_sparseattn.models.pi3_config import Pi3Config, Pi3XConfig
from ns_sparseattn.models.seeded import (
    make_seeded_mapanything,
    make_seeded_pi3,
    make_seeded_pi3x,
    make_seeded_vggt,
)
from ns_sparseattn.models.vggt_config import VGGTConfig

_CUDA_KERNELS = {
    "cudnn": getattr(SDPBackend, "CUDNN_ATTENTION", None),
    "flash (FlashAttention-2)": SDPBackend.FLASH_ATTENTION,
}


ModelName = Literal["vggt", "pi3", "pi3x", "mapanything"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the published size, and the tokens of its global layers."""

    build: Callable[[], nn.Module]
    num_special: int
    """Tokens of a photo beside its patches."""
    num_trailing: int = 0
    """Tokens of no photo."""

    def num_tokens(self, num_photos: int, size: tuple[int, int]) -> int:
        """Return the tokens of photos of a height and width, in patches of 14 pixels."""
        num_patches = (size[0] // 14) * (size[1] // 14)
        return num_photos * (self.num_special + num_patches) + self.num_trailing


NETWORKS: dict[ModelName, Network] = {
    "vggt": Network(
        build=lambda: make_seeded_vggt(VGGTConfig()), num_special=VGGTConfig().num_special
    ),
    "pi3": Network(
        build=lambda: make_seeded_pi3(Pi3Config()), num_special=Pi3Config().num_registers
    ),
    "pi3x": Network(
        build=lambda: make_seeded_pi3x(Pi3XConfig()), num_special=Pi3XConfig().num_registers
    ),
    "mapanything": Network(
        build=lambda: make_seeded_mapanything(MapAnythingConfig()),
        num_special=MapAnythingConfig().num_special,
        num_trailing=1,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the whole network under several plans."""

    model: ModelName = "vggt"
    """Which network, in its published size."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    frames: tuple[int, ...] = (8,)
    """Numbers of photos; 10 to 1000 on a GPU."""
    size: tuple[int, int] = (392, 518)
    """Height and width of a photo in pixels, multiples of 14."""
    plans: tuple[str, ...] = ("dense", "density 0.5", "density 0.25", "density 0.1")
    """What to run, in this order; where time may run out, the shortest first."""
    precision: Precision = "auto"
    """Arithmetic of the network."""
    repeats: int = 1
    """Passes of each that count, after one on two photos that warms up."""
    minutes: float = 9.0
    """No pass is begun that would probably end later than this."""
    save: bool = True
    """Whether rows are appended to the results, those of each number of photos at once."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure, append the rows, print a table last."""
        deadline = time.monotonic() + 60 * self.minutes
        device = torch.device(self.device)
        model = NETWORKS[self.model].build().to(device)
        rows: list[dict[str, Any]] = []
        for num_frames in self.frames:
            photos = _photos(num_frames, self.size, device)
            of_photos = list(self._rows(model, photos, device, deadline))
            _add_speed_ups(of_photos)
            if self.save:
                append("model", of_photos)
            rows += of_photos
        print(table(rows))

    def _rows(
        self, model: nn.Module, photos: Tensor, device: torch.device, deadline: float
    ) -> Iterator[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        for plan_name in self.plans:
            kernels = _dense_kernels(device) if plan_name == "dense" else {"": nullcontext()}
            for kernel, context in kernels.items():
                if time.monotonic() + self.repeats * _expected_s(done, plan_name) > deadline:
                    print(
                        f"No time left for {plan_name} {kernel} at {len(photos)} photos.",
                        flush=True,
                    )
                    continue
                with context:
                    row = {**self._measure(model, photos, plan_name, device), "kernel": kernel}
                print(table([row]).splitlines()[-1], flush=True)
                done.append(row)
                yield row

    def _measure(
        self, model: nn.Module, photos: Tensor, plan_name: str, device: torch.device
    ) -> dict[str, Any]:
        plan = parse_plan(plan_name, self.model)
        options = InferenceOptions(precision=self.precision)
        outputs: list[Any] = []

        def forward() -> None:
            outputs[:] = [model(photos, plan=plan, options=options)]

        model(photos[:2], plan=plan, options=options)
        timing = measure(forward, device, repeats=self.repeats, warm_up=0)
        layers = outputs[0].attention
        return {
            "model": self.model,
            "frames": len(photos),
            "size": list(self.size),
            "tokens": NETWORKS[self.model].num_tokens(len(photos), self.size),
            "plan": plan_name,
            "backends": sorted({layer.backend for layer in layers}),
            "precision": self.precision,
            "total_ms": round(timing.p50_ms, 1),
            "attention_ms": round(sum(layer.time_ms for layer in layers), 1),
            "selection_ms": round(sum(layer.selection_ms for layer in layers), 1),
            "mean_density": round(sum(layer.density for layer in layers) / len(layers), 4),
            "peak_gib": timing.peak_gib,
            "repeats": self.repeats,
            "machine": describe(self.device),
        }


def _expected_s(done: list[dict[str, Any]], plan_name: str) -> float:
    """Guess how long a pass takes from those on the same photos; 0 if there was none."""
    if plan_name != "dense":
        return min((row["total_ms"] for row in done), default=0.0) / 1e3
    # As if all of the attention cost what the part that was computed did.
    return (
        max(
            (row["total_ms"] + row["attention_ms"] * (1 / row["mean_density"] - 1) for row in done),
            default=0.0,
        )
        / 1e3
    )


def _add_speed_ups(rows: list[dict[str, Any]]) -> None:
    """Compare rows of the same photos with the fastest dense attention among them."""
    for part in ("total", "attention"):
        dense = [row[f"{part}_ms"] for row in rows if row["plan"] == "dense"]
        for row in rows if dense else ():
            row[f"{part}_speed_up"] = round(min(dense) / row[f"{part}_ms"], 3)


def parse_plan(name: str, model: ModelName = "vggt") -> AttentionPlan:
    """Return the plan of a model that a name stands for; see the module's description."""
    *frames, last = name.split(" + ")
    early = int(frames[0].removeprefix("frames ")) if frames else 0
    if last == "dense":
        plan = AttentionPlan.dense()
    elif last.startswith("density "):
        plan = AttentionPlan.block_sparse(density=float(last.removeprefix("density ")))
    else:
        plan = AttentionPlan.preset(model, last)
    layers = {**plan.layers, **dict.fromkeys(range(early), FramePolicy())}
    return AttentionPlan(default=plan.default, layers=layers, depth=plan.depth)


def _photos(num_frames: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return smooth random photos ``[F, 3, H, W]`` in [0, 1]: noise alone would tie no blocks."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_frames, 3, 12, 16, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1).to(device)


def _dense_kernels(device: torch.device) -> dict[str, AbstractContextManager[object]]:
    if device.type != "cuda":
        return {"": nullcontext()}
    return {name: sdpa_kernel(kernel) for name, kernel in _CUDA_KERNELS.items() if kernel}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a short table of rows for the terminal."""
    lines = [
        f"{'photos':>6} {'plan':24} {'density':>7} {'attention ms':>12} {'x':>6} "
        f"{'whole ms':>10} {'x':>6} {'selection ms':>12} {'GiB':>6}  backends"
    ]
    for row in rows:
        lines.append(
            f"{row['frames']:6} {row['plan'] + ' ' + row['kernel']:24.24} "
            f"{row['mean_density']:7.3f} {row['attention_ms']:12.0f} "
            f"{row.get('attention_speed_up', float('nan')):6.2f} {row['total_ms']:10.0f} "
            f"{row.get('total_speed_up', float('nan')):6.2f} {row['selection_ms']:12.0f} "
            f"{row['peak_gib']:6.2f}  {', '.join(row['backends'])}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(Bench).main()
