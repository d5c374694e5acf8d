"""Who takes part in what. A contender makes, of a problem, a call that gives the hypergradient as a vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import hyperopt_ftp as hft

from .by_hand import by_hand, by_hand_vmap
from .ours import ours
from .problems import Problem
from .with_higher import with_higher
from .with_jax import with_jax
from .with_torchopt import with_torchopt, with_torchopt_vmap


class Contender(NamedTuple):
    """How it is made, whose it is, and on which problems it takes part."""

    make: Callable[[Problem], Callable[[], Any]]
    kind: str
    takes: Callable[[Problem], bool] = lambda problem: True
    exact: bool = True  # False: it solves another equation, which holds in the limit of many steps


def _one_number(problem: Problem) -> bool:
    """Forward mode carries a tangent for each number."""
    return problem.over == "lr"


def _by_autograd(problem: Problem) -> bool:
    """Under a transform the steps are differentiated as they are: what is kept is not for Unroll to say."""
    return problem.tasks is None


def _fits(problem: Problem) -> bool:
    """All contenders of a problem are in memory at once."""
    return not problem.long


def _tasks(problem: Problem) -> bool:
    return problem.tasks is not None


def _strategy(make: Callable[[], Any]) -> Callable[[Problem], Callable[[], Any]]:
    return partial(ours, strategy=make)


CONTENDERS = {
    "Unroll()": Contender(_strategy(hft.Unroll), "ours"),
    "Unroll(checkpoint=False)": Contender(
        _strategy(partial(hft.Unroll, checkpoint=False)), "ours", lambda p: _by_autograd(p) and _fits(p)
    ),
    "Unroll(compile=True)": Contender(_strategy(partial(hft.Unroll, compile=True)), "ours"),
    "Forward()": Contender(_strategy(hft.Forward), "ours", _one_number),
    "Forward(compile=True)": Contender(_strategy(partial(hft.Forward, compile=True)), "ours", _one_number),
    # As many products as steps: the two series are cut at the same power.
    "Implicit(iterations=100)": Contender(
        _strategy(partial(hft.Implicit, iterations=100)), "ours", lambda p: p.over == "l2", exact=False
    ),
    "torchopt": Contender(with_torchopt, "torch"),
    "torchopt, vmap": Contender(with_torchopt_vmap, "torch", _tasks),
    "higher": Contender(with_higher, "torch", _fits),
    "by hand": Contender(by_hand, "torch", _fits),
    "by hand, vmap": Contender(by_hand_vmap, "torch", _tasks),
    "jax": Contender(with_jax, "jax", _fits),
    "jax, checkpoint": Contender(partial(with_jax, checkpoint=True), "jax"),
    "jax, forward": Contender(partial(with_jax, forward=True), "jax", _one_number),
}


def contenders_of(problem: Problem) -> list[str]:
    return [name for name, contender in CONTENDERS.items() if contender.takes(problem)]
