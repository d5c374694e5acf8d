"""The published FTP rule as a plain loop over tensors, as a first implementation has it.

Written from the rule for AdamW (arXiv 2310.19182, Algorithm 1) as a baseline; the package is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class PlainFTPAdamW:
    """One eager op after the other, a fresh tensor for each; one ``.item()`` per layer and step."""

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
