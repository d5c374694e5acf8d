"""Updates against torch.optim, and of what torch does not have against the papers: options drawn at random, in float64,
with gradients missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies

from ..support import papers
from ..support.cases import BASES
from ..support.compare import float64_by_default

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
    close: float


# Sums of bfloat16 products may be added in another order: 2^-23 of values up to 2, of a step of 0.1 times a scale up
# to 1.6. A number that is rounded at another place is off by 2^-9.
BFLOAT16 = 1e-6

#: Of the package and of torch or a paper.
PEERS = {
    hft.sgd: torch.optim.SGD, hft.adam: torch.optim.Adam, hft.adamw: torch.optim.AdamW, hft.asgd: torch.optim.ASGD,
    hft.rmsprop: torch.optim.RMSprop, hft.adagrad: torch.optim.Adagrad, hft.adadelta: torch.optim.Adadelta,
    hft.adamax: torch.optim.Adamax, hft.nadam: torch.optim.NAdam, hft.radam: torch.optim.RAdam,
    hft.rprop: torch.optim.Rprop, hft.adafactor: torch.optim.Adafactor,
}  # fmt: skip
OF_PAPERS = {
    hft.schedule_free_sgd: papers.schedule_free_sgd, hft.schedule_free_adamw: papers.schedule_free_adamw,
    hft.adan: papers.adan, hft.adopt: papers.adopt, hft.lion: papers.lion, hft.signum: papers.signum,
    hft.adabelief: papers.adabelief, hft.yogi: papers.yogi, hft.lamb: papers.lamb, hft.lars: papers.lars,
}  # fmt: skip


@st.composite
def some_options(draw: Any, make: Any) -> dict[str, Any]:
    """The defaults of some, but no eps below 0.01: what is divided by it is off by no more than a hundred roundings."""
    options = draw(strategies.options(make))
    return {name: x for name, x in options.items() if name in ("lr", "eps") or draw(st.booleans())}


def compare(row: Row, run: strategies.Run) -> None:
    opt, params, close = row.make(**row.options, **row.own), run.params, row.close
    state = opt.init(params)
    theirs = [torch.nn.Parameter(w.clone()) for w in tree.leaves(params)]
    peer = row.peer(theirs, **row.options)
    for g in run.grads:
        for way, p in zip(tree.leaves(g), theirs, strict=True):
            p.grad = -way if way is not None and row.own.get("maximize") else way
        with float64_by_default():  # torch's dtype for the numbers of a tensor
            peer.step()
        params, state = opt.update(g, state, params)
        # Of an entry of a few units as of smaller ones: rounding is that of what is added.
        equal = partial(torch.testing.assert_close, rtol=close, atol=close)
        equal(tree.leaves(params), [p.detach() for p in theirs])
        for field, values in state._asdict().items():
            if values == ():
                continue
            each = [values] * len(theirs) if isinstance(values, torch.Tensor) else tree.aligned(values, params)
            for mine, p in zip(each, theirs, strict=True):
                if peer.state[p].get(field) is not None:
                    equal(mine, peer.state[p][field], check_dtype=field != "step")


def close_of(make: Any) -> float:
    # An ulp of b2^6 = 0.994 is 2e-14 of 1 - b2^6, so 4e-11 of rho = 2000 - 1994, and 1e-12 of a step of 0.1.
    return 5e-12 if make is hft.radam else CLOSE


runs = strategies.runs(max_steps=STEPS)
#: Torch's Adafactor divides by the number of entries.
filled = strategies.runs(strategies.params(shapes=strategies.shapes(least=1)), max_steps=STEPS)


@settings(max_examples=40)
@given(make=st.sampled_from([*PEERS]), data=st.data())
def test_an_update_is_that_of_torch(make: Any, data: Any):
    row = Row(make, PEERS[make], data.draw(some_options(make)), {}, close_of(make))
    compare(row, data.draw(filled if make is hft.adafactor else runs))


@settings(max_examples=20)
@given(run=runs, momentum=strategies.between(0.05, 1.0), data=st.data())
def test_nesterov_is_that_of_torch(run: strategies.Run, momentum: float, data: Any):
    """Which takes no dampening."""
    others = data.draw(some_options(hft.sgd))
    options = {**others, "momentum": momentum, "dampening": 0.0, "nesterov": True}
    compare(Row(hft.sgd, torch.optim.SGD, options, {}, CLOSE), run)


@settings(max_examples=50)
@given(make=st.sampled_from([*OF_PAPERS]), data=st.data(), run=runs)
def test_an_update_is_that_of_the_paper(make: Any, data: Any, run: strategies.Run):
    options = data.draw(some_options(make))
    own = {"maximize": True} if options.pop("maximize", False) else {}
    compare(Row(make, OF_PAPERS[make], options, own, CLOSE), run)


matrices = strategies.params(shapes=st.tuples(st.integers(1, 5), st.integers(1, 5)))


@settings(max_examples=30)
@given(
    run=strategies.runs(matrices, max_steps=3),
    options=st.fixed_dictionaries(
        {"lr": strategies.between(0.01, 0.1)},
        optional={
            "weight_decay": strategies.between(0.0, 0.3), "momentum": strategies.between(0.0, 0.95),
            "nesterov": st.booleans(), "ns_steps": st.integers(1, 5), "eps": st.sampled_from([1e-7, 0.5, 2.0, 4.0]),
            "adjust_lr_fn": st.sampled_from([None, "original", "match_rms_adamw"]),
        },
    ),
    maximize=st.booleans(),
)  # fmt: skip
def test_muon_is_that_of_torch(run: strategies.Run, options: dict[str, Any], maximize: bool):
    """With an eps that bfloat16 holds, or that is below every norm: torch rounds it there, which ours does not."""
    own = {"ns_dtype": torch.bfloat16, **({"maximize": True} if maximize else {})}
    compare(Row(hft.muon, torch.optim.Muon, options, own, BFLOAT16), run)


@pytest.mark.parametrize("make", [*PEERS, hft.muon], ids=lambda make: make.__name__)
def test_defaults_are_those_of_torch(make: Any):
    """Which have an eps of 1e-8 and less; STEPS updates with gradients missing at first and later."""
    peer = torch.optim.Muon if make is hft.muon else PEERS[make]
    own, close = ({"ns_dtype": torch.bfloat16}, BFLOAT16) if make is hft.muon else ({}, close_of(make))
    compare(Row(make, peer, {}, own, close), problem(MATRICES if make is hft.muon else ALL))


EPS_OF_PAPERS = {
    hft.adabelief: 1e-16, hft.adan: 1e-8, hft.adopt: 1e-6, hft.lamb: 1e-6, hft.lars: 0.0, hft.yogi: 1e-3,
    hft.schedule_free_adamw: 1e-8,
}  # fmt: skip


@pytest.mark.parametrize("make", EPS_OF_PAPERS, ids=lambda make: make.__name__)
def test_an_eps_of_the_papers_is_that_of_the_paper(make: Any):
    compare(Row(make, OF_PAPERS[make], {"lr": 0.1, "eps": EPS_OF_PAPERS[make]}, {}, CLOSE), problem(ALL))


def problem(shapes: dict[str, tuple[int, ...]]) -> strategies.Run:
    """Parameters and gradients; one has a zero in each, one is missing at first and later, one later on."""
    generator = torch.Generator().manual_seed(5)

    def some() -> dict[str, Any]:
        return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}

    params, grads = some(), [some() for _ in range(STEPS)]
    for g in grads:
        g["matrix"][0, 0] = 0
    for step, name in [(0, "late"), (4, "late"), (4, "number"), (6, "number")]:
        grads[step][name] = None
    return strategies.Run(params, grads)


def test_every_optimizer_that_is_no_combinator_is_compared():
    assert {case.make for case in BASES} <= {*PEERS, *OF_PAPERS}
