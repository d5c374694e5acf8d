"""A training that is looked at on its way."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hyperopt_ftp as hft


def stretches(
    optimizer: hft.Optimizer, loss: Callable[..., Any], params: Any, batches: Sequence[Any], stops: Sequence[int],
    hparams: Any = None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Each of so many steps, in rising order, with the params after it; 0 is before the training."""
    state, done = None, 0
    for stop in stops:
        if stop > done:
            run = hft.train(optimizer, loss, params, batches[done:stop], hparams=hparams, state=state)
            params, state, done = run.params, run.state, stop
        yield stop, params
