"""Who takes part in what. A contender makes, of a problem, a call that gives the hypergradient as a vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import hyperopt_ftp as hft

from .by_autograd import by_hand, by_hand_vmap, with_higher, with_torchopt, with_torchopt_vmap
from .ours import ours
from .problems import Problem
from .with_jax import with_jax


class Contender(NamedTuple):
    """How it is made, and on which problems it takes part."""

    make: Callable[[Problem], Callable[[], Any]]
    takes: Callable[[Problem], bool] = lambda problem: True
    exact: bool = True  # False: it solves another equation, which holds in the limit of many steps


def _one_number(problem: Problem) -> bool:
    """Forward mode carries a tangent for each number."""
    return problem.over == "lr"


def _fits(problem: Problem) -> bool:
    """All contenders of a problem are in memory at once."""
    return not problem.long


def _tasks(problem: Problem) -> bool:
    return problem.tasks is not None


CONTENDERS = {
    "Unroll()": Contender(partial(ours, strategy=hft.Unroll())),
    # Not under a transform, where the steps are differentiated as they are: what is kept is not for Unroll to say.
    "Unroll(checkpoint=False)": Contender(
        partial(ours, strategy=hft.Unroll(checkpoint=False)), lambda p: p.tasks is None and _fits(p)
    ),
    "Unroll(compile=True)": Contender(partial(ours, strategy=hft.Unroll(compile=True))),
    "Forward()": Contender(partial(ours, strategy=hft.Forward()), _one_number),
    "Forward(compile=True)": Contender(partial(ours, strategy=hft.Forward(compile=True)), _one_number),
    # As many products as steps: the two series are cut at the same power.
    "Implicit(iterations=100)": Contender(
        partial(ours, strategy=hft.Implicit(iterations=100)), lambda p: p.over == "l2", exact=False
    ),
    "torchopt": Contender(with_torchopt),
    "torchopt, vmap": Contender(with_torchopt_vmap, _tasks),
    "higher": Contender(with_higher, _fits),
    "by hand": Contender(by_hand, _fits),
    "by hand, vmap": Contender(by_hand_vmap, _tasks),
    "jax": Contender(with_jax, _fits),
    "jax, checkpoint": Contender(partial(with_jax, checkpoint=True)),
    "jax, forward": Contender(partial(with_jax, forward=True), _one_number),
}


def contenders_of(problem: Problem) -> list[str]:
    return [name for name, contender in CONTENDERS.items() if contender.takes(problem)]
