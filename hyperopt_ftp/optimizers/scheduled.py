"""Hparams that change with the count of updates: by a factor, or by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from .. import schedules as named_schedules
from .. import tree
from ..calls import did_you_mean, explained, shown
from ..hparams import as_numbers, check_table, complete, domain_at
from ..schedules import Schedule
from ..types import Optimizer, check_optimizer
from .leafwise import check_state, no_steps
from .wrap import wrapped

T = TypeVar("T")

Scaling: TypeAlias = Schedule | Callable[[Tensor], Any]  #: a schedule, or ``factor(count)``

#: What there is in place of a scheduler of ``torch.optim.lr_scheduler``.
_INSTEAD = {
    "ConstantLR": "constant",
    "LinearLR": "linear",
    "PolynomialLR": "polynomial",
    "ExponentialLR": "exponential",
    "CosineAnnealingLR": "cosine",
    "OneCycleLR": "one_cycle",
    "StepLR": "piecewise",
    "MultiStepLR": "piecewise",
    "SequentialLR": "joined",
}


class ScheduledState(NamedTuple):
    """State of :func:`scheduled` and :func:`per_step`."""

    step: Tensor  # shape (), int64: updates done
    base: Any


@explained()
def scheduled(
    base: Optimizer, schedules: Mapping[str, Scaling] | None = None, **by_name: Scaling
) -> Optimizer[ScheduledState]:
    """Multiply hyperparameters by functions of the count of updates.

    At the update with the count t, from 0, ``base`` gets ``factor(t) * lr`` instead of ``lr``. Its ``init`` gets the
    value at t = 0.

    Args:
        base: any optimizer. Its hparams are the values before scaling.
        schedules: a dict by path, for hparams inside a tree: ``{"by.lr": schedule}``.
        by_name: schedules by name: ``lr=schedule``. All numbers of an hparam that holds several (betas, a number for
            each layer) are multiplied.

    A schedule is one of ``hft.schedules``, whose numbers become hparams: those of ``lr=cosine(100)`` are in the entry
    ``"lr_schedule"``, so ``over="lr_schedule.floor"`` tunes its floor. Or it is a function
    ``schedule(count) -> factor`` of a 0-d int64 tensor, of torch functions without a Python branch, so that it
    compiles; torch makes a float32 of ``0.9**count``, and a float64 of ``0.9 ** count.double()``. Scaled values are not
    clipped to the domain of their hparam.

    Raises:
        ValueError: a path that is not an hparam of ``base``, that leads to several, or that ``base`` itself tunes.
        TypeError: something that is not a schedule.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.scheduled(hft.sgd(lr=1.0), lr=hft.schedules.linear(1.0, 0.0, steps=4))
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(3):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    >>> w                                                                               # 1 + 0.75 + 0.5
    tensor([2.2500])
    >>> sorted(opt.hparams["lr_schedule"])
    ['end', 'start']
    >>> opt = hft.scheduled(hft.sgd(lr=1.0), lr=lambda t: 0.5**t)                       # no hparams of its own
    """
    entries = _entries(base, "schedules", schedules, by_name)
    for path, scaling in entries.items():
        _check_scaling(path, scaling)
    full = {path: x for path, x in entries.items() if isinstance(x, Schedule)}

    def scaled(bases: Any, owns: dict[str, Any], step: Tensor) -> Any:
        for path, scaling in entries.items():
            if isinstance(scaling, Schedule):
                factor = scaling.factor(step, _numbers(owns[_own(path)], scaling.hparams))
            else:
                factor = scaling(step)
            bases = _changed(bases, path, lambda x, factor=factor: factor * x)
        return bases

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> ScheduledState:
        step = no_steps()
        return ScheduledState(step, base.init(params, scaled(bases, owns, step)))

    def update(
        grads: Any, state: ScheduledState, params: Any, bases: Any, owns: dict[str, Any]
    ) -> tuple[Any, ScheduledState]:
        check_state(ScheduledState, state)
        params, inner = base.update(grads, state.base, params, scaled(bases, owns, state.step))
        return params, ScheduledState(state.step + 1, inner)

    own = {_own(path): schedule.hparams for path, schedule in full.items()}
    domains = {_own(path): schedule.domains for path, schedule in full.items()}
    return wrapped(base, own, init, update, domains=domains)


@explained()
def per_step(base: Optimizer, tables: Mapping[str, Any] | None = None, **by_name: Any) -> Optimizer[ScheduledState]:
    """Hyperparameters with a value for each update: ``table[t]`` at the update with the count t, from 0.

    Args:
        base: any optimizer. Its own values of these hparams are not used.
        tables: a dict by path, for hparams inside a tree: ``{"by.lr": table}``.
        by_name: tables by name, ``lr=table``: a tensor of shape (K,), which becomes the hparam. For an hparam that
            holds several numbers, a tree of such tensors: ``betas=(table, table)``. After K updates the last entry is
            used.

    Tune tables with :func:`bilevel` or :func:`hypergradient`, which differentiate the whole table. The one-step
    hypergradients of :func:`hyper` are 0 except for the entry that was used last.

    Raises:
        ValueError: a path that is not an hparam of ``base``, that leads to several, or that ``base`` itself tunes; a
            value outside the hparam's domain; an empty table.
        TypeError: a table that is not a tensor.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.per_step(hft.sgd(), lr=torch.tensor([1.0, 0.5, 0.25]))
    >>> opt.hparams["lr"]
    tensor([1.0000, 0.5000, 0.2500])
    >>> w = torch.zeros(1); state = opt.init(w)
    >>> for _ in range(4):
    ...     w, state = opt.update(-torch.ones(1), state, w)
    >>> w                                                                               # 1 + 0.5 + 0.25 + 0.25
    tensor([2.])
    """
    entries = _entries(base, "tables", tables, by_name)
    default = base.hparams
    for path, table in entries.items():
        old = tree.entry(default, path)
        if isinstance(old, tuple) and (not isinstance(table, (tuple, list)) or len(table) != len(old)):
            raise ValueError(f"{path!r} holds {len(old)} numbers: give as many tables, got {shown(table)}")
        for x in tree.leaves(table):
            check_table(path, x, domain_at(base.domains, path))
        default = tree.replaced(default, path, table)

    def at(count: Tensor, hparams: Any) -> Any:
        for path in entries:
            hparams = _changed(hparams, path, lambda table, path=path: _row(path, table, count))
        return hparams

    def init(params: Any, hparams: Any = None) -> ScheduledState:
        step = no_steps()
        return ScheduledState(step, base.init(params, at(step, complete(hparams, default))))

    def update(grads: Any, state: ScheduledState, params: Any, hparams: Any = None) -> tuple[Any, ScheduledState]:
        check_state(ScheduledState, state)
        params, inner = base.update(grads, state.base, params, at(state.step, complete(hparams, default)))
        return params, ScheduledState(state.step + 1, inner)

    def start(params: Any, hparams: Any) -> Any:
        """Tables are given: what a base would begin with in their place is not asked for."""
        assert base.start is not None
        first = base.start(params, at(no_steps(), hparams))
        for path in entries:
            first = tree.replaced(first, path, tree.entry(hparams, path))
        return first

    def settle(hparams: Any, new_state: Any) -> Any:
        """What the base makes of a value goes into the entry that was used."""
        assert base.settle is not None
        used = new_state.step - 1
        settled = base.settle(at(used, hparams), new_state.base)
        for path in entries:
            rows = tree.entry(settled, path)
            put = tree.map_tree(lambda table, row: _with_row(table, used, row), tree.entry(hparams, path), rows)
            settled = tree.replaced(settled, path, put)
        return settled

    starts, settles = start if base.start else None, settle if base.settle else None
    return base._replace(init=init, update=update, hparams=default, start=starts, settle=settles)


def _own(path: str) -> str:
    return f"{path}_schedule"


def _numbers(given: Any, default: dict[str, Any]) -> dict[str, Any]:
    h = complete(given, default)
    return {name: _numbers(x, default[name]) if isinstance(default[name], dict) else x for name, x in h.items()}


def _changed(hparams: Any, path: str, function: Callable[[Tensor], Any]) -> Any:
    """``hparams`` with ``function`` of what the path leads to, of each number where these are several."""
    return tree.replaced(hparams, path, tree.map_tree(function, tree.entry(hparams, path)))


def _place(table: Tensor, count: Tensor) -> Tensor:
    (place,) = as_numbers([count.clamp(max=len(table) - 1)])
    if isinstance(place, Tensor):
        return place.to(table.device)
    return torch.full((), place, device=table.device)  # a copy would wait for the device


def _row(path: str, table: Any, count: Tensor) -> Tensor:
    if not table.ndim:
        raise ValueError(f"hparams has one number for {path!r}, of which per_step needs a table of shape (K,)")
    return table.index_select(0, _place(table, count).reshape(1)).squeeze(0)


def _with_row(table: Tensor, count: Tensor, row: Tensor) -> Tensor:
    here = torch.arange(len(table), device=table.device) == _place(table, count)
    return torch.where(here.reshape(-1, *[1] * (table.ndim - 1)), row, table)


def _entries(base: Optimizer, what: str, given: Mapping[str, T] | None, by_name: dict[str, T]) -> dict[str, T]:
    """What is given by path and by name, where the paths lead to single hparams that are in use."""
    check_optimizer("base", base)
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"{what} must be a dict by the path of an hparam, got {shown(given)}; by name they are keywords: lr=..."
        )
    entries = {**(given or {}), **by_name}
    twice = sorted(by_name.keys() & (given or {}).keys())
    if twice:
        raise ValueError(f"{what} for {twice} twice, by path and by name; leave one out")
    unknown = [path for path in entries if not _leads(base.hparams, path)]
    if unknown:
        names = sorted(base.hparams)
        hint = did_you_mean(unknown[0], [*names, *(name for name, _ in tree.named(base.hparams))])
        raise ValueError(f"{what} for {unknown}, but the hparams are {names}{hint}")
    for path in entries:
        inside = domain_at(base.domains, path)
        if isinstance(inside, Mapping):
            example = f"{path}.{next(iter(inside), '...')}"
            raise ValueError(f"{path!r} holds several hparams, {list(inside)}: name one, as in {{{example!r}: ...}}")
        tuned = [name for name in base.tunes if f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.")]
        if tuned:
            raise ValueError(
                f"base tunes {tuned[0]!r} itself and reads what it is given in init only; {what} belong to the "
                "optimizer inside: hyper(scheduled(...), ...) or hyper(per_step(...), ...)"
            )
    return entries


def _leads(hparams: Any, path: Any) -> bool:
    try:
        tree.entry(hparams, path)
    except (KeyError, AttributeError):  # no path at all
        return False
    return True


def _check_scaling(path: str, value: Any) -> None:
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, Schedule):
        return
    hint = ""
    if issubclass(kind, torch.optim.lr_scheduler.LRScheduler):
        name = _INSTEAD.get(kind.__name__)
        hint = "; torch's act on its own classes" + (f", here it is hft.schedules.{name}" if name else "")
    elif isinstance(value, Tensor) and value.ndim:
        hint = "; one value for each update is hft.per_step"
    elif isinstance(value, (int, float, Tensor)):
        hint = f"; write hft.schedules.constant({value if isinstance(value, (int, float)) else '...'})"
    elif callable(value) and getattr(value, "__module__", None) == named_schedules.__name__:
        hint = "; call it"
    elif callable(value) and not isinstance(value, type):
        return
    raise TypeError(
        f"the schedule of {path!r} must be one of hft.schedules, such as hft.schedules.cosine(100), or a function of "
        f"the count of updates, got {shown(value)}{hint}"
    )
