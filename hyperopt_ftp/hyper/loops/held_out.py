"""Numbers learned on held-out batches after training, with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...devices import two_devices
from ...optimizers.adam import adam
from ...types import Params

Numbers = dict[str, Tensor]  # by path, 0-d


def fit_numbers(
    numbers: Numbers, lr: float, batches: Iterable[Any], slopes: Callable[[Numbers, Any], tuple[Numbers, Any]],
    keep: Callable[[Numbers, Any], Numbers],
) -> Numbers:  # fmt: skip
    """One step of Adam for each batch.

    Args:
        numbers: the first ones.
        slopes: ``slopes(numbers, batch)`` gives the derivatives of the outer loss, and a value for ``keep``.
        keep: ``keep(numbers, value)`` brings moved numbers back into their range.
    """
    by = adam(lr=lr)
    state = by.init(numbers)
    for batch in batches:
        try:
            found, known = slopes(numbers, batch)
        except RuntimeError as error:
            mixed = two_devices(error, numbers, batch=batch)
            raise mixed from mixed.__cause__
        numbers, state = by.update(found, state, numbers)
        numbers = keep(numbers, known)
    if int(state.step) == 0:
        raise ValueError("batches is empty, or an iterator that has been read before; pass a list or a loader")
    return numbers


def zero_loss(params: Params, batch: Any) -> Tensor:
    """A training loss with zero gradients: a step is then only what the optimizer itself does, such as a projection."""
    return torch.stack([(0 * x).sum() for x in tree.leaves(params)]).sum()
