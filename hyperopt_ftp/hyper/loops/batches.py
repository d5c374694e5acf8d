"""Batches without end, from the number of a step on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from ...calls import warn_caller
from ..core.replay import Replay
from ..guards.call_arguments import is_sequence


def batches_from(step: int, name: str, batches: Any) -> Iterator[Any]:
    """The batches of that step and all later ones: a sequence is repeated, any other iterable restarted when it ends.

    A DataLoader that reads in order begins at the step's batch, any other iterable at its own first one, with a
    warning: what it gave in an earlier run is not known.
    """
    if is_sequence(batches) and len(batches):
        yield from (batches[i % len(batches)] for i in count(step))
    rest: Iterator[Any] = iter(())
    if step and _reads_in_order(batches):
        # What is read again has drawn its random numbers already.
        rest = Replay().again(lambda: _without(step % max(1, len(batches)), batches))
    elif step:
        warn_caller(
            f"{name} is read from its beginning: nobody knows where the earlier run was in it; pass a sequence, whose "
            "batches go by the number of the step, or a DataLoader that does not shuffle"
        )
    while True:
        yield from rest
        rest, found = iter(batches), False
        for batch in rest:
            found = True
            yield batch
        if not found:
            raise ValueError(f"{name} is empty, or an iterator that can be read only once; pass a list or a loader")


def _without(first: int, batches: Any) -> Iterator[Any]:
    """A pass without its first batches; empty where there are none, as no pass has begun."""
    rest = iter(batches if first else ())
    for _ in range(first):
        next(rest)
    return rest


def _reads_in_order(loader: Any) -> bool:
    """Whether a loader gives the batches in the same order in each pass."""
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    if not isinstance(loader, DataLoader):
        return False
    order = loader.batch_sampler or loader.sampler
    return type(order.sampler if type(order) is BatchSampler else order) is SequentialSampler
