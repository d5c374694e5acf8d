"""Compiled strategies, each beside the one without compile, and a hypergradient of the small problem by one of them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import hyperopt_ftp as hft

from ..support.problems import start

CHEAP = "eager"  # the programs without the code that inductor makes of them: three seconds, not twenty
PAIRS = {"unroll": (hft.Unroll, hft.Unroll()), "forward": (hft.Forward, hft.Forward())}
every_strategy = pytest.mark.parametrize("name", PAIRS)
#: Sums in another order, over three steps of values of order 1, divided by roots that are at least 1e-2.
CLOSE = 1e-12


def slope(train_loss: Any, data: list[Any], strategy: Any) -> Tensor:
    """Of the sum of squares of ``w``, in the learning rate of SGD."""
    outer = lambda p: p["w"].square().sum()  # noqa: E731
    return hft.hypergradient(hft.sgd(lr=0.1), train_loss, outer, start(), data, "lr", strategy=strategy)[1]["lr"]
