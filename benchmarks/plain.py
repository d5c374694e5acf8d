"""FTP and TPGM as plain loops over tensors, as first implementations have them: baselines, without the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class PlainFTPAdamW:
    """The rule for AdamW (arXiv 2310.19182, Algorithm 1): one eager op after the other, a fresh tensor for each; one
    ``.item()`` per layer and step."""

    def __init__(self, params: Sequence[torch.Tensor], lr: float, radius_lr: float = 1e-2, kappa: float = 1.0) -> None:
        self.params, self.lr, self.radius_lr, self.kappa = params, lr, radius_lr, kappa
        self.anchors = [p.detach().clone() for p in params]
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]
        self.c = [torch.zeros_like(p) for p in params]
        self.radius: list = [1e-8] * len(params)
        self.rm, self.rv, self.t = [0.0] * len(params), [0.0] * len(params), 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        t, b1, b2 = self.t, 0.9, 0.999
        for i, p in enumerate(self.params):
            g, w0 = p.grad, self.anchors[i]
            assert g is not None
            rows = (lambda x: x.reshape(1, -1)) if p.ndim < 2 else (lambda x: x.flatten(1))
            n = rows(self.c[i]).abs().sum(1, keepdim=True) + 1e-8
            h = (rows(g) * rows(self.c[i]) / n).sum().item()
            h = self.kappa * h if h > 0 else h
            self.rm[i] = b1 * self.rm[i] + (1 - b1) * h
            self.rv[i] = b2 * self.rv[i] + (1 - b2) * h * h
            move = (self.rm[i] / (1 - b1**t)) / ((self.rv[i] / (1 - b2**t)) ** 0.5 + 1e-8)
            gamma = max(self.radius[i] - self.radius_lr * move, 1e-8)
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
            direction = (self.m[i] / (1 - b1**t)) / ((self.v[i] / (1 - b2**t)).sqrt() + 1e-8)
            self.c[i] = (p - self.lr * direction) - w0
            n = rows(self.c[i]).abs().sum(1, keepdim=True) + 1e-8
            self.radius[i] = min(gamma, n.max().item())
            p.copy_(w0 + ((self.radius[i] / n).clamp(max=1) * rows(self.c[i])).view_as(p))


class PlainTPGM:
    """TPGM (arXiv 2303.10720): after a step the weights are projected, with radii that are learned on held-out examples
    through the projection. All radii are updated at a time, by Adam; every tensor's ball is of rows in L1."""

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
