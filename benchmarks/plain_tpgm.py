"""TPGM (arXiv 2303.10720) as a plain loop: after a step the weights are projected, with radii that are learned on
held-out examples through the projection. A baseline; the package is not used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PlainTPGM:
    """One update of all radii at a time, by Adam, and the projection of every tensor onto its ball (rows in L1)."""

    def __init__(self, model: nn.Module, lr: float = 1e-2) -> None:
        self.model = model
        self.anchors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.radii = {name: torch.full((), 1e-2, requires_grad=True) for name in self.anchors}
        self.adam = torch.optim.Adam(self.radii.values(), lr=lr)

    def step(self, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> None:
        """After the optimizer's own step."""
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        outputs = torch.func.functional_call(self.model, self._projected(weights), (inputs,))
        slopes = torch.autograd.grad(loss(outputs, targets), list(self.radii.values()))
        for radius, slope in zip(self.radii.values(), slopes, strict=True):
            radius.grad = slope
        self.adam.step()
        with torch.no_grad():
            for name, w in self._projected(weights).items():
                weights[name].copy_(w)

    def _projected(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, w in weights.items():
            c = w - self.anchors[name]
            rows = c.flatten(1) if c.ndim > 1 else c.reshape(1, -1)
            share = (self.radii[name].clamp(min=1e-8) / (rows.abs().sum(1, keepdim=True) + 1e-8)).clamp(max=1)
            found[name] = self.anchors[name] + (share * rows).view_as(c)
        return found
