"""Training step by step: what lies between two steps is the caller's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from torch import Tensor

from ..calls import explained
from ..types import HParams, Optimizer, StateT, TreeT
from .core.inputs import Step
from .core.strategy import Strategy, check_stepwise
from .core.torch_private import uncompiled
from .field import field
from .guards.call_arguments import check_batches, is_sequence
from .train import checked, entries, walked, warn_of_constant_start


@uncompiled
@explained("steps(optimizer, train_loss, params, batches)")
def steps(
    optimizer: Optimizer[StateT],
    train_loss: Callable[..., Tensor] | None,
    params: TreeT,
    batches: Iterable[Any],
    *,
    hparams: HParams | None = None,
    state: StateT | None = None,
    strategy: Strategy | None = None,
    grads: Callable[..., TreeT] | None = None,
) -> Iterator[Step[TreeT, StateT]]:
    """The steps of :func:`train`, one at a time: for a loss at each step, early stopping, batches of the last params.

    Each step is a ``train`` of one batch, from where the last one ended. Its params and state are differentiable in all
    that came before. Training ends with the batches, or where the loop is left.

    Args:
        optimizer, train_loss, params, hparams, state, grads: as in :func:`train`.
        batches: any iterable, also an endless one. A step's batch is asked for when the step is, not before, so a
            generator may make it of the params that have been seen; the way through these is differentiated.
        strategy: ``Unroll()`` keeps graphs of steps up to 128 MiB, and then the points where they begin;
            ``checkpoint=False`` and ``1``, ``first_order=True`` are as in :class:`Unroll`. ``Unroll(truncate=1)`` and
            ``Implicit()`` keep the last step: each step's derivative is that of a training that ends there. Others
            need all steps at once, as a ``memory=`` to be shared out among them. Between steps adjoints have the dtype
            of the params, also 16 bits.

    Yields:
        :class:`~hyperopt_ftp.hyper.Step`: ``k`` (from 0), the ``params``, ``state`` and ``buffers`` after the step, and
        the training ``loss`` before it, without a graph.

    Raises:
        RuntimeError: steps that were left, or have come to their end, are asked to go on.
        TypeError, ValueError, RuntimeError: as :func:`train`; a strategy that needs all steps at once.

    Warns as :func:`train`, but not of losses that are not finite. Values, random numbers and derivatives are those of
    ``train``, up to rounding. A step costs more than one of ``train``: take that where nothing happens in between.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, x = torch.zeros(1, dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64)
    >>> total = 0.0
    >>> for step in hft.steps(hft.sgd(lr=0.1), loss, w, [x] * 3):   # the multi-step loss of MAML++
    ...     total = total + 0.5**step.k * loss(step.params, x)
    >>> total.backward()
    >>> round(w.grad.item(), 6)                         # -2 sum_k 0.5^k 0.8^(2 k + 2)
    -1.820672
    """
    loss: Any = train_loss if grads is None else field(train_loss, grads, hparams, strategy)
    full, strategy = checked(optimizer, loss, params, hparams, strategy)
    check_stepwise("steps", strategy)
    warn_of_constant_start(strategy, params, full)
    lazy = isinstance(batches, Iterable) and not is_sequence(batches)
    each = batches if lazy else entries(check_batches(batches))
    return _Once(walked(optimizer, loss, params, each, full, state, strategy))


class _Once(Iterator[Step[TreeT, StateT]]):
    """A generator that says so where it has nothing more to give, also to a second loop over it."""

    def __init__(self, steps: Generator[Step[TreeT, StateT], None, None]) -> None:
        self._steps = steps
        self.close = steps.close

    @uncompiled
    def __next__(self) -> Step[TreeT, StateT]:
        if inspect.getgeneratorstate(self._steps) == inspect.GEN_CLOSED:
            raise RuntimeError(
                "these steps have ended, or were left by close() or an error, and cannot go on: begin new ones by "
                "hft.steps(..., params, batches, state=state), with the params and the state of the last step"
            )
        return next(self._steps)
