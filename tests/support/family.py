"""The anchored family as a table, and each method once more, from its paper, in NumPy: nothing here uses the package's
own pieces but the names under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer

LR, MOMENTUM, BETAS, EPS = 0.05, 0.9, (0.9, 0.999), 1e-8


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


def l2sp(w, w0, g, base, strength):
    return base.step(w, g + strength * (w - w0))  # the gradient of strength / 2 * |w - w0|^2


def l2sp_decoupled(w, w0, g, base, strength):
    return base.step(w, g) - LR * strength * (w - w0)


def cautious_decay(w, w0, g, base, strength):
    update = (w - base.step(w, g)) / LR
    agree = np.sign(update) * np.sign(w - w0) >= 0
    return w - LR * (update + strength * agree * (w - w0))


def spd(w, w0, g, base, strength):
    new = base.step(w, g)
    if -np.vdot(g, w - w0) < 0:
        here, before = np.linalg.norm(new - w0), np.linalg.norm(w - w0)
        new = new - strength * max(0.0, (here - before) / here) * (new - w0)
    return new


def mars_sp(w, w0, g, base, radius):
    c = base.step(w, g) - w0
    rows = c.reshape(c.shape[0], -1) if c.ndim > 1 else c.reshape(1, -1)
    norms = np.abs(rows).sum(1) + 1e-8
    return w0 + (rows * np.minimum(radius / norms, 1)[:, None]).reshape(c.shape)


class Digrap:
    """Algorithm 1 of arXiv 2502.15895 without its normalisation of the hypergradient."""

    def __init__(self, omega_lr: float, exact: bool = False) -> None:
        self.omega, self.rule, self.last, self.exact = 0.0, Adam(omega_lr, 1e-16), 0.0, exact

    def __call__(self, w, w0, g, base):
        d = w - w0
        self.omega = float(np.clip(self.rule.step(self.omega, LR * np.sum(g * self.last)), 0, 1))
        along = np.vdot(g, d) / np.vdot(d, d) * d if d.any() else 0 * d
        projects = np.vdot(g, d) >= 0
        self.last = along if projects or not self.exact else 0.0
        return base.step(w, g - self.omega * along if projects else g)


@dataclass(frozen=True)
class Method:
    name: str
    pure: Callable[..., Optimizer]  # (base, anchor)
    around: Callable[..., Any]  # the class, (torch optimizer, **where the anchor is)
    paper: Callable[[], Callable]  # makes step(w, w0, g, base) -> w

    def __str__(self) -> str:
        return self.name


def row(name: str, pure: Callable, around: Callable, paper: Callable, **options: Any) -> Method:
    """A method without state: the same options everywhere."""
    given = {key: value for key, value in options.items() if not isinstance(value, bool)}
    return Method(
        name,
        lambda base, anchor: pure(base, anchor, **options),
        lambda base, **rest: around(base, **options, **rest),
        lambda: lambda w, w0, g, base: paper(w, w0, g, base, **given),
    )


def digrap(gradient: str) -> Method:
    return Method(
        f"digrap-{gradient}",
        lambda base, anchor: hft.digrap(base, anchor, omega_lr=0.2, gradient=gradient),
        lambda base, **rest: hft.DiGraP(base, omega_lr=0.2, gradient=gradient, **rest),
        lambda: Digrap(0.2, gradient == "exact"),
    )


METHODS = [
    row("l2sp", hft.l2sp, hft.L2SP, l2sp, strength=0.7),
    row("l2sp-decoupled", hft.l2sp, hft.L2SP, l2sp_decoupled, strength=0.7, decoupled=True),
    row("cautious_decay", hft.cautious_decay, hft.CautiousDecay, cautious_decay, strength=0.7),
    row("spd", hft.spd, hft.SPD, spd, strength=0.8),
    row("mars_sp", hft.projected, hft.MARSSP, mars_sp, radius=0.3),
    digrap("paper"),
    digrap("exact"),
]

BASES = {
    "sgd": (lambda: hft.sgd(lr=LR, momentum=MOMENTUM), lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM), Sgd),
    "adam": (lambda: hft.adam(lr=LR), lambda p: torch.optim.Adam(p, lr=LR), Adam),
}

SHAPES = {"weight": (3, 4), "bias": (4,), "conv": (2, 2, 3, 3)}


def problem(seed: int = 0, steps: int = 30) -> tuple[dict, dict, list[dict]]:
    """Anchors, first weights off them, and gradients that turn around, slowly and then at each step."""
    random = np.random.default_rng(seed)
    anchor = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    first = {name: w + 0.1 * random.normal(size=w.shape) for name, w in anchor.items()}
    drift = {name: random.normal(size=w.shape) for name, w in anchor.items()}
    grads = [
        {n: np.cos(t / 4 if t < 10 else 2.4 * t) * drift[n] + 0.5 * random.normal(size=drift[n].shape) for n in drift}
        for t in range(steps)
    ]
    return anchor, first, grads


def trajectory(method: Method, base: str, seed: int = 0) -> list[dict]:
    """Weights after each step, by the transcription."""
    anchor, weights, grads = problem(seed)
    steps = {name: (method.paper(), BASES[base][2]()) for name in anchor}
    found = []
    for g in grads:
        weights = {n: steps[n][0](w, anchor[n], g[n], steps[n][1]) for n, w in weights.items()}
        found.append(weights)
    return found


def tensors(arrays: dict) -> dict:
    return {name: torch.tensor(x) for name, x in arrays.items()}


def parameters(arrays: dict, dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.tensor(x).to(dtype)) for name, x in arrays.items()}


def play(params: dict, opt, grads: list[dict]):
    for t, g in enumerate(grads):
        for name, p in params.items():
            p.grad = None if g[name] is None else torch.tensor(g[name]).to(p.dtype)
        opt.step()
        yield t
