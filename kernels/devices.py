# SPDX-License-Identifier: Apache-2.0
"""On which devices the kernels run."""

from __future__ import annotations

import torch

OLDEST_CAPABILITY = (8, 0)
"""Before, tensor cores know no bfloat16 and no tf32, and copies are not asynchronous."""


def why_not_on(device: torch.device, *, is_interpreted: bool) -> str | None:
    """Say in one sentence why the kernels cannot run on a device; none if they can.

    Args:
        device: Where the tensors are.
        is_interpreted: Whether Triton's interpreter runs them, which needs no GPU.
    """
    if device.type != "cuda":
        if is_interpreted:
            return None
        return f"The kernels run on CUDA devices only, not on {device.type}."
    if torch.version.hip is not None:
        return "The kernels were made for NVIDIA GPUs, this is one of AMD."
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        oldest, found = (".".join(map(str, x)) for x in (OLDEST_CAPABILITY, capability))
        return f"The kernels need compute capability {oldest} or later, this GPU has {found}."
    return None
