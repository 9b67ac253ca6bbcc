# SPDX-License-Identifier: Apache-2.0
"""What a wheel holds beside the package folder itself.

- The start-up files go to the top of site-packages, in normal and editable installs alike.
- ``kernels/`` and ``configs/`` stand at the top level of the repository and are installed as
  sub-packages. An editable install finds them through the links inside ``ns_sparseattn/``; a wheel
  gets copies.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP_FILES = {
    f"startup/{name}": name
    for name in ("ns_sparseattn.pth", "ns_sparseattn.start", "_ns_sparseattn_hook.py")
}
TOP_LEVEL_PACKAGES = {name: f"ns_sparseattn/{name}" for name in ("configs", "kernels")}


class WheelHook(BuildHookInterface):
    """Add files that do not lie where they are installed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fill in hatchling's table of forced files.

        Args:
            version: ``"standard"`` or ``"editable"``.
            build_data: hatchling's tables, changed in place.
        """
        if version == "editable":
            build_data["force_include_editable"].update(STARTUP_FILES)
        else:
            build_data["force_include"].update(STARTUP_FILES | TOP_LEVEL_PACKAGES)
