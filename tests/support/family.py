"""The one table of the family: a row for each method around an optimizer, with the options that the tests give it.

First each method once more, from its paper, in NumPy, with the names of the package's options: a transcription is made
of its options and gives step(w, w0, g, base) -> w for one array.

What runs over the family takes its methods from here, so a new method is a row. A test misses the row of a class or
pure function that the package exports and that is not here.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer

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
    """L2-SP, section 3.1 of arXiv 1802.01483; decoupled as in arXiv 1711.05101."""

    def coupled_step(w, w0, g, base):
        return base.step(w, g + strength * (w - w0))  # the gradient of strength / 2 * |w - w0|^2

    def decoupled_step(w, w0, g, base):
        return base.step(w, g) - LR * strength * (w - w0)

    return decoupled_step if decoupled else coupled_step


def cautious_decay(strength: float) -> Step:
    """Algorithm 1 of arXiv 2510.12402, toward the anchor."""

    def step(w, w0, g, base):
        update = (w - base.step(w, g)) / LR
        agree = np.sign(update) * np.sign(w - w0) >= 0
        return w - LR * (update + strength * agree * (w - w0))

    return step


def recall(strength: float, rate: float, midpoint: float) -> Step:
    """Algorithm 1 of arXiv 2004.12651."""
    steps = itertools.count(1)

    def step(w, w0, g, base):
        share = 1 / (1 + np.exp(-rate * (next(steps) - midpoint)))
        return w + share * (base.step(w, g) - w) - LR * (1 - share) * strength * (w - w0)

    return step


def spd(strength: float) -> Step:
    """Algorithm 1 of arXiv 2411.01713."""

    def step(w, w0, g, base):
        new = base.step(w, g)
        if -np.vdot(g, w - w0) < 0:
            here, before = np.linalg.norm(new - w0), np.linalg.norm(w - w0)
            new = new - strength * max(0.0, (here - before) / here) * (new - w0)
        return new

    return step


def rows(c):
    """Dim 0 and the rest; a vector is one row."""
    return c.reshape(c.shape[0], -1) if c.ndim > 1 else c.reshape(1, -1)


def norms(c):
    """Of the rows, in L1."""
    return np.abs(rows(c)).sum(1) + 1e-8


def into_balls(c, radius):
    """Each row scaled down to the radius, eq. 3 of arXiv 2310.19182."""
    return (rows(c) * np.minimum(radius / norms(c), 1)[:, None]).reshape(c.shape)


def mars_sp(radius: float) -> Step:
    """Projection into balls of one radius, arXiv 2002.08253."""
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
    """Eqs. 3 to 7 of arXiv 2502.15895, with a given strength."""

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


# The table


@dataclass(frozen=True)
class Method:
    """A method, and the option values at which it is its base: ``zero`` bit for bit, ``free`` up to rounding."""

    name: str
    pure: Callable[..., Optimizer]  # (base, anchor, **options)
    drop_in: type[torch.optim.Optimizer] | None  # (torch optimizer, **options)
    paper: Callable[..., Step] | None  # (**options)
    options: dict[str, Any]
    zero: dict[str, Any] | None = None
    free: dict[str, Any] | None = None

    def held(self, base: Optimizer, anchor: Any, **changes: Any) -> Optimizer:
        """The pure optimizer."""
        return self.pure(base, anchor, **{**self.options, **changes})

    def around(self, base: torch.optim.Optimizer, **changes: Any) -> Any:
        """The drop-in one; ``changes`` also say where its anchor is."""
        assert self.drop_in is not None
        return self.drop_in(base, **{**self.options, **changes})

    def transcribed(self) -> Step:
        assert self.paper is not None
        return self.paper(**self.options)

    @property
    def title(self) -> str:
        """The class, and which of its variants it is."""
        assert self.drop_in is not None
        variant = [f"{name}={x!r}" for name, x in self.options.items() if isinstance(x, (bool, str))]
        return self.drop_in.__name__ + (f"({', '.join(variant)})" if variant else "")

    def __str__(self) -> str:
        return self.name


#: Options that are no numbers make a variant of a class; the one without them stands first.
FAMILY = [
    Method("l2sp", hft.l2sp, hft.L2SP, l2sp, {"strength": 0.7}, zero={"strength": 0.0}),
    Method(
        "l2sp-decoupled", hft.l2sp, hft.L2SP, l2sp, {"strength": 0.7, "decoupled": True}, zero={"strength": 0.0}
    ),
    Method(
        "cautious_decay", hft.cautious_decay, hft.CautiousDecay, cautious_decay, {"strength": 0.7},
        zero={"strength": 0.0},
    ),
    Method(
        "recall", hft.recall, hft.Recall, recall, {"strength": 0.7, "rate": 0.3, "midpoint": 10.0},
        free={"midpoint": -1e9},
    ),
    Method("spd", hft.spd, hft.SPD, spd, {"strength": 0.8}, zero={"strength": 0.0}),
    Method("mars_sp", hft.projected, hft.MARSSP, mars_sp, {"radius": 0.3}, free={"radius": math.inf}),
    Method("ftp", hft.ftp, hft.FTP, Ftp, {"radius_lr": 0.05, "kappa": 0.8}),
    Method("ftp-exact", hft.ftp, hft.FTP, Ftp, {"radius_lr": 0.05, "gradient": "exact"}),
    Method("directed", hft.directed, None, directed, {"omega": 0.6}, zero={"omega": 0.0}),
    Method("digrap-paper", hft.digrap, hft.DiGraP, Digrap, {"omega_lr": 0.2}, zero={"omega_lr": 0.0}),
    Method(
        "digrap-exact", hft.digrap, hft.DiGraP, Digrap, {"omega_lr": 0.2, "gradient": "exact"},
        zero={"omega_lr": 0.0},
    ),
]  # fmt: skip

#: Held near an anchor, as pure functions and as classes.
PURE = [method for method in FAMILY if "anchor" in inspect.signature(method.pure).parameters and method.paper]
HELD = [method for method in PURE if method.drop_in]
#: All classes.
CLASSES = {method.title: method for method in FAMILY if method.drop_in}

#: What is no value of an option, by the type of its values: the value, the error, what its text says after "must".
WRONG_OPTIONS: dict[type, list[tuple[Any, type[Exception], str]]] = {
    float: [(math.nan, ValueError, "lie in"), ("big", TypeError, "be a number")],
    bool: [(1, TypeError, "be True or False, got 1")],
    str: [("other", ValueError, "be one of")],
}

every_held = pytest.mark.parametrize("method", HELD, ids=str)
every_class = pytest.mark.parametrize("name", CLASSES)
