"""Options against torch.optim, and of what torch does not have against the papers: every two together, in float64, with
gradients missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support import papers
from ..support.cases import BASES
from ..support.compare import float64_by_default
from ..support.pairs import pairs

STEPS = 9  # RAdam is rectified from the sixth update on, of those that a tensor makes

ALL = {"matrix": (3, 4), "tall": (5, 2), "images": (2, 3, 2, 2), "late": (4,), "number": ()}
MATRICES = {"matrix": (3, 4), "tall": (5, 2), "late": (1, 3), "number": (1, 1)}

# A few dozen operations a step over 9 steps, each off by at most 1.1e-16 of values up to 4.
CLOSE = 5e-14


class Row(NamedTuple):
    make: Callable[..., hft.Optimizer]
    peer: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    own: dict[str, Any]  # options that the peer does not have
    shapes: dict[str, tuple[int, ...]]
    close: float

    def __str__(self) -> str:
        return "-".join([self.make.__name__, *(f"{k}={v}" for k, v in (self.options | self.own).items())])


def rows(
    make: Callable[..., Any],
    peer: Callable[..., Any],
    shapes: Any = ALL,
    close: float = CLOSE,
    own: Any = (),
    **choices: list[Any],
) -> list[Row]:
    """Choices in which every two options meet; without any, the defaults."""
    return [Row(make, peer, options, dict(own), shapes, close) for options in pairs(choices)]


MOMENTS: dict[str, list[Any]] = {
    "lr": [0.1],
    "betas": [(0.9, 0.999), (0.5, 0.7)],
    "eps": [1e-8, 1e-2],
    "weight_decay": [0, 0.1],
    "maximize": [False, True],
}
PAIRS = [(0.9, 0.999), (0.5, 0.7)]
SIDES = {"weight_decay": [0, 0.1], "maximize": [False, True]}
BOTH = [False, True]
UP = {"maximize": True}
AVERAGE: dict[str, list[Any]] = {
    "lr": [0.3], "weight_decay": [0, 0.1], "warmup_steps": [0, 3], "r": [0, 0.5], "weight_lr_power": [0, 2],
}  # fmt: skip
ADOPT: dict[str, list[Any]] = {
    "lr": [0.1], "betas": [(0.9, 0.9999), (0.5, 0.7)], "eps": [1e-6, 0.3], "weight_decay": [0, 0.1],
    "clip_power": [0.25, 0.0, None], "decoupled": BOTH,
}  # fmt: skip
# Sums of bfloat16 products may be added in another order: 2^-23 of values up to 2, of a step of 0.1 times a scale up
# to 1.6. A number that is rounded at another place is off by 2^-9.
BFLOAT16 = {"close": 1e-6, "own": {"ns_dtype": torch.bfloat16}}

ROWS = [
    *(
        Row(make, peer, {}, {}, ALL, 5e-12 if make is hft.radam else CLOSE)
        for make, peer in (
            (hft.sgd, torch.optim.SGD), (hft.adam, torch.optim.Adam), (hft.adamw, torch.optim.AdamW),
            (hft.rmsprop, torch.optim.RMSprop), (hft.adagrad, torch.optim.Adagrad), (hft.asgd, torch.optim.ASGD),
            (hft.adadelta, torch.optim.Adadelta), (hft.adamax, torch.optim.Adamax), (hft.nadam, torch.optim.NAdam),
            (hft.radam, torch.optim.RAdam), (hft.rprop, torch.optim.Rprop),
        )
    ),
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
    *rows(hft.radam, torch.optim.RAdam, close=5e-12, decoupled_weight_decay=BOTH, **MOMENTS),
    *rows(
        hft.rprop, torch.optim.Rprop,
        lr=[0.01, 0.1], etas=[(0.5, 1.2), (0.3, 1.5)], step_sizes=[(1e-6, 50), (0.05, 0.13)], maximize=BOTH,
    ),
    *rows(hft.asgd, torch.optim.ASGD, lr=[0.1], lambd=[1e-4, 0.3], alpha=[0.75, 1.5], t0=[1e6, 0, 2.5], **SIDES),
    *rows(hft.adafactor, torch.optim.Adafactor),
    *rows(
        hft.adafactor, torch.optim.Adafactor,
        lr=[0.1, 1.0], beta2_decay=[-0.8, -0.3], eps=[(None, 1e-3), (0.3, 0.9)], d=[1.0, 1.5], weight_decay=[0, 0.1],
        maximize=BOTH,
    ),
    *rows(hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16),
    *rows(
        hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16,
        lr=[0.1], weight_decay=[0, 0.1], momentum=[0.95, 0.5], nesterov=BOTH,
        adjust_lr_fn=[None, "original", "match_rms_adamw"],
    ),
    *rows(
        hft.muon, torch.optim.Muon, MATRICES, **BFLOAT16,
        lr=[0.1], ns_coefficients=[(2.0, -1.5, 0.5)], ns_steps=[1, 5], eps=[1e-7, 4.0],
    ),
    *rows(hft.muon, torch.optim.Muon, MATRICES, 1e-6, {**BFLOAT16["own"], **UP}, lr=[0.1]),
    *rows(hft.schedule_free_sgd, papers.schedule_free_sgd, momentum=[0.9, 0.0, 1.0], **AVERAGE),
    *rows(hft.schedule_free_sgd, papers.schedule_free_sgd, own=UP, lr=[0.3]),
    *rows(
        hft.schedule_free_adamw, papers.schedule_free_adamw, betas=[(0.9, 0.999), (0.5, 0.7)], eps=[1e-8, 1e-2],
        **AVERAGE,
    ),
    *rows(hft.schedule_free_adamw, papers.schedule_free_adamw, own=UP, lr=[0.3]),
    *rows(
        hft.adan, papers.adan,
        lr=[0.1], betas=[(0.98, 0.92, 0.99), (0.5, 0.0, 0.7)], eps=[1e-8, 1e-2], weight_decay=[0, 0.1],
    ),
    *rows(hft.adan, papers.adan, own=UP, lr=[0.1]),
    *rows(hft.adopt, papers.adopt, **ADOPT),
    *rows(hft.adopt, papers.adopt, own=UP, lr=[0.1]),
    *rows(hft.lion, papers.lion, lr=[0.1], betas=[(0.9, 0.99), (0.5, 0.7)], weight_decay=[0, 0.1]),
    *rows(hft.lion, papers.lion, own=UP, lr=[0.1]),
    *rows(hft.signum, papers.signum, lr=[0.1], momentum=[0.9, 0.0], weight_decay=[0, 0.1]),
    *rows(hft.signum, papers.signum, own=UP, lr=[0.1]),
    *rows(hft.adabelief, papers.adabelief, lr=[0.1], betas=PAIRS, eps=[1e-16, 1e-2]),
    *rows(hft.adabelief, papers.adabelief, own=UP, lr=[0.1]),
    *rows(
        hft.yogi, papers.yogi,
        lr=[0.1], betas=PAIRS, eps=[1e-3, 0.1], initial_accumulator_value=[1e-6, 0.3],
    ),
    *rows(hft.yogi, papers.yogi, own=UP, lr=[0.1]),
    *rows(hft.lamb, papers.lamb, lr=[0.1], betas=PAIRS, eps=[1e-6, 1e-2], weight_decay=[0, 0.1]),
    *rows(hft.lamb, papers.lamb, own=UP, lr=[0.1]),
    *rows(
        hft.lars, papers.lars,
        lr=[1.0], momentum=[0.9, 0], weight_decay=[0, 0.1], trust_coefficient=[1e-3, 0.1], eps=[0, 0.1], nesterov=BOTH,
    ),
    *rows(hft.lars, papers.lars, own=UP, lr=[0.1]),
]  # fmt: skip


def problem(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[dict[str, Tensor | None]]]:
    """Parameters and gradients; one has a zero in each, one is missing at first and later, one later on."""
    generator = torch.Generator().manual_seed(5)

    def some() -> dict[str, Any]:
        return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}

    params, grads = some(), [some() for _ in range(STEPS)]
    for g in grads:
        g["matrix"][0, 0] = 0
    for step, name in [(0, "late"), (4, "late"), (4, "number"), (6, "number")]:
        grads[step][name] = None
    return params, grads


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_options_are_those_of_torch_or_of_the_paper(row: Row):
    params, grads = problem(row.shapes)
    opt = row.make(**row.options, **row.own)
    state = opt.init(params)
    theirs = {name: torch.nn.Parameter(w.clone()) for name, w in params.items()}
    peer = row.peer(theirs.values(), **row.options)
    equal = partial(torch.testing.assert_close, rtol=row.close, atol=row.close)
    for g in grads:
        for name, p in theirs.items():
            way = g[name]
            p.grad = -way if way is not None and row.own.get("maximize") else way
        with float64_by_default():  # torch's dtype for the numbers of a tensor
            peer.step()
        params, state = opt.update(g, state, params)
        equal(params, {name: p.detach() for name, p in theirs.items()})
        for field, values in state._asdict().items():
            if values == ():
                continue
            each = [values] * len(params) if isinstance(values, torch.Tensor) else tree.aligned(values, params)
            for mine, p in zip(each, theirs.values(), strict=True):
                if peer.state[p].get(field) is not None:
                    equal(mine, peer.state[p][field], check_dtype=field != "step")


def test_every_optimizer_that_is_no_combinator_has_rows():
    assert {case.make for case in BASES} <= {row.make for row in ROWS}
