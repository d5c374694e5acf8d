"""The one table of the family: a row for each method around an optimizer, with the options that the tests give it.

What runs over the family takes its methods from here, so a new method is a row. A test misses the row of a class or
pure function that the package exports and that is not here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import Optimizer

from . import papers


@dataclass(frozen=True)
class Method:
    """A method, and the option values at which it is its base: ``zero`` bit for bit, ``free`` up to rounding."""

    name: str
    pure: Callable[..., Optimizer]  # (base, anchor, **options)
    drop_in: type[torch.optim.Optimizer] | None  # (torch optimizer, **options)
    paper: Callable[..., papers.Step] | None  # (**options)
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

    def transcribed(self) -> papers.Step:
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


def descent(base: Optimizer, anchor: Any, lr_lr: float) -> Optimizer:
    """Holds nothing near an anchor; for all tensors together, so that a transcription of one of them has no place."""
    return hft.hyper(base, by=hft.sgd(lr=lr_lr), over="lr")


#: Options that are no numbers make a variant of a class; the one without them stands first.
FAMILY = [
    Method("l2sp", hft.l2sp, hft.L2SP, papers.l2sp, {"strength": 0.7}, zero={"strength": 0.0}),
    Method(
        "l2sp-decoupled", hft.l2sp, hft.L2SP, papers.l2sp, {"strength": 0.7, "decoupled": True}, zero={"strength": 0.0}
    ),
    Method(
        "cautious_decay", hft.cautious_decay, hft.CautiousDecay, papers.cautious_decay, {"strength": 0.7},
        zero={"strength": 0.0},
    ),
    Method(
        "recall", hft.recall, hft.Recall, papers.recall, {"strength": 0.7, "rate": 0.3, "midpoint": 10.0},
        free={"midpoint": -math.inf},
    ),
    Method("spd", hft.spd, hft.SPD, papers.spd, {"strength": 0.8}, zero={"strength": 0.0}),
    Method("mars_sp", hft.projected, hft.MARSSP, papers.mars_sp, {"radius": 0.3}, free={"radius": math.inf}),
    Method("ftp", hft.ftp, hft.FTP, papers.Ftp, {"radius_lr": 0.05, "kappa": 0.8}),
    Method("ftp-exact", hft.ftp, hft.FTP, papers.Ftp, {"radius_lr": 0.05, "gradient": "exact"}),
    Method("directed", hft.directed, None, papers.directed, {"omega": 0.6}, zero={"omega": 0.0}),
    Method("digrap-paper", hft.digrap, hft.DiGraP, papers.Digrap, {"omega_lr": 0.2}, zero={"omega_lr": 0.0}),
    Method(
        "digrap-exact", hft.digrap, hft.DiGraP, papers.Digrap, {"omega_lr": 0.2, "gradient": "exact"},
        zero={"omega_lr": 0.0},
    ),
    Method(
        "hypergradient_descent", descent, hft.HypergradientDescent, None, {"lr_lr": 1e-4}, zero={"lr_lr": 0.0}
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
