# SPDX-License-Identifier: Apache-2.0
"""What a retrofit took, what it could not, and what the layers did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..stats import LayerStats

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RetrofitReport:
    """A retrofitted model and its latest forward pass."""

    taken: tuple[str, ...]
    """Paths of the attention modules that run under the plan."""
    skipped: tuple[str, ...]
    """One sentence for each global layer that runs as before, with the reason."""
    layers: tuple[LayerStats, ...]
    """What each layer under the plan did in the latest forward pass, in order of the calls."""


class Retrofit:
    """What `sparsify` gives to its caller: reports, as the model runs.

    Args:
        names: Path of each global attention module, by layer.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._reasons: dict[int, str] = {}
        self._logged: set[str] = set()
        self._read_layers: Callable[[], tuple[LayerStats, ...]] = tuple

    @property
    def report(self) -> RetrofitReport:
        """The state now; frozen. Waits for the device if a layer has not finished."""
        return RetrofitReport(
            taken=tuple(n for i, n in enumerate(self._names) if i not in self._reasons),
            skipped=tuple(
                f"{self._names[layer]} runs as before: {reason}."
                for layer, reason in sorted(self._reasons.items())
            ),
            layers=self._read_layers(),
        )

    @property
    def taken(self) -> tuple[str, ...]:
        """As `RetrofitReport.taken`."""
        return self.report.taken

    @property
    def skipped(self) -> tuple[str, ...]:
        """As `RetrofitReport.skipped`."""
        return self.report.skipped

    @property
    def layers(self) -> tuple[LayerStats, ...]:
        """As `RetrofitReport.layers`."""
        return self.report.layers

    def _update(
        self, reasons: dict[int, str], read_layers: Callable[[], tuple[LayerStats, ...]]
    ) -> None:
        """Enter a forward pass: why layers were left out, and where to read what the rest did."""
        self._reasons = reasons
        self._read_layers = read_layers

    def _log_reasons(self) -> None:
        """Warn of layers that were left out, once for each reason."""
        for reason in dict.fromkeys(self._reasons.values()):
            if reason not in self._logged:
                self._logged.add(reason)
                names = [self._names[i] for i, why in self._reasons.items() if why == reason]
                more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
                _logger.warning("%s%s will run as before: %s.", names[0], more, reason)
