# SPDX-License-Identifier: Apache-2.0
"""Make torchvision importable beside a CPU build of torch; part of the development set-up only.

The package index may serve a CUDA build of torchvision where torch is a CPU build. Its compiled
operators then cannot load, and ``import torchvision`` fails because it describes two of them,
``nms`` and ``qnms``. Declaring those two lets everything that is plain PyTorch work: models,
transforms, LPIPS. The declaration is appended to the installed ``torchvision/extension.py`` of this
environment, and acts only while the operators are missing.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

_MARK = (
    "# Added by ns_sparseattn's development set-up: declare what CPU builds of torch cannot load."
)
_SHIM = f"""

{_MARK}
if not _has_ops():
    _missing_ops = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _missing_ops.define(f"{{_name}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def import_error() -> str | None:
    """Import torchvision in a new process, and return the last line of its complaint, if any."""
    run = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    lines = run.stderr.strip().splitlines() or ["no message"]
    return None if run.returncode == 0 else lines[-1]


def main() -> int:
    """Apply the declaration if torchvision needs it, and return the exit code."""
    error = import_error()
    if error is None:
        return 0
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or "torchvision::nms" not in error:
        print(f"torchvision cannot be imported: {error}", file=sys.stderr)
        return 1
    extension = Path(spec.origin).with_name("extension.py")
    source = extension.read_text(encoding="utf-8")
    if _MARK not in source:
        extension.write_text(source + _SHIM, encoding="utf-8")
    error = import_error()
    if error is not None:
        print(
            f"torchvision cannot be imported, even with its operators declared: {error}",
            file=sys.stderr,
        )
        return 1
    print(
        "torchvision: its compiled operators do not fit this torch; declared nms and qnms instead."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
