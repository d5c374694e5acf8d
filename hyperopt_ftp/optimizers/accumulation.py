"""Updates by the mean of several gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..calls import check_count, explained
from ..hparams import as_numbers
from ..types import Optimizer
from .arithmetic import chosen
from .leafwise import check_grads, check_params, check_state, no_steps, zeros
from .wrap import wrapped


class AccumulatedState(NamedTuple):
    """State of :func:`accumulated`."""

    step: Tensor  # shape (), int64: gradients seen
    total: Any  # tree like params, in working precision: the sum of those since the last update
    base: Any


@explained("accumulated(adam(lr=1e-3), every=4)")
def accumulated(base: Optimizer, every: int) -> Optimizer[AccumulatedState]:
    """One update of ``base`` by the mean of ``every`` gradients. In between nothing moves.

    With the sum ``G``, n = ``every``, and t counting from 1::

        G <- G + g
        W, s <- base.update(G / n, s, W),   G <- 0      where t is a multiple of n

    Args:
        base: any optimizer.
        every: number of gradients for one update (not an hparam).

    Raises:
        ValueError: an ``every`` that is not a whole number of at least 1; a gradient that is ``None``. Give zeros
            instead, or use :func:`partition` with :func:`frozen` for parameters that have no gradients.

    If the loss is a mean over its batch and all batches have one size, the update is that of the joined batch. The
    update of ``base`` is computed at each step, and used at every n-th. ``accumulated(scheduled(...))`` counts updates,
    ``scheduled(accumulated(...))`` counts gradients. Put a tuner inside (``accumulated(hyper(...))``): around it, most
    of its hypergradients would be 0.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.accumulated(hft.sgd(lr=1.0), every=2)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for g in (1.0, 3.0):
    ...     w, state = opt.update(torch.tensor([g]), state, w)
    ...     print(w.item())
    0.0
    -2.0
    """
    check_count("every", every, "gradients")

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> AccumulatedState:
        check_params(params)
        return AccumulatedState(no_steps(), zeros(params), base.init(params, bases))

    def update(
        grads: Any, state: AccumulatedState, params: Any, bases: Any, owns: dict[str, Any]
    ) -> tuple[Any, AccumulatedState]:
        check_state(AccumulatedState, state)
        _check_all_there(check_grads(grads, params), params)
        step = state.step + 1
        (due,) = as_numbers([step % every == 0])

        def taken(old: Any, new: Any) -> Any:
            return tree.map_tree(lambda a, b: chosen(due, b.to(a.dtype), a), old, new)

        total = tree.map_tree(lambda g, s: s + g.to(s.dtype), grads, state.total)
        mean = tree.map_tree(lambda s: s / every, total)
        moved, inner = base.update(mean, state.base, params, bases)
        rest = tree.map_tree(lambda s: chosen(due, 0.0, s), total)
        return taken(params, moved), AccumulatedState(step, rest, taken(state.base, inner))

    return wrapped(base, {}, init, update)


def _check_all_there(grads: list[Any], params: Any) -> None:
    for (path, _), g in zip(tree.named(params), grads, strict=True):
        if g is None:
            raise ValueError(
                f"accumulated needs a gradient of {path!r} each time, got None; give zeros where a loss has no part in "
                "it, or put accumulated into the parts of a partition, with hft.frozen() for what has no gradients"
            )
