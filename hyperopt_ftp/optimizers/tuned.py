"""An optimizer whose hyperparameters are the parameters of another optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import explained, warn_caller
from ..hparams import complete, concrete
from ..types import Constraint, HParams, Optimizer, Params, State, UpdateFn, check_optimizer
from . import hparam_paths as paths
from .constraints import Constraints
from .leafwise import check_grads, check_state, no_steps


class Previous(NamedTuple):
    """The arguments of the base's previous update."""

    grads: Params
    state: State
    params: Params
    hparams: HParams  # settled: the point where a pullback linearises


class TunedState(NamedTuple):
    """State of :func:`hyper`."""

    step: Tensor  # shape (), int64: updates done
    base: Any  # state of the base
    tuned: dict[str, Any]  # current values of the tuned hparams, by path
    by: Any  # state of the hyper-optimizer
    previous: Previous  # what the last update of the base was made of


def warn_of_nan(tuned: Mapping[str, Any]) -> None:
    """Warn of values, by path, that an optimizer has tuned to NaN."""
    lost = [path for path, value in tuned.items() if any(concrete(x) and x.isnan().any() for x in tree.leaves(value))]
    if lost:
        warn_caller(
            f"{lost[0]!r} has been tuned to NaN, so what it moves is lost: lower the learning rate of what tunes it "
            "(by), clip its hypergradient (by=hft.clipped(...)), or tune its logarithm (constrain)"
        )


@explained("by is the optimizer that tunes, over what it tunes: hyper(adamw(lr=1e-3), by=sgd(lr=1e-6), over='lr')")
def hyper(
    base: Optimizer,
    by: Optimizer,
    over: str | Sequence[str],
    through: Optimizer | None = None,
    constrain: Mapping[str, Constraint] | None = None,
) -> Optimizer[TunedState]:
    """Tune hyperparameters of ``base`` with the optimizer ``by``, by hypergradients. The result is again an optimizer.

    At each update, with ``g`` the gradient at the present params::

        h       = (d previous update of base / d hparams)^T g        for the hparams in ``over``
        tuned   <- by.update(h, tuned), kept in its domain by ``constrain``
        params  <- base.update(g, params; tuned)
        tuned   <- base.settle(tuned, new state)                     where base has one

    Everything before the previous update is held fixed (hypergradient descent, arXiv 1703.04782). The hypergradient of
    the first update is zero: the counts of ``by`` advance, and nothing moves. Both ``base`` and ``by`` may be tuned
    themselves, so nesting builds towers of any height (arXiv 1909.13371). Nothing is detached: every level is exact.

    Args:
        base: the optimizer whose hparams are tuned.
        by: the optimizer that tunes them.
        over: a path into ``base.hparams``, or a tuple of paths (``"lr"``; ``"by.lr"`` if base is itself tuned). Values
            that ``base.settle`` clips after a step (the radius of ``projected``) are differentiated at the clipped
            value. A row whose norm equals a tuned radius counts as clipped, also for the other tuned hparams.
        through: pull back through the update of this optimizer instead of the base's. Its state and hparams must have
            the structure of the base's. FTP's "paper" gradient is ``through=projected(base, anchor, bounded=False)``.
        constrain: by path, how a value stays in its domain. ``"clip"`` (default): ``by`` moves the value, which is then
            clipped. ``"log"``: ``by`` moves the logarithm (learning rates, eps). ``"logit"``: ``by`` moves
            ``log(x / (1 - x))`` (betas, momentum). Values without an entry in ``base.domains`` are not clipped.

    Returns:
        An optimizer with hparams ``{"base": base.hparams, "by": by.hparams}``. The tuned entries of "base" are starting
        values, read by ``init`` only; the current ones are in ``state.tuned``. The state holds the base's state twice,
        and params and gradients once.

    Raises:
        ValueError: a path in ``over`` that is not a hyperparameter, or that ``base`` already tunes; ``maximize`` of
            only one of the two; at ``init``, a first value outside the range of ``"log"`` or ``"logit"``.
        TypeError: an optimizer that is not pure.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.hyper(hft.sgd(lr=0.01), by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(lr=1e-6), over="lr"), over="lr")
    >>> w = torch.ones(3); state = opt.init(w)
    >>> for _ in range(20):
    ...     w, state = opt.update(w, state, w)
    >>> bool(state.tuned["lr"] > 0.01), bool(state.by.tuned["lr"] > 1e-3)
    (True, True)
    """
    check_optimizer("base", base)
    check_optimizer("by", by)
    if through is not None:
        check_optimizer("through", through)
    if base.maximize != by.maximize:
        raise ValueError(
            f"base has maximize={base.maximize} and by maximize={by.maximize}, so by would tune against base; give both"
            " the same (of a partition, put hyper into its parts)"
        )
    step = base.update if through is None else through.update
    names = paths.normalise(over, base.hparams)
    again = [name for name in names if any(paths.overlap(base.hparams, name, inner) for inner in base.tunes)]
    if again:
        raise ValueError(f"over names {again}, which base already tunes: moving a starting value does nothing")
    constraints = Constraints(names, constrain, base.domains)
    default = {"base": base.hparams, "by": by.hparams}

    def init(params: Any, hparams: Any = None) -> TunedState:
        h = complete(hparams, default)
        first = base.start(params, h["base"]) if base.start else h["base"]
        tuned = paths.select(first, names)
        constraints.check(tuned)
        state = base.init(params, first)
        nothing = tree.map_tree(torch.zeros_like, params)
        return TunedState(
            no_steps(), state, tuned, by.init(constraints.free(tuned), h["by"]), Previous(nothing, state, params, first)
        )

    def update(grads: Any, state: TunedState, params: Any, hparams: Any = None) -> tuple[Any, TunedState]:
        check_state(TunedState, state)
        check_grads(grads, params)
        h = complete(hparams, default)
        first = state.step == 0
        pulled = _pulled(step, state.previous, grads, names)
        pulled = tree.map_tree(lambda x: torch.where(first, 0.0, x), pulled)
        slopes = constraints.chain(pulled, state.tuned)
        moved, by_state = by.update(slopes, state.by, constraints.free(state.tuned), h["by"])
        moved = constraints.natural(moved)
        tuned = tree.map_tree(lambda old, new: torch.where(first, old, new), state.tuned, moved)

        used = paths.merge(h["base"], tuned)
        params_new, base_state = base.update(grads, state.base, params, used)
        settled = used
        if base.settle:  # what is not tuned stays as it was used: a radius that held nothing back must not become a tie
            settled = paths.merge(used, paths.select(base.settle(used, base_state), names))
        previous = Previous(grads, state.base, params, settled)
        return params_new, TunedState(state.step + 1, base_state, paths.select(settled, names), by_state, previous)

    tunes = tuple(f"base.{name}" for name in (*names, *base.tunes)) + tuple(f"by.{name}" for name in by.tunes)

    def parts(params: Any) -> dict[str, str]:
        assert base.parts is not None
        return {name: f"base.{path}" for name, path in base.parts(params).items()}

    domains = {"base": base.domains, "by": by.domains}
    inside = parts if base.parts else None
    both = base.weights_in_state, base.maximize
    return Optimizer(init, update, default, None, None, domains, tunes, inside, *both)


def _pulled(step: UpdateFn[Any], previous: Previous, cotangent: Params, over: tuple[str, ...]) -> HParams:
    """The present gradient, pulled back through the previous update to the hparams in ``over``."""

    def again(tuned: dict[str, Any]) -> Params:
        return step(previous.grads, previous.state, previous.params, paths.merge(previous.hparams, tuned))[0]

    pull = torch.func.vjp(again, paths.select(previous.hparams, over))[1]
    return pull(tree.map_tree(lambda w, g: torch.zeros_like(w) if g is None else g, previous.params, cotangent))[0]
