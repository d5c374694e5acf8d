"""Schedules whose numbers are hyperparameters, for :func:`~hyperopt_ftp.scheduled`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .calls import check_count, check_flag, explained, shown
from .hparams import Domain, as_tensor, to_tensors
from .types import Number

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "joined",
    "linear",
    "one_cycle",
    "piecewise",
    "polynomial",
    "warm_up",
]

Factor: TypeAlias = Callable[[Any, Any], Tensor]

_FACTOR = Domain(0.0, math.inf, open_high=True)
_SHARE = Domain(0.0, 1.0)


class Schedule(NamedTuple):
    """A factor that changes with the count of updates, for an hparam of an optimizer (:func:`~hyperopt_ftp.scheduled`).

    The peak is the hparam itself: that of ``scheduled(sgd(lr=0.1), lr=cosine(100))`` is ``lr``, 0.1.

    Attributes:
        factor: ``factor(count, hparams)``. ``count`` is the number of updates done (0 at the first): a number or a
            tensor of any shape. It need not be whole: inside :func:`warm_up` it is not.
        hparams: the schedule's own numbers, a dict of 0-d tensors. A schedule inside another has a dict in it.
        domains: of the hparams, by the same names.
        steps: its length, after which the factor does not change; ``None``: no end.

    Your own schedule needs these four fields, and torch functions without a Python branch on a tensor:

    >>> import torch, hyperopt_ftp as hft
    >>> root = hft.schedules.Schedule(
    ...     lambda count, h: (h["begin"] / (h["begin"] + count)).sqrt(),
    ...     {"begin": torch.tensor(9.0, dtype=torch.float64)}, {}, None,
    ... )
    >>> opt = hft.scheduled(hft.sgd(lr=0.1), lr=root)
    >>> opt.hparams["lr_schedule"]
    {'begin': tensor(9., dtype=torch.float64)}
    >>> root.factor(torch.tensor([0, 7, 27]), root.hparams)
    tensor([1.0000, 0.7500, 0.5000], dtype=torch.float64)
    """

    factor: Factor
    hparams: dict[str, Any]
    domains: Mapping[str, Any]
    steps: int | None


@explained()
def constant(factor: Number, steps: int | None = None) -> Schedule:
    """``factor`` at the first ``steps`` updates, then 1; :class:`torch.optim.lr_scheduler.ConstantLR`.

    Args:
        factor: an hparam >= 0.
        steps: number of updates; ``None``: no end.

    Raises:
        ValueError: a factor outside its domain, or steps below 1.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.constant(0.5, steps=2)
    >>> s.factor(torch.arange(4), s.hparams)
    tensor([0.5000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    check_count("steps", steps, "steps", none=True)

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        return torch.where(t < (math.inf if steps is None else steps), h["factor"], 1.0)

    return _schedule(rule, steps, factor=factor)


@explained()
def linear(start: Number, end: Number, steps: int) -> Schedule:
    """``start + (end - start) * min(t / steps, 1)``; :class:`torch.optim.lr_scheduler.LinearLR`.

    Args:
        start, end: hparams >= 0. Unlike in torch, either may be above 1.
        steps: from start to end.

    Raises:
        ValueError: a factor outside its domain, or steps below 1.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.linear(0.0, 1.0, steps=4)
    >>> s.factor(torch.arange(6), s.hparams)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000, 1.0000], dtype=torch.float64)
    """
    check_count("steps", steps, "steps")

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        return _straight(h["start"], h["end"], _progress(t, 0, steps))

    return _schedule(rule, steps, start=start, end=end)


@explained()
def polynomial(steps: int, power: Number = 1.0) -> Schedule:
    """``(1 - t / steps) ** power``, and 0 from ``steps`` on; :class:`torch.optim.lr_scheduler.PolynomialLR`.

    Args:
        steps: number of updates until 0.
        power: an hparam >= 0.

    Raises:
        ValueError: a power outside its domain, or steps below 1.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.polynomial(4, power=2.0)
    >>> s.factor(torch.arange(6), s.hparams)
    tensor([1.0000, 0.5625, 0.2500, 0.0625, 0.0000, 0.0000], dtype=torch.float64)
    """
    check_count("steps", steps, "steps")

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        left = 1 - _progress(t, 0, steps)
        some = left > 0  # a power below 1 has no finite derivative at 0
        return torch.where(some, torch.where(some, left, 1.0) ** h["power"], 0.0)

    return _schedule(rule, steps, power=power)


@explained()
def exponential(decay: Number) -> Schedule:
    """``decay ** t``, without an end; :class:`torch.optim.lr_scheduler.ExponentialLR`.

    Args:
        decay: an hparam >= 0; torch's ``gamma``. Above 1 the factor grows.

    Raises:
        ValueError: a decay outside its domain.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.exponential(0.5)
    >>> s.factor(torch.arange(4), s.hparams)
    tensor([1.0000, 0.5000, 0.2500, 0.1250], dtype=torch.float64)
    """
    return _schedule(lambda t, h: h["decay"] ** t, None, decay=decay)


@explained()
def cosine(steps: int, floor: Number = 0.0) -> Schedule:
    """``floor + (1 - floor) * (1 + cos(pi * min(t / steps, 1))) / 2``, from 1 down to ``floor`` (arXiv 1608.03983).

    Up to ``steps`` it is :class:`torch.optim.lr_scheduler.CosineAnnealingLR` with ``T_max = steps`` and
    ``eta_min = floor * lr``. After that torch's rises again, and this one stays at its floor. For warm restarts use
    :func:`joined`.

    Args:
        steps: number of updates until the floor.
        floor: an hparam >= 0.

    Raises:
        ValueError: a floor outside its domain, or steps below 1.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.cosine(4, floor=0.2)
    >>> s.factor(torch.arange(6), s.hparams)
    tensor([1.0000, 0.8828, 0.6000, 0.3172, 0.2000, 0.2000], dtype=torch.float64)
    """
    check_count("steps", steps, "steps")
    return _schedule(lambda t, h: _curved(1.0, h["floor"], _progress(t, 0, steps)), steps, floor=floor)


@explained()
def one_cycle(
    steps: int,
    share: Number = 0.3,
    start: Number = 1 / 25,
    floor: Number = 1e-4 / 25,
    linear: bool = False,
    three_phase: bool = False,
) -> Schedule:
    """From ``start`` up to 1, then down to ``floor`` (arXiv 1708.07120); :class:`torch.optim.lr_scheduler.OneCycleLR`.

    The peak is at the count ``w = share * steps - 1``, the floor at the last of the ``steps`` updates. Both slopes are
    halves of a cosine. ``share`` moves the peak continuously, so it has a derivative.

    Args:
        steps: torch's ``total_steps``. After them torch raises an error; here the factor does not change.
        share: an hparam in [0, 1]; ``pct_start``.
        start: an hparam >= 0: 1 / ``div_factor``.
        floor: an hparam >= 0: 1 / ``(div_factor * final_div_factor)``.
        linear: straight lines instead of cosines (not an hparam).
        three_phase: down to ``start`` as fast as up, then to ``floor`` (not an hparam).

    Torch's ``max_lr`` is the base's ``lr``. For its ``cycle_momentum`` give the momentum its own schedule, with
    ``start`` and ``floor`` above 1.

    Raises:
        ValueError: a number outside its domain, or steps below 1.
        TypeError: a flag that is not a bool.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.one_cycle(10, share=0.3, start=0.5, floor=0.0, linear=True)
    >>> s.factor(torch.arange(0, 11, 2), s.hparams)
    tensor([0.5000, 1.0000, 0.7143, 0.4286, 0.1429, 0.0000], dtype=torch.float64)
    """
    check_count("steps", steps, "steps")
    check_flag("linear", linear)
    check_flag("three_phase", three_phase)
    between, last = _straight if linear else _curved, steps - 1

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        t, peak = t.clamp(max=last), h["share"] * steps - 1
        up = between(h["start"], 1.0, _progress(t, 0, peak))
        if not three_phase:
            return torch.where(t < peak, up, between(1.0, h["floor"], _progress(t, peak, last)))
        down = between(1.0, h["start"], _progress(t, peak, 2 * peak))
        end = between(h["start"], h["floor"], _progress(t, 2 * peak, last))
        return torch.where(t < peak, up, torch.where(t < 2 * peak, down, end))

    return _schedule(rule, steps, share=share, start=start, floor=floor)


@explained()
def piecewise(at: Sequence[int], factors: Sequence[Number]) -> Schedule:
    """1 at first, and ``factors[i]`` from the count ``at[i]`` on.

    With ``factors = (gamma, gamma**2, ...)`` it is :class:`torch.optim.lr_scheduler.MultiStepLR`.

    Args:
        at: counts of updates, in increasing order.
        factors: hparams >= 0, one for each count. Each multiplies the hparam itself, not the value before.

    Raises:
        ValueError: a factor outside its domain, counts that do not increase, or other numbers of counts and factors.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.piecewise(at=(2, 3), factors=(0.5, 0.1))
    >>> s.factor(torch.arange(5), s.hparams)
    tensor([1.0000, 1.0000, 0.5000, 0.1000, 0.1000], dtype=torch.float64)
    """
    at, factors = _counts(at), tuple(factors)
    if len(at) != len(factors):
        raise ValueError(f"piecewise needs one factor for each count in at, got {len(factors)} for {len(at)}")

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        value = torch.ones_like(t)
        for begin, factor in zip(at, h["factors"], strict=True):
            value = torch.where(t < begin, value, factor)
        return value

    return _schedule(rule, at[-1], factors=factors)


@explained()
def warm_up(then: Schedule, share: Number = 0.1, start: Number = 0.0, steps: int | None = None) -> Schedule:
    """Rise linearly from ``start`` to 1, then follow another schedule.

    With ``w = share * steps``::

        start + (1 - start) * t / w                          for t < w
        then at (t - w) * steps / (steps - w)                 after that, if ``then`` has a length
        then at t - w                                         if it has none

    ``share`` moves ``w`` continuously, so it has a derivative. For a whole ``w`` and ``start`` above 0,
    ``warm_up(cosine(T))`` equals torch's ``SequentialLR`` of ``LinearLR`` over w and ``CosineAnnealingLR`` over T - w
    updates.

    Args:
        then: any schedule; its hparams are the entry ``"then"`` of the result's.
        share: an hparam in [0, 1]. For a warm-up of w updates use ``share=w / then.steps``.
        start: an hparam >= 0. With 0 the first update does nothing.
        steps: the length that ``share`` refers to. Give it only if ``then`` has no end; else it is ``then.steps``.

    Raises:
        ValueError: a number outside its domain; steps that are missing, or not those of ``then``.
        TypeError: something that is not a schedule.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.warm_up(hft.schedules.cosine(6), share=1 / 3)
    >>> s.factor(torch.arange(6), s.hparams)
    tensor([0.0000, 0.5000, 1.0000, 0.8536, 0.5000, 0.1464], dtype=torch.float64)
    >>> opt = hft.scheduled(hft.sgd(lr=0.1), lr=s)
    >>> hft.hyper(opt, by=hft.sgd(lr=1e-3), over=("lr", "lr_schedule.share", "lr_schedule.then.floor")).tunes
    ('base.lr', 'base.lr_schedule.share', 'base.lr_schedule.then.floor')
    """
    _check_schedule("then", then)
    check_count("steps", steps, "steps", none=True)
    if steps is None and then.steps is None:
        raise ValueError("share is a share of steps, and the schedule after the warm-up has no end; give steps")
    if None not in (steps, then.steps) and steps != then.steps:
        raise ValueError(
            f"the schedule after the warm-up has {then.steps} steps, got steps={steps}; leave steps out: the warm-up "
            f"takes the first share * {then.steps} of them"
        )
    whole = steps if then.steps is None else then.steps
    assert whole is not None

    def rule(t: Tensor, h: dict[str, Any]) -> Tensor:
        w = h["share"] * whole
        inner = (t - w).clamp(min=0) if then.steps is None else whole * _progress(t, w, whole)
        return torch.where(t < w, _straight(h["start"], 1.0, _progress(t, 0, w)), then.factor(inner, h["then"]))

    first = _schedule(rule, then.steps, share=share, start=start)
    return first._replace(
        hparams={**first.hparams, "then": then.hparams}, domains={**first.domains, "then": then.domains}
    )


@explained()
def joined(schedules: Sequence[Schedule], at: Sequence[int]) -> Schedule:
    """One schedule after the other, each from its own beginning; :class:`torch.optim.lr_scheduler.SequentialLR`.

    Args:
        schedules: two or more. The hparams of the i-th are the entry ``"i"`` of the result's, from ``"0"`` on.
        at: counts of updates at which the second and later ones begin, in increasing order.

    Raises:
        ValueError: counts that do not increase, or not one fewer than schedules.
        TypeError: something that is not a schedule.

    >>> import torch, hyperopt_ftp as hft
    >>> s = hft.schedules.joined([hft.schedules.cosine(2), hft.schedules.cosine(4)], at=[2])
    >>> s.factor(torch.arange(6), s.hparams)
    tensor([1.0000, 0.5000, 1.0000, 0.8536, 0.5000, 0.1464], dtype=torch.float64)
    >>> s.hparams
    {'0': {'floor': tensor(0., dtype=torch.float64)}, '1': {'floor': tensor(0., dtype=torch.float64)}}
    """
    at, schedules = _counts(at), tuple(schedules)
    if len(at) != len(schedules) - 1:
        raise ValueError(
            f"joined needs one count in at for each schedule but the first, got {len(at)} for {len(schedules)} of them"
        )
    for schedule in schedules:
        _check_schedule("each of schedules", schedule)
    parts = list(zip(map(str, range(len(schedules))), schedules, (0, *at), (*at, None), strict=True))

    def factor(count: Any, h: Any) -> Tensor:
        t = _real(count)
        value = None
        for key, schedule, begin, end in parts:
            # No further than its own part, where a factor that grows may leave the numbers.
            own = schedule.factor((t - begin).clamp(0, None if end is None else end - begin), h[key])
            value = own if value is None else torch.where(t < begin, value, own)
        assert value is not None
        return value

    last = schedules[-1].steps
    steps = None if last is None else at[-1] + last
    hparams, domains = ({key: x[i] for key, x, *_ in parts} for i in (1, 2))
    return Schedule(factor, hparams, domains, steps)


def _schedule(rule: Callable[[Tensor, dict[str, Any]], Tensor], steps: int | None, **numbers: Any) -> Schedule:
    domains = {name: _SHARE if name == "share" else _FACTOR for name in numbers}
    return Schedule(lambda count, h: rule(_real(count), h), to_tensors(domains, **numbers), domains, steps)


def _real(count: Any) -> Tensor:
    """In float64, whatever dtype the numbers have: float32 does not hold every count above 2^24."""
    return as_tensor(count).to(torch.float64)


def _progress(t: Tensor, begin: Any, end: Any) -> Tensor:
    """0 up to ``begin``, 1 from ``end`` on; a phase of length 0 is never on its way, and has finite derivatives."""
    length = as_tensor(end - begin)
    return ((t - begin) / torch.where(length > 0, length, 1.0)).clamp(0, 1)


def _straight(start: Any, end: Any, progress: Tensor) -> Tensor:
    return start + (end - start) * progress


def _curved(start: Any, end: Any, progress: Tensor) -> Tensor:
    return end + (start - end) * (1 + torch.cos(math.pi * progress)) / 2


def _counts(at: Any) -> tuple[int, ...]:
    at = tuple(at) if isinstance(at, (tuple, list)) else at
    whole = isinstance(at, tuple) and all(isinstance(x, int) and not isinstance(x, bool) for x in at)
    if not whole or not at or at[0] < 1 or any(a >= b for a, b in pairwise(at)):
        raise ValueError(f"at must hold counts of updates >= 1 in increasing order, got {shown(at)}")
    return at


def _check_schedule(name: str, value: Any) -> None:
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a Schedule, such as hft.schedules.cosine(100), got {shown(value)}")
