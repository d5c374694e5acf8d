"""Alternate K inner steps on training batches with one outer step on the hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..hparams import check_choice
from ..types import Optimizer, Params, State, check_optimizer
from . import paths
from .constrain import Constraints
from .hypergradient import check_hparams, hypergradient
from .inner import Strategy, check_object

__all__ = ["BilevelState", "Record", "bilevel"]


class BilevelState(NamedTuple):
    """Everything that a run goes on from; a pytree of tensors, saved as docs/checkpoints.md shows."""

    step: Tensor  # shape (), int64: outer steps done
    params: Params
    inner: State  # the optimizer's
    tuned: dict[str, Any]  # current hyperparameters, by path
    outer: State  # the hyper-optimizer's


class Record(NamedTuple):
    """One outer step."""

    step: int  # counts from 1
    value: float  # outer loss before the hyperparameters moved
    hypergradient: dict[str, Any]
    tuned: dict[str, Any]  # after the step
    skipped: tuple[str, ...]  # names whose hypergradient was not finite, where that is allowed
    state: BilevelState


def bilevel(
    optimizer: Optimizer,
    by: Optimizer,
    over: Any,
    train_loss: Callable[..., Tensor],
    outer_loss: Callable[[Params, Any], Tensor],
    params: Params,
    train_batches: Iterable[Any],
    outer_batches: Iterable[Any],
    *,
    inner_steps: int,
    outer_steps: int,
    strategy: Strategy | None = None,
    constrain: Mapping[str, str] | None = None,
    hparams: dict[str, Any] | None = None,
    state: BilevelState | None = None,
    not_finite: str = "error",
    progress: bool = False,
) -> Iterator[Record]:
    """Tune hyperparameters on validation data while training: K inner steps, one outer step, and so on.

    Each outer step trains on for ``inner_steps`` with the present hyperparameters, differentiates the outer loss at the
    end by ``strategy``, and moves the hyperparameters by ``by``; training goes on from where it ended.

    Args:
        optimizer, over, train_loss, hparams, strategy: as in :func:`hypergradient`.
        by: the optimizer of the hyperparameters.
        outer_loss: ``outer_loss(params, batch) -> scalar``, on validation batches.
        params: where training starts (ignored with ``state``).
        train_batches, outer_batches: a sequence is read round and round, at the place that ``state`` tells; any other
            iterable (a loader) is started anew when it ends, and after a resume.
        inner_steps: K. outer_steps: in all, those of ``state`` included.
        constrain: maps by path, ``"clip"`` (default), ``"log"`` or ``"logit"``, as in :func:`hyper`.
        state: go on from ``record.state`` of an earlier run.
        not_finite: ``"error"``, or ``"skip"``: a hyperparameter with a NaN or infinite hypergradient stays where it is
            for this outer step (its optimizer sees 0), and is named in ``record.skipped``.
        progress: show a bar in the terminal (needs ``rich``).

    Yields:
        A :class:`Record` after each outer step.

    Raises:
        FloatingPointError: a hypergradient that is not finite; names the hyperparameter and the outer step.
        ValueError: as :func:`hypergradient`; no batches; steps below 1.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> x = torch.ones(1, dtype=torch.float64)
    >>> run = hft.bilevel(
    ...     hft.sgd(lr=1e-3), hft.adam(lr=0.5), "lr", loss, loss, 0 * x, [x], [x],
    ...     inner_steps=5, outer_steps=8, constrain={"lr": "log"},
    ... )
    >>> rates = [round(record.tuned["lr"].item(), 4) for record in run]
    >>> rates[0] < rates[-1], rates[0]
    (True, 0.0016)
    """
    check_choice("not_finite", not_finite, ("error", "skip"))
    for name, steps in (("inner_steps", inner_steps), ("outer_steps", outer_steps)):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name} must be a number of steps >= 1, got {steps!r}")
    check_optimizer("optimizer", optimizer)
    check_optimizer("by", by)
    check_object(strategy)
    if state is not None and not isinstance(state, BilevelState):
        hint = "; pass record.state" if isinstance(state, Record) else ""
        raise TypeError(f"state must be the BilevelState of an earlier record, got {type(state).__name__}{hint}")
    full = check_hparams(optimizer, hparams)
    names = paths.normalise(over, full)
    constraints = Constraints(names, constrain)
    if state is None:
        tuned = paths.select(full, names)
        constraints.check(tuned)
        own = {name: value for name, value in full.items() if name in optimizer.hparams}
        zero = torch.zeros((), dtype=torch.int64)
        state = BilevelState(zero, params, optimizer.init(params, own), tuned, by.init(constraints.free(tuned)))
    return _run(
        optimizer, by, names, train_loss, outer_loss, train_batches, outer_batches, inner_steps, outer_steps, strategy,
        constraints, full, state, not_finite, progress,
    )  # fmt: skip


def _run(
    optimizer: Optimizer, by: Optimizer, names: tuple[str, ...], train_loss: Any, outer_loss: Any,
    train_batches: Iterable[Any], outer_batches: Iterable[Any], inner_steps: int, outer_steps: int,
    strategy: Strategy | None, constraints: Constraints, full: dict[str, Any], state: BilevelState, not_finite: str,
    progress: bool,
) -> Iterator[Record]:  # fmt: skip
    done = int(state.step)
    train = _endless("train_batches", train_batches, done * inner_steps)
    outer = _endless("outer_batches", outer_batches, done)
    for step in _shown(range(done + 1, outer_steps + 1), outer_steps, progress):
        batches, held_out = [next(train) for _ in range(inner_steps)], next(outer)
        value, slopes, (params, inner) = hypergradient(
            optimizer, train_loss, lambda p, b=held_out: outer_loss(p, b), state.params, batches, names,
            paths.merge(full, state.tuned), state.inner, strategy,
        )  # fmt: skip
        skipped = tuple(name for name, h in slopes.items() if not all(x.isfinite().all() for x in tree.leaves(h)))
        if skipped and not_finite == "error":
            raise FloatingPointError(
                f"the hypergradient of {', '.join(map(repr, skipped))} is not finite at outer step {step} (outer loss "
                f"{value.item():g}); lower the hyper-learning-rate, truncate, or pass not_finite='skip'"
            )
        seen = {n: tree.map_tree(torch.zeros_like, h) if n in skipped else h for n, h in slopes.items()}
        free = constraints.free(state.tuned)
        moved, outer_state = by.update(constraints.chain(seen, state.tuned), state.outer, free)
        tuned = constraints.natural(moved) | {name: state.tuned[name] for name in skipped}
        state = BilevelState(torch.tensor(step), params, inner, tuned, outer_state)
        yield Record(step, value.item(), slopes, tuned, skipped, state)


def _endless(name: str, batches: Iterable[Any], start: int) -> Iterator[Any]:
    if isinstance(batches, Sequence):
        while batches:
            yield batches[start % len(batches)]
            start += 1
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{name} is empty, or an iterator that can be read only once; pass a list or a loader")


def _shown(steps: range, total: int, progress: bool) -> Iterator[int]:
    if not progress:
        yield from steps
        return
    try:
        from rich.progress import track
    except ModuleNotFoundError:
        raise ModuleNotFoundError("progress=True needs the package rich: pip install rich") from None
    yield from track(steps, description="outer steps", total=total, completed=steps.start - 1)
