# SPDX-License-Identifier: Apache-2.0
"""``python -m training.export DIR --output FILE``: the averaged weights of a run as one file.

Writes float16 safetensors that `load_vggt` reads, and a model card with the file's own figures on
held-out scenes.
``--ship`` puts both, and the checksum, where the package has them as `tiny`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ns_sparseattn.models import load_vggt
from ns_sparseattn.models.checkpoint import sha256_of
from ns_sparseattn.models.loading import LONG_SIDE_METADATA
from ns_sparseattn.models.shipped import FOLDER, write_checksum
from training.checkpoint import load_checkpoint
from training.generator import GeneratorConfig
from training.heldout import SEED, HeldOutConfig, Score, make_held_out, score
from training.render import RenderOptions
from training.world import Slots

MAX_BYTES = 24_000_000
"""Largest file that ships in the package."""

TEMPLATE = Path(__file__).with_name("model_card.md")

_LARGEST_HALF = 65504.0


def export_weights(folder: Path, output: Path) -> int:
    """Write the averaged weights of a run's last checkpoint.

    Args:
        folder: Of the run.
        output: File ending in ``.safetensors``.

    Returns:
        Number of parameters.

    Raises:
        ValueError: If the run has no checkpoint, a weight is not finite or too large for float16,
            or the file would be too large to ship.
    """
    found = load_checkpoint(folder)
    if found is None:
        raise ValueError(f"{folder} has no checkpoint; give the folder of a training run.")
    tensors, state = found
    prefix = "average/"
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix)
        average = tensor if state["is_exact"] else tensor + tensors[f"weights/model.{key}"]
        if not bool((average.abs() <= _LARGEST_HALF).all()):
            raise ValueError(f"{key} holds values that float16 cannot; the run has gone wrong.")
        weights[key] = average.to(torch.float16).contiguous()
    count = sum(tensor.numel() for tensor in weights.values())
    if 2 * count > MAX_BYTES:
        raise ValueError(
            f"{count} parameters take {2 * count} bytes, and {MAX_BYTES} may ship; train a "
            "smaller network."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    side = max(max(size) for size in _last_sizes(config["pool"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        weights,
        output,
        metadata={"vggt_config": json.dumps(config["model"]), LONG_SIDE_METADATA: str(side)},
    )
    # It is made for its owner alone, which an installed package is not.
    output.chmod(0o644)
    return count


def write_card(folder: Path, weights: Path, card: Path, *, name: str, machine: str) -> Score:
    """Measure exported weights on held-out scenes, and fill the model card's template.

    Args:
        folder: Of the run.
        weights: The exported file.
        card: File to write.
        name: Of the configuration.
        machine: What it was trained on, in words.

    Returns:
        The figures of the card.

    Raises:
        ValueError: If the run has no checkpoint.
    """
    found = load_checkpoint(folder)
    if found is None:
        raise ValueError(f"{folder} has no checkpoint; give the folder of a training run.")
    config, state = json.loads((folder / "config.json").read_text(encoding="utf-8")), found[1]
    model, _ = load_vggt(weights)
    held_out = _held_out(config)
    figures = score(model, make_held_out(held_out, _generator(config), "cpu"))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        machine=machine,
        file=weights.name,
        sha256=sha256_of(weights),
        size_mb=f"{weights.stat().st_size / 1e6:.1f}",
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
        minutes=f"{state['elapsed_s'] / 60.0:.0f}",
        steps=state["step"],
        views=f"{state['step'] * config['frames_per_step'] / 1e6:.2f}",
        seed=config["seed"],
        held_out_seed=SEED,
        num_scenes=held_out.num_scenes * len(held_out.sizes),
        num_frames=held_out.num_frames,
        held_out_sizes=_spell_sizes(held_out.sizes),
        sizes=_spell_sizes(_last_sizes(config["pool"])),
        side=max(max(size) for size in _last_sizes(config["pool"])),
        all_sizes=_spell_sizes([*config["pool"]["sizes"], *_last_sizes(config["pool"])]),
        most_views=config["schedule"]["last_frames"][1],
        budget=_spell_budget(config["budget"]),
        **{key: f"{getattr(figures, key):.3f}" for key in _FIGURES},
        **{
            key: f"{getattr(figures, key):.1f}"
            for key in ("rotation_median_deg", "direction_median_deg")
        },
    )
    card.write_text(text, encoding="utf-8")
    return figures


def _held_out(config: dict[str, Any]) -> HeldOutConfig:
    """Return a run's held-out scenes, as its configuration says."""
    stated = dict(config["held_out"])
    stated["sizes"] = tuple((height, width) for height, width in stated["sizes"])
    return HeldOutConfig(**stated)


def _generator(config: dict[str, Any]) -> GeneratorConfig:
    """Return what a run's scenes are made of."""
    stated = dict(config["generator"])
    stated["slots"] = Slots(**stated["slots"])
    stated["options"] = RenderOptions(**stated["options"])
    return GeneratorConfig(**stated)


_FIGURES = (
    "rotation_auc_5",
    "rotation_auc_30",
    "direction_auc_30",
    "depth_error",
    "constant_rotation_auc_30",
)


def _last_sizes(pool: dict[str, Any]) -> list[list[int]]:
    """Return heights and widths of the photos that a run ends with."""
    return pool.get("late_sizes") or pool["sizes"]


def _spell_sizes(sizes: Sequence[Sequence[int]]) -> str:
    # A size that is drawn more often stands there more than once.
    return ", ".join(dict.fromkeys(f"{width} x {height}" for height, width in sizes))


def _spell_budget(budget: dict[str, Any]) -> str:
    return f"{budget['steps']} steps" if budget["steps"] else f"{budget['minutes']:g} minutes"


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="file to write, .safetensors")
    parser.add_argument("--card", type=Path, help="model card to write")
    parser.add_argument(
        "--ship", action="store_true", help="write weights, card and checksum into the package"
    )
    parser.add_argument("--name", help="configuration of the run, for the card")
    parser.add_argument("--machine", help="what it was trained on, for the card")
    args = parser.parse_args(arguments)
    if args.ship == bool(args.output or args.card):
        parser.error("give --ship, or --output and perhaps --card")
    if args.ship:
        args.output, args.card = FOLDER / "tiny.safetensors", FOLDER / "tiny.md"
    if args.card and not (args.name and args.machine):
        parser.error("a card needs --name and --machine")
    try:
        count = export_weights(args.folder, args.output)
        if args.card:
            write_card(args.folder, args.output, args.card, name=args.name, machine=args.machine)
        if args.ship:
            write_checksum(args.output)
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.output}: {count / 1e6:.2f} million parameters.")


if __name__ == "__main__":
    main()
