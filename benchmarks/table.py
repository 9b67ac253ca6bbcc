# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.table``: write the tables of README and docs from rows and presets.

A table stands between two comments that name it, ``<!-- table NAME -->`` and ``<!-- end of table
-->``; what is between them is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import accuracy_tables, refine_tables
from benchmarks.machine import REPOSITORY
from benchmarks.markdown import markdown, table
from benchmarks.rows import read
from ns_sparseattn.models.registry import MODELS
from ns_sparseattn.models.weight_set import WeightSet
from ns_sparseattn.options import DEFAULT_LONG_SIDE

Rows = list[dict[str, Any]]

DOCUMENTS = (
    "README.md",
    "benchmarks/README.md",
    "docs/accuracy.md",
    "docs/attention.md",
    "docs/refinement.md",
)
"""Documents with tables."""
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)


def process_table(rows: Rows) -> str:
    """The whole command with networks of the published size: memory, and time if measured alone."""
    models = list(MODELS)
    # Rows from before there were other models name none.
    rows = sorted(
        (row for row in rows if row["weights"] == "seeded"),
        key=lambda row: (models.index(row.get("model", "vggt")), row["photos"], row["arguments"]),
    )
    lines = []
    for row in rows:
        kind = "dense" if row["mean_density"] == 1.0 else f"density {row['mean_density']:.2f}"
        width, height = row["photo_size"]
        is_shared = row.get("shared", False)
        seen = re.search(r"--long-side (\d+)", row["arguments"])
        lines.append(
            (
                MODELS[row.get("model", "vggt")].title,
                f"{row['photos']}, {row['num_photos']} at {width} x {height}",
                seen[1] if seen else str(DEFAULT_LONG_SIDE),
                kind,
                f"{row['peak_memory_gib']:.1f}",
                "-" if is_shared else f"{row['total_s']:.0f}",
                "-" if is_shared else f"{row['global_attention_s']:.0f}",
            )
        )
    head = "model|photos|long side|attention|peak GiB|total s|of it global attention s"
    return markdown(head, lines, rows)


_LONG = 8192
"""Tokens from which the operation's rows are in the table; the others say where `auto` begins."""


def attention_table(rows: Rows) -> str:
    """The operation on selected lists beside the fastest dense attention of the same run."""
    long = [row for row in rows if row["tokens"] >= _LONG]

    def kind(row: dict[str, Any]) -> tuple[str, ...]:
        machine = row["machine"]
        # Older rows of CPUs do not say; they are of one with AVX512-BF16. GPUs have none.
        default = "avx512_bf16" if machine["kind"] == "cpu" else machine["device"]
        return machine.get("instructions", default), row["dtype"], f"{row['tokens']}"

    dense: dict[tuple[str, ...], float] = {}
    sparse: dict[tuple[str, ...], dict[bool, dict[str, Any]]] = {}
    for row in long:
        if row["lists"] == "dense":
            dense[kind(row)] = min(dense.get(kind(row), float("inf")), row["p50_ms"])
        elif row["lists"] == "selected":
            key = (*kind(row), f"{row['density']:.2f}", row["what"])
            sparse.setdefault(key, {})[row["coarse"]] = row
    lines = [
        (
            *key[:4],
            f"{dense[key[:3]]:.0f}",
            key[4],
            f"{plain['p50_ms']:.0f}",
            f"{plain['speed_up']:.1f}",
            f"{with_coarse['speed_up_with_selection']:.1f}",
            f"{max(plain['error'], with_coarse['error']):.1e}",
        )
        for key, by_coarse in sparse.items()
        for plain, with_coarse in [(by_coarse[False], by_coarse[True])]
    ]
    head = "instructions|dtype|tokens|density|dense ms|backend|ms|speed-up|with selection"
    return markdown(f"{head} and coarse|error", sorted(lines, key=_by_numbers), long)


def _by_numbers(cells: Sequence[str]) -> tuple[str, str, int, float, str]:
    instructions, dtype, tokens, density, _, backend = cells[:6]
    return instructions, dtype, int(tokens), -float(density), backend


def model_table(rows: Rows) -> str:
    """Whole forward passes, speed-up over the fastest dense attention of the run."""
    lines = [
        (
            row["model"],
            f"{row['frames']} at {row['size'][1]} x {row['size'][0]}",
            row["plan"] + (f", {row['kernel']}" if row["kernel"] else ""),
            f"{row['mean_density']:.2f}",
            f"{row['attention_ms'] / 1e3:.1f}",
            f"{row['attention_speed_up']:.2f}" if "attention_speed_up" in row else "",
            f"{row['total_ms'] / 1e3:.1f}",
            f"{row['total_speed_up']:.2f}" if "total_speed_up" in row else "",
            f"{row['peak_gib']:.1f}",
        )
        for row in rows
    ]
    head = "model|photos|plan|density|global attention s|speed-up|network s|speed-up|peak GiB"
    return markdown(head, lines, rows)


def selection_table(rows: Rows) -> str:
    """Orders of patches and the coarse term at equal density."""
    keys = sorted({(row["frames"], row["sharpness"], row["density"]) for row in rows})
    lines = []
    for frames, sharpness, density in sorted(keys, key=lambda key: (key[0], key[1], -key[2])):
        cells = [str(frames), sharpness, f"{density:.2f}"]
        for order in ("raster", "hilbert", "tiles"):
            (row,) = [
                row
                for row in rows
                if (row["frames"], row["sharpness"], row["density"]) == (frames, sharpness, density)
                and row["order"] == order
            ]
            cells += [
                f"{row['kept_mass']:.2f}",
                f"{row['error']:.2f}",
                f"{row['error_coarse']:.2f}",
            ]
        lines.append(cells)
    head = "|".join(
        ["photos", "attention", "density"]
        + [
            f"{order}: {what}"
            for order in ("raster", "hilbert", "tiles")
            for what in ("kept mass", "error", "error, coarse")
        ]
    )
    return markdown(head, lines, rows)


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "process": ("process", process_table),
    "attention": ("attention", attention_table),
    "model": ("model", model_table),
    "selection": ("selection", selection_table),
    **accuracy_tables.TABLES,
    **refine_tables.TABLES,
}
"""Tables by name: the results file that they are made of, and how."""


def _file(weights: WeightSet) -> str:
    """Say where a set's file is from, and how large it is."""
    if weights.repo_id is None:
        size = f"{1e3 * weights.size_gb:.0f} MB"
        return f"in the package ([card](ns_sparseattn/weights/{weights.name}.md)), {size}"
    page = f"[{weights.repo_id}](https://huggingface.co/{weights.repo_id})"
    return f"{page}, {weights.size_gb:.1f} GB"


def weights_table() -> str:
    """The named weights of the package's models, from ``configs/``."""
    lines = []
    for entry in MODELS.values():
        sets, default = entry.family.named_sets()
        told = [kind for kind in ("intrinsics", "poses", "depth") if kind in entry.told]
        for weights in sets.values():
            lines.append(
                (
                    entry.title,
                    f"`{weights.name}`" + (" (default)" if weights.name == default else ""),
                    _file(weights),
                    ", ".join(told) or "-",
                    "metric" if entry.scale == "metric" else "its own",
                    weights.licence,
                    "yes" if weights.commercial_use else "no",
                )
            )
    head = "model|`--weights`|file|can be told|scale|licence of the weights|commercial use"
    return table(head.split("|"), lines)


CATALOGUES: dict[str, Callable[[], str]] = {"weights": weights_table}
"""Tables that are made of the package itself, by name."""


def fill(document: str) -> str:
    """Return a document with its tables made anew from the rows."""

    def make(found: re.Match[str]) -> str:
        name = found[2]
        if name in CATALOGUES:
            made = CATALOGUES[name]()
        else:
            results, of_rows = TABLES[name]
            made = of_rows(read(results))
        return f"{found[1]}\n{made}\n\n{found[3]}"

    return _TABLE.sub(make, document)


def write_tables() -> None:
    """Make the tables of all documents anew."""
    for name in DOCUMENTS:
        path = REPOSITORY / name
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_tables()
