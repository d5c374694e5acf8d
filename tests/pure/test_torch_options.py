"""Options that an optimizer has in common with torch.optim, every two together, in float64, with gradients missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.compare import float64_by_default
from ..support.pairs import pairs

STEPS = 9  # RAdam is rectified from the sixth update on, of those that a tensor makes


class Row(NamedTuple):
    make: Callable[..., hft.Optimizer]
    peer: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    close: float = 5e-14  # a dozen operations a step over 9 steps, each off by at most 1.1e-16 of values up to 4

    def __str__(self) -> str:
        return "-".join([self.make.__name__, *(f"{name}={value}" for name, value in self.options.items())])


def rows(make: Callable[..., Any], peer: Callable[..., Any], **choices: list[Any]) -> list[Row]:
    """A row with the defaults, and choices in which every two options meet."""
    return [Row(make, peer, options) for options in [{}, *pairs(choices)]]


MOMENTS: dict[str, list[Any]] = {
    "lr": [0.1],
    "betas": [(0.9, 0.999), (0.5, 0.7)],
    "eps": [1e-8, 1e-2],
    "weight_decay": [0, 0.1],
    "maximize": [False, True],
}
SIDES = {"weight_decay": [0, 0.1], "maximize": [False, True]}
BOTH = [False, True]

ROWS = [
    *rows(hft.sgd, torch.optim.SGD, lr=[0.1], momentum=[0, 0.9], dampening=[0, 0.3], **SIDES),
    *rows(hft.sgd, torch.optim.SGD, lr=[0.1], momentum=[0.9], nesterov=[True], **SIDES),
    *rows(hft.adam, torch.optim.Adam, amsgrad=BOTH, **MOMENTS),
    *rows(hft.adamw, torch.optim.AdamW, amsgrad=BOTH, **MOMENTS),
    *rows(
        hft.rmsprop, torch.optim.RMSprop,
        lr=[0.1], alpha=[0.99, 0.5], eps=[1e-8, 1e-2], momentum=[0, 0.9], centered=BOTH, **SIDES,
    ),
    *rows(
        hft.adagrad, torch.optim.Adagrad,
        lr=[0.1], lr_decay=[0, 0.1], initial_accumulator_value=[0, 0.2], eps=[1e-10, 1e-2], **SIDES,
    ),
    *rows(hft.adadelta, torch.optim.Adadelta, lr=[1.0, 0.1], rho=[0.9, 0.5], eps=[1e-6, 1e-2], **SIDES),
    *rows(hft.adamax, torch.optim.Adamax, **MOMENTS),
    *rows(hft.nadam, torch.optim.NAdam, momentum_decay=[4e-3, 0.3], decoupled_weight_decay=BOTH, **MOMENTS),
    # An ulp of b2^6 = 0.994 is 2e-14 of 1 - b2^6, so 4e-11 of rho = 2000 - 1994, and 1e-12 of a step of 0.1.
    *(
        row._replace(close=5e-12)
        for row in rows(hft.radam, torch.optim.RAdam, decoupled_weight_decay=BOTH, **MOMENTS)
    ),
    *rows(
        hft.rprop, torch.optim.Rprop,
        lr=[0.01, 0.1], etas=[(0.5, 1.2), (0.3, 1.5)], step_sizes=[(1e-6, 50), (0.05, 0.13)], maximize=BOTH,
    ),
    *rows(hft.asgd, torch.optim.ASGD, lr=[0.1], lambd=[1e-4, 0.3], alpha=[0.75, 1.5], t0=[1e6, 0, 2.5], **SIDES),
]  # fmt: skip


def problem() -> tuple[dict[str, Tensor], list[dict[str, Tensor | None]]]:
    """Three parameters and gradients; one has a zero in each, one is missing at first and later, one later on."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"matrix": (2, 3), "late": (4,), "number": ()}

    def some() -> dict[str, Any]:
        return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}

    params, grads = some(), [some() for _ in range(STEPS)]
    for g in grads:
        g["matrix"][0, 0] = 0
    for step, name in [(0, "late"), (4, "late"), (4, "number"), (6, "number")]:
        grads[step][name] = None
    return params, grads


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_options_are_those_of_torch(row: Row):
    params, grads = problem()
    opt = row.make(**row.options)
    state = opt.init(params)
    theirs = {name: torch.nn.Parameter(w.clone()) for name, w in params.items()}
    peer = row.peer(theirs.values(), **row.options)
    for g in grads:
        for name, p in theirs.items():
            p.grad = g[name]
        with float64_by_default():  # torch's dtype for the numbers of a tensor
            peer.step()
        params, state = opt.update(g, state, params)
        equal = partial(torch.testing.assert_close, rtol=row.close, atol=row.close)
        equal(params, {name: p.detach() for name, p in theirs.items()})
        for field, values in state._asdict().items():
            for mine, p in zip(tree.broadcast(values, params) if values != () else [], theirs.values(), strict=False):
                if peer.state[p].get(field) is not None:
                    equal(mine, peer.state[p][field], check_dtype=field != "step")
