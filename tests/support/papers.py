"""Each method of the family once more, from its paper, in NumPy, with the names of the package's options.

A transcription is made of its options and gives step(w, w0, g, base) -> w for one array.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

LR, MOMENTUM, BETAS, EPS = 0.05, 0.9, (0.9, 0.999), 1e-8

Step = Callable[..., Any]


class Sgd:
    """SGD with momentum on one array."""

    def __init__(self) -> None:
        self.m: Any = None

    def step(self, w, g):
        self.m = g if self.m is None else MOMENTUM * self.m + g
        return w - LR * self.m


class Adam:
    """Adam on one array (arXiv 1412.6980, Algorithm 1)."""

    def __init__(self, lr: float = LR, eps: float = EPS) -> None:
        self.m, self.v, self.t, self.lr, self.eps = 0.0, 0.0, 0, lr, eps

    def step(self, w, g):
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        m, v = self.m / (1 - BETAS[0] ** self.t), self.v / (1 - BETAS[1] ** self.t)
        return w - self.lr * m / (np.sqrt(v) + self.eps)


def l2sp(strength: float, decoupled: bool = False) -> Step:
    def coupled_step(w, w0, g, base):
        return base.step(w, g + strength * (w - w0))  # the gradient of strength / 2 * |w - w0|^2

    def decoupled_step(w, w0, g, base):
        return base.step(w, g) - LR * strength * (w - w0)

    return decoupled_step if decoupled else coupled_step


def cautious_decay(strength: float) -> Step:
    def step(w, w0, g, base):
        update = (w - base.step(w, g)) / LR
        agree = np.sign(update) * np.sign(w - w0) >= 0
        return w - LR * (update + strength * agree * (w - w0))

    return step


def recall(strength: float, rate: float, midpoint: float) -> Step:
    steps = itertools.count(1)

    def step(w, w0, g, base):
        share = 1 / (1 + np.exp(-rate * (next(steps) - midpoint)))
        return w + share * (base.step(w, g) - w) - LR * (1 - share) * strength * (w - w0)

    return step


def spd(strength: float) -> Step:
    def step(w, w0, g, base):
        new = base.step(w, g)
        if -np.vdot(g, w - w0) < 0:
            here, before = np.linalg.norm(new - w0), np.linalg.norm(w - w0)
            new = new - strength * max(0.0, (here - before) / here) * (new - w0)
        return new

    return step


def rows(c):
    return c.reshape(c.shape[0], -1) if c.ndim > 1 else c.reshape(1, -1)


def norms(c):
    """Of the rows, in L1."""
    return np.abs(rows(c)).sum(1) + 1e-8


def into_balls(c, radius):
    return (rows(c) * np.minimum(radius / norms(c), 1)[:, None]).reshape(c.shape)


def mars_sp(radius: float) -> Step:
    return lambda w, w0, g, base: w0 + into_balls(base.step(w, g) - w0, radius)


class Ftp:
    """Algorithm 1 of arXiv 2310.19182, whose radius starts where the weights are; "exact": over clipped rows alone."""

    def __init__(self, radius_lr: float, kappa: float = 1.0, gradient: str = "paper") -> None:
        self.radius, self.rule, self.c = 0.0, Adam(radius_lr), 0.0
        self.kappa, self.exact = kappa, gradient == "exact"

    def __call__(self, w, w0, g, base):
        if self.rule.t == 0:
            self.c, self.radius = 0 * w, norms(w - w0).max()
        counts = norms(self.c) >= self.radius if self.exact else 1
        h = np.sum(rows(g * self.c).sum(1) / norms(self.c) * counts)
        self.radius = max(self.rule.step(self.radius, h * self.kappa if h > 0 else h), 1e-8)
        self.c = base.step(w, g) - w0
        self.radius = min(self.radius, norms(self.c).max())
        return w0 + into_balls(self.c, self.radius)


def along(d, g):
    """The part of a gradient along the deviation."""
    return np.vdot(g, d) / np.vdot(d, d) * d if d.any() else 0 * d


def directed(omega: float) -> Step:
    def step(w, w0, g, base):
        d = w - w0
        return base.step(w, g - omega * along(d, g) if np.vdot(g, d) >= 0 else g)

    return step


class Digrap:
    """Algorithm 1 of arXiv 2502.15895 without its normalisation of the hypergradient."""

    def __init__(self, omega_lr: float, gradient: str = "paper") -> None:
        self.omega, self.rule, self.last, self.exact = 0.0, Adam(omega_lr, 1e-16), 0.0, gradient == "exact"

    def __call__(self, w, w0, g, base):
        d = w - w0
        self.omega = float(np.clip(self.rule.step(self.omega, LR * np.sum(g * self.last)), 0, 1))
        projects = np.vdot(g, d) >= 0
        self.last = along(d, g) if projects or not self.exact else 0.0
        return base.step(w, g - self.omega * along(d, g) if projects else g)
