"""Alternate K inner steps on training batches with one outer step on the hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ... import tree
from ...calls import check_choice, check_count, explained
from ...devices import two_devices
from ...dtensors import is_dtensor
from ...optimizers import hparam_paths as paths
from ...optimizers.constraints import Constraints
from ...optimizers.leafwise import check_params
from ...types import Constraint, NotFinite, Optimizer, Params, State
from ..core.inputs import BufferedState, Step
from ..core.leaves import detached
from ..core.problem import without_loss
from ..core.strategy import Strategy, check_stepwise
from ..distributed.data_parallel import DataParallel, shards_differ
from ..guards.call_arguments import argument_counts, check_loss, is_sequence
from ..hypergradient import check_floats, value_and_grad, warn_of, with_start, without_start
from ..of_module import beginning
from ..train import checked
from .batches import batches_from
from .outer import pure_outer


class BilevelState(NamedTuple):
    """All that a resumed run needs: a pytree of tensors, saved as docs/checkpoints.md shows."""

    step: Tensor  # shape (), int64: outer steps done
    params: Params
    inner: State  # the optimizer's
    tuned: dict[str, Any]  # current hyperparameters, by path
    outer: State  # the hyper-optimizer's; the state_dict of one of torch.optim
    trained: Tensor  # shape (), int64: inner steps done


class Record(NamedTuple):
    """One outer step."""

    step: int  # counts from 1
    value: float  # outer loss before the hyperparameters moved
    hypergradient: dict[str, Any]
    tuned: dict[str, Any]  # after the step, by path
    hparams: dict[str, Any]  # all of them, with the tuned ones: train(..., hparams=record.hparams)
    skipped: tuple[str, ...]  # names whose hypergradient was not finite, where that is allowed
    state: BilevelState


@explained("bilevel(optimizer, by, over, train_loss, outer_loss, params, train_batches, outer_batches, ...)")
def bilevel(
    optimizer: Optimizer,
    by: Optimizer | Callable[[list[Tensor]], torch.optim.Optimizer],
    over: str | Sequence[str],
    train_loss: Callable[..., Tensor],
    outer_loss: Callable[[Params, Any], Tensor] | Callable[[Params, Any, Any], Tensor],
    params: Params,
    train_batches: Iterable[Any],
    outer_batches: Iterable[Any],
    *,
    inner_steps: int | Callable[[int], int | Callable[[Step], Any]],
    outer_steps: int,
    strategy: Strategy | None = None,
    constrain: Mapping[str, Constraint] | None = None,
    hparams: dict[str, Any] | None = None,
    state: BilevelState | None = None,
    reset: Params | Callable[[int], Params] | None = None,
    not_finite: NotFinite = "error",
) -> Iterator[Record]:
    """Tune hyperparameters on validation data while training: K inner steps, then one outer step, repeated.

    A round trains for ``inner_steps``, differentiates the outer loss at the end, and moves the hyperparameters with
    ``by``. The next round continues from the trained params, or restarts (``reset``).

    Args:
        optimizer, train_loss, hparams, strategy: as in :func:`hypergradient`.
        by: the optimizer of the hyperparameters: a pure one, or a function from a list of tensors to one of
            ``torch.optim``, such as a class.
        over: as in :func:`hypergradient`. With ``"params"`` each round starts from the tuned params (MAML). With
            ``"batches"`` the ``inner_steps`` entries of ``train_batches`` are tuned (distillation).
        outer_loss: ``outer_loss(params, batch) -> scalar``, on validation batches. If it has a third argument without a
            default, it gets ``hparams["loss"]`` there.
        params: the starting point. With ``state`` only its form counts, and what ``over="params.head"`` leaves out.
        train_batches, outer_batches: a sequence is repeated, any other iterable (a loader) restarted when it ends. A
            resumed run continues at the same batch of a sequence, or of a ``DataLoader`` that reads in order.
        inner_steps: K, or a function of the number of the outer step (from 1) that gives K, or a rule that ends the
            round by what a :class:`~hyperopt_ftp.hyper.Step` says: ``lambda n: lambda step: step.loss < 0.1``, with the
            strategies of :func:`steps`.
        outer_steps: number of outer steps in all, those of ``state`` included.
        constrain: maps by path, ``"clip"`` (default), ``"log"`` or ``"logit"``, as in :func:`hyper`.
        state: ``record.state`` of an earlier run, to resume it. It does not hold torch's default generators.
        reset: params that each round starts from, with a new optimizer state, or a function from the number of the
            outer step (from 1) to them.
        not_finite: ``"error"``, or ``"skip"``: a hyperparameter whose hypergradient is not finite keeps its value
            (``by`` sees 0), and is named in ``record.skipped``. If params or state are not finite, the round is undone.

    Yields:
        A :class:`Record` after each outer step.

    Raises:
        FloatingPointError: a hypergradient or params that are not finite, and where.
        TypeError, ValueError, ArithmeticError: as :func:`hypergradient`; steps below 1; a rule with a strategy that
            needs all steps at once; a ``state`` of another run.

    Warns:
        UserWarning: as :func:`hypergradient`; a loader that is read from its beginning on resume.

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
    check_choice("not_finite", not_finite, get_args(NotFinite))
    if isinstance(train_batches, Tensor) and train_batches.ndim:
        train_batches = list(train_batches.unbind())
    if not callable(inner_steps):
        check_count("inner_steps", inner_steps, "steps")
    check_count("outer_steps", outer_steps, "steps")
    for name, batches in (("train_batches", train_batches), ("outer_batches", outer_batches)):
        if isinstance(batches, (str, dict)) or not (isinstance(batches, Iterable) or is_sequence(batches)):
            raise TypeError(f"{name} must be a list of batches or a loader, got {type(batches).__name__}")
    full, strategy = checked(optimizer, train_loss, params, hparams, strategy)
    check_loss("outer_loss", outer_loss)
    if argument_counts(outer_loss)[1] < 2:
        raise ValueError("outer_loss takes (params, batch), or (params, batch, loss_hparams)")
    by = pure_outer("by", by)
    if state is not None and not isinstance(state, BilevelState):
        hint = "; pass record.state" if isinstance(state, Record) else ""
        raise TypeError(f"state must be the BilevelState of an earlier record, got {type(state).__name__}{hint}")
    full, params = detached((full, params))
    whole = with_start(full, params, train_batches)
    names = paths.normalise(over, whole)
    tuned = detached(paths.select(whole, names))
    check_floats(tuned)
    constraints = Constraints(names, constrain, optimizer.domains)
    _check_rounds(names, train_batches, inner_steps, reset, train_loss)
    zero, inner = torch.zeros((), dtype=torch.int64, device="cpu"), detached(optimizer.init(params, without_loss(full)))
    inner = beginning(train_loss, inner)
    first = BilevelState(zero, params, inner, tuned, by.init(constraints.free(tuned)), zero)
    if state is None:
        constraints.check(tuned)
    else:
        _check_state(state, first)
        state = BilevelState(*map(_on_devices_of, first, state))
    rounds = _Rounds(
        optimizer, by, names, train_loss, outer_loss, inner_steps, strategy, constraints, whole, reset, not_finite
    )
    return rounds.records(state or first, train_batches, outer_batches, outer_steps)


@dataclass(frozen=True)
class _Rounds:
    optimizer: Optimizer
    by: Optimizer
    names: tuple[str, ...]
    train_loss: Callable[..., Tensor]
    outer_loss: Callable[..., Tensor]
    inner_steps: int | Callable[[int], int | Callable[[Step], Any]]
    strategy: Strategy
    constraints: Constraints
    whole: dict[str, Any]  # hparams, "params" and "batches" as they were given
    reset: Any
    not_finite: NotFinite

    def records(
        self, state: BilevelState, train_batches: Iterable[Any], outer_batches: Iterable[Any], outer_steps: int
    ) -> Iterator[Record]:
        done = int(state.step)
        train = batches_from(int(state.trained), "train_batches", train_batches)
        outer = batches_from(done, "outer_batches", outer_batches)
        for _ in range(done, outer_steps):
            record = self._round(state, train, next(outer))
            state = record.state
            yield record

    def _round(self, state: BilevelState, train: Iterator[Any], held_out: Any) -> Record:
        step = int(state.step) + 1
        batches, stop, made = self._planned(step, train)
        whole, params, inner = self.whole, state.params, state.inner
        if self.reset is not None:
            params, inner = self.reset(step) if callable(self.reset) else self.reset, None
            check_params(params)
            if _shape_of(params) != _shape_of(whole["params"]):
                raise ValueError("reset must give params of the structure and shapes that training started with")
            whole = {**whole, "params": params}
        given = paths.merge(whole, state.tuned)
        if self._tunes("params"):
            params, inner = given["params"], None
        if self._tunes("batches"):
            batches = list(given["batches"])
        try:
            value, slopes, (params, inner) = value_and_grad(
                self.optimizer, self.train_loss, self._outer(held_out), params, batches, self.names,
                without_start(given), inner, self.strategy, stop,
            )  # fmt: skip
        except RuntimeError as error:
            mixed = two_devices(error, params, outer_batches=held_out)
            raise mixed from mixed.__cause__
        warn_of(slopes)
        skipped = tuple(name for name, h in slopes.items() if not _finite(h))
        count, lost = torch.tensor(step, device="cpu"), not _finite((params, inner))
        ended = state.trained + len(made)
        if self.not_finite == "error" and (skipped or lost):
            what, advice = "the params, or the optimizer's state, are", "learning rate"
            if skipped:
                what = f"the hypergradient of {', '.join(map(repr, skipped))} is"
                advice = "hyper-learning-rate, truncate"
            raise FloatingPointError(
                f"{what} not finite at outer step {step} (outer loss {value.item():g}); lower the {advice}, or pass "
                "not_finite='skip'"
            )
        if lost:
            back = state._replace(step=count, trained=ended)
            return Record(step, value.item(), slopes, state.tuned, without_start(given), self.names, back)
        seen = {n: tree.map_tree(torch.zeros_like, h) if n in skipped else h for n, h in slopes.items()}
        free = self.constraints.free(state.tuned)
        moved, outer = self.by.update(self.constraints.chain(seen, state.tuned), state.outer, free)
        tuned = self.constraints.natural(moved) | {name: state.tuned[name] for name in skipped}
        tuned = self._settled(given, tuned, inner)
        hparams = without_start(paths.merge(whole, tuned))
        state = BilevelState(count, params, inner, tuned, outer, ended)
        return Record(step, value.item(), slopes, tuned, hparams, skipped, state)

    def _planned(self, step: int, train: Iterator[Any]) -> tuple[Any, Any, Sequence[int]]:
        """The batches of a round, the rule that ends it, if there is one, and its steps, when they have been made."""
        plan: Any = self.inner_steps(step) if callable(self.inner_steps) else self.inner_steps
        if callable(plan):
            check_stepwise("a rule that ends a round", self.strategy)
            made: list[int] = []
            return train, lambda step: made.append(step.k) or plan(step), made
        check_count("inner_steps", plan, "steps")
        return [next(train) for _ in range(plan)], None, range(plan)

    def _tunes(self, part: str) -> bool:
        return any(name.split(".")[0] == part for name in self.names)

    def _outer(self, batch: Any) -> Callable[..., Tensor]:
        if argument_counts(self.outer_loss)[0] == 3:  # the last for the loss's hparams
            return lambda params, own: self.outer_loss(params, batch, own)
        return lambda params: self.outer_loss(params, batch)

    def _settled(self, given: dict[str, Any], tuned: dict[str, Any], inner: State) -> dict[str, Any]:
        """The hyperparameters as ``settle`` of the optimizer leaves them: a radius is at most the largest norm."""
        ours = tuple(name for name in self.names if name.split(".")[0] in self.optimizer.hparams)
        if self.optimizer.settle is None or not ours:
            return tuned
        full = paths.merge(given, tuned)
        hparams = {name: full[name] for name in self.optimizer.hparams}
        base = inner.base if isinstance(inner, BufferedState) else inner
        return tuned | paths.select(self.optimizer.settle(hparams, base), ours)


def _check_rounds(
    names: tuple[str, ...], train_batches: Any, inner_steps: Any, reset: Any, train_loss: Callable[..., Tensor]
) -> None:
    parts = {name.split(".")[0] for name in names}
    if "batches" in parts and isinstance(train_loss, DataParallel):
        raise shards_differ("bilevel")
    if "batches" in parts and (not isinstance(train_batches, (list, tuple)) or len(train_batches) != inner_steps):
        got = len(train_batches) if isinstance(train_batches, Sequence) else type(train_batches).__name__
        raise ValueError(
            f"over tunes batches: train_batches must be a list of inner_steps = {inner_steps} entries, a number, the "
            f"same in each round, got {got}"
        )
    if "params" in names and reset is not None:
        raise ValueError("over='params' tunes where each round starts, and reset says it too; leave one out")


def _check_state(state: BilevelState, first: BilevelState) -> None:
    """``first``: that of this run, before its first round."""
    if state.tuned.keys() != first.tuned.keys():
        raise ValueError(f"state comes from a run over {list(state.tuned)}, this one is over {list(first.tuned)}")
    for part, whose in (("params", "params"), ("tuned", "hparams"), ("inner", "optimizer"), ("outer", "by")):
        if _kind_of(getattr(state, part)) != _kind_of(getattr(first, part)):
            raise ValueError(f"state.{part} does not fit: does state come from a run with another {whose}?")


def _shape_of(values: Any) -> Any:
    """The structure of a tree and the shapes of its tensors."""
    return tree.structure(values), [tuple(x.shape) if isinstance(x, Tensor) else None for x in tree.leaves(values)]


def _kind_of(outer: State) -> Any:
    """For a ``state_dict`` of torch.optim, which is empty before its first step, the options; else everything."""
    if isinstance(outer, dict) and "param_groups" in outer:
        return [sorted(group) for group in outer["param_groups"]]
    return _shape_of(outer)


def _on_devices_of(first: Any, values: Any) -> Any:
    """As a state may be loaded on another device."""
    if isinstance(values, dict) and "param_groups" in values:  # which load_state_dict moves
        return values
    return tree.map_tree(lambda x, like: x.to(like.device) if isinstance(x, Tensor) else x, values, first)


def _finite(values: Any) -> bool:
    """Plain tensors are read once for each device, however many there are."""
    flags: dict[torch.device, list[Tensor]] = {}
    for x in tree.leaves(values):
        if is_dtensor(x):
            if not bool(x.isfinite().all()):
                return False
        elif isinstance(x, Tensor):
            flags.setdefault(x.device, []).append(x.isfinite().all())
    return all(bool(torch.stack(row).all()) for row in flags.values())
