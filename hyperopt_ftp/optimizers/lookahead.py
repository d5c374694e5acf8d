"""Slow weights that follow the fast ones of any optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from ..calls import check_count, explained
from ..hparams import as_numbers, check_zero_d, to_tensors
from ..types import Number, Optimizer
from .arithmetic import chosen
from .leafwise import check_grads, check_params, check_state, no_steps
from .wrap import check_goes_on, wrapped


class LookaheadState(NamedTuple):
    """State of :func:`lookahead`."""

    step: Tensor  # shape (), int64: updates done
    slow: Any  # tree like params, in working precision: the slow weights
    base: Any


@explained("lookahead(adam(lr=1e-3), every=5, alpha=0.5)")
def lookahead(base: Optimizer, every: int = 5, alpha: Number = 0.5) -> Optimizer[LookaheadState]:
    """Lookahead (arXiv 1907.08610, Algorithm 1): slow weights that follow those of ``base``.

    With the slow weights ``phi``, which start at the params, k = ``every``, and t counting from 1::

        W   <- the step of base
        phi <- phi + alpha * (W - phi),   W <- phi      where t is a multiple of k

    Args:
        base: any optimizer, except schedule-free ones. A synchronisation does not reset its state, the paper's default.
        every: number of updates of ``base`` between synchronisations (not an hparam).
        alpha: step of the slow weights, number or 0-d tensor in [0, 1]; the hparam ``"alpha"``. 1 is ``base``; with 0
            the slow weights never move.

    Raises:
        ValueError: alpha outside [0, 1], an ``every`` that is not a whole number of at least 1, a schedule-free base.

    Evaluate with ``state.slow``: between synchronisations the params are the fast weights. A parameter without a
    gradient (``None``) does not change, at a synchronisation too.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.lookahead(hft.sgd(lr=1.0), every=2, alpha=0.5)
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    ...     print(w.item())
    1.0
    1.0
    2.0
    """
    check_count("every", every, "updates")

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> LookaheadState:
        check_params(params)
        slow = tree.map_tree(lambda w: tree.working(w).clone(), params)
        return LookaheadState(no_steps(), slow, base.init(params, bases))

    def update(
        grads: Any, state: LookaheadState, params: Any, bases: Any, owns: dict[str, Any]
    ) -> tuple[Any, LookaheadState]:
        check_state(LookaheadState, state)
        check_zero_d("alpha", owns["alpha"])
        given, rebuild = check_grads(grads, params), tree.flatten(params)[1]
        moved, inner = base.update(grads, state.base, params, bases)
        step = state.step + 1
        (now,) = as_numbers([step % every == 0])
        new, slow = [], []
        for g, w, phi in zip(given, rebuild.aligned(moved), rebuild.aligned(state.slow), strict=True):
            met = (phi + owns["alpha"] * (w.to(phi.dtype) - phi)).to(phi.dtype)
            here = now if g is not None else False
            new.append(chosen(here, met.to(w.dtype), w))
            slow.append(chosen(here, met, phi))
        return rebuild(new), LookaheadState(step, rebuild(slow), inner)

    result = wrapped(base, to_tensors(alpha=alpha), init, update)
    check_goes_on(
        base,
        "the way back to the slow weights",
        "leave lookahead out (hft.averages gives an average that such a base keeps); of a partition, put it into the "
        "other parts",
    )
    return result
