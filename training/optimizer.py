# SPDX-License-Identifier: Apache-2.0
"""Which optimizer takes which parameter."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn

_HIDDEN_MATRIX = re.compile(r"(blocks|trunk)\.\d+\.(attn|mlp)\..*weight$")
"""Matrices between two hidden layers of a transformer, by name."""
_MOMENTUM = 0.95
"""Of Muon, the value its authors use everywhere."""


class MixedOptimizer:
    """Muon for the matrices inside transformer blocks, AdamW for everything else.

    Muon (K. Jordan et al. 2024, torch's implementation) makes all singular values of a matrix's
    step alike, so that directions which few examples speak of are learnt as fast as the rest.
    Steps are scaled as in arXiv 2502.16982, to the size of AdamW's at the same learning rate; these
    matrices bear several times that (`hidden_rate`), and decay as much a step as all others.

    Args:
        parameters: All that is trained, by name.
        kind: "adamw" leaves Muon out.
        learning_rate: The first; see `set_rate`.
        hidden_rate: Factor on the learning rate of Muon's matrices.
        weight_decay: Of matrices; vectors do not decay.
        betas: Of AdamW.

    Raises:
        ValueError: If Muon is asked for and torch is older than 2.9, which brought it.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        kind: Literal["adamw", "muon"],
        learning_rate: float,
        hidden_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self._hidden_rate = hidden_rate
        hidden = {
            name
            for name, parameter in parameters.items()
            if kind == "muon" and parameter.ndim == 2 and _HIDDEN_MATRIX.search(name)
        }
        others = [parameter for name, parameter in parameters.items() if name not in hidden]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
                    {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
                ],
                lr=learning_rate,
                betas=betas,
                fused=True,
            )
        ]
        if hidden:
            if not hasattr(torch.optim, "Muon"):
                raise ValueError(
                    f"Muon needs torch 2.9 or newer, found {torch.__version__}; update it, or set "
                    '`optimizer="adamw"` in the configuration.'
                )
            self._parts.append(
                torch.optim.Muon(
                    [parameters[name] for name in parameters if name in hidden],
                    lr=hidden_rate * learning_rate,
                    weight_decay=weight_decay / hidden_rate,
                    momentum=_MOMENTUM,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._owner = {
            parameter: part
            for part in self._parts
            for group in part.param_groups
            for parameter in group["params"]
        }

    def set_rate(self, learning_rate: float) -> None:
        """Use this learning rate from now on."""
        for part in self._parts:
            factor = self._hidden_rate if isinstance(part, torch.optim.Muon) else 1.0
            for group in part.param_groups:
                group["lr"] = factor * learning_rate

    def step(self) -> None:
        """Take a step along the gradients that the parameters hold."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return a parameter's running means of gradients ("first") and squares ("second").

        Empty before the first step; Muon keeps no squares.
        """
        state = self._owner[parameter].state.get(parameter, {})
        names = {"first": ("exp_avg", "momentum_buffer"), "second": ("exp_avg_sq",)}
        return {
            moment: state[key] for moment, keys in names.items() for key in keys if key in state
        }

    def restore(self, parameter: nn.Parameter, moments: dict[str, Tensor], step: int) -> None:
        """Put back what `moments` returned.

        Args:
            parameter: Whose.
            moments: First moments may be missing: they come back within steps.
            step: Number of steps taken.
        """
        owner = self._owner[parameter]
        moments = {name: moment.to(parameter.device) for name, moment in moments.items()}
        first = moments.get("first", torch.zeros_like(parameter))
        if not isinstance(owner, torch.optim.AdamW):
            owner.state[parameter] = {"momentum_buffer": first}
        elif "second" in moments:
            owner.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": first,
                "exp_avg_sq": moments["second"],
            }
