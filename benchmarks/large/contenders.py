"""Who takes part: a plain loop, and the library with more or less kept of each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.hyper import Strategy

from .hypergradients import by_hand, by_library
from .network import Encoder
from .sentences import Data

Call: TypeAlias = Callable[[], dict[str, Tensor]]

PLAIN = "plain loop"


class Contender(NamedTuple):
    """A strategy, made of the bytes that it may keep; ``None`` is the plain loop. And how its loss computes."""

    strategy: Callable[[int], Strategy] | None
    again: bool = False  # activations a second time
    narrow: bool = False  # in bfloat16


def _unroll(**options: object) -> Callable[[int], Strategy]:
    return lambda _: hft.Unroll(**options)  # pyright: ignore[reportArgumentType]


_SQRT = _unroll(checkpoint="sqrt")
CONTENDERS = {
    PLAIN: Contender(None),
    "Unroll(1)": Contender(_unroll(checkpoint=1)),
    "Unroll(sqrt)": Contender(_SQRT),
    "Unroll(log)": Contender(_unroll(checkpoint="log")),
    "Unroll(auto)": Contender(lambda memory: hft.Unroll(memory=memory)),
    "Unroll(sqrt, offload)": Contender(_unroll(checkpoint="sqrt", offload=True)),
    "Unroll(sqrt), activations again": Contender(_SQRT, again=True),
    "Unroll(sqrt), bfloat16": Contender(_SQRT, narrow=True),
}


def call_of(name: str, net: Encoder, data: Data, memory: int) -> Call:
    """A call that gives the hypergradient, by kinds of numbers."""
    contender = CONTENDERS[name]
    make = by_hand if contender.strategy is None else partial(by_library, strategy=contender.strategy(memory))
    return make(net, data, again=contender.again, narrow=contender.narrow)
