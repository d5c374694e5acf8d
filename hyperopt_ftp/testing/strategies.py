"""Strategies of hypothesis for trees of tensors, gradients, optimizers with random numbers and small trainings.

Needs the extra ``testing``. A test of an optimizer of one's own, on any tree, with gradients missing:

>>> import hyperopt_ftp as hft
>>> from hypothesis import given, settings
>>> from hyperopt_ftp.testing import strategies
>>> @settings(max_examples=5, deadline=None, database=None)
... @given(run=strategies.runs())
... def test_mine(run):
...     run.by(hft.adam(lr=0.1))  # params and state after its updates, each of which must be pure
>>> test_mine()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft

from .. import tree
from .checks import pure_update


class Pair(NamedTuple):
    """A node of the trees."""

    first: Any
    second: Any


class Run(NamedTuple):
    """First params, and the gradients of some updates; ``None`` where a leaf has none."""

    params: Any
    grads: list[Any]

    def by(self, opt: hft.Optimizer, hparams: Any = None) -> tuple[Any, Any]:
        """Params and state after the updates; an update that changes what it is given is an ``AssertionError``."""
        opt = opt if hparams is None else opt._replace(hparams=hparams)
        params, state = self.params, opt.init(self.params, opt.hparams)
        for g in self.grads:
            params, state = pure_update(opt, g, state, params)
        return params, state


class Training(NamedTuple):
    """Of float64 params, by a loss that is smooth in all of them together."""

    params: Any
    loss: Callable[[Any, Tensor], Tensor]
    batches: list[Tensor]


def between(low: float, high: float) -> st.SearchStrategy[float]:
    """A hundred numbers, evenly: those that floats shrink to, such as 5e-324, say nothing about a rule."""
    return st.integers(0, 100).map(lambda k: low + (high - low) * k / 100)


def shapes(max_dims: int = 3, least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """0-d, and empty where ``least`` is 0."""
    return st.lists(st.integers(least, 4), max_size=max_dims).map(tuple)


def trees(leaves: st.SearchStrategy[Any], max_leaves: int = 5) -> st.SearchStrategy[Any]:
    """Dicts, lists, tuples and named tuples, and a bare leaf; without an empty node."""

    def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.dictionaries(st.sampled_from(["w", "b", "head", 3]), inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner, inner),
            st.builds(Pair, inner, inner),
        )

    return st.recursive(leaves, nodes, max_leaves=max_leaves)


def _randn(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def params(
    dtypes: Sequence[torch.dtype] = (torch.float64,),
    shapes: st.SearchStrategy[tuple[int, ...]] = shapes(),  # noqa: B008
) -> st.SearchStrategy[Any]:
    """Trees of tensors of order 1, each leaf of one of these dtypes."""
    return trees(st.builds(_randn, shapes, st.integers(0, 999), st.sampled_from(dtypes)))


@st.composite
def gradients(draw: st.DrawFn, params: Any, none: bool = True) -> Any:
    """Of order 1, some with an entry of 0; with ``none`` some leaves have none."""

    def of(w: Tensor) -> Tensor | None:
        if none and draw(st.integers(0, 3)) == 3:
            return None
        g = _randn(w.shape, draw(st.integers(0, 999)), w.dtype)
        return g * (g > 0) if draw(st.integers(0, 3)) == 3 else g

    return tree.map_tree(of, params)


@st.composite
def runs(draw: st.DrawFn, params: st.SearchStrategy[Any] = params(), none: bool = True, max_steps: int = 4) -> Run:  # noqa: B008
    """Params and gradients, for what an optimizer makes of them; the loss is nobody's."""
    first = draw(params)
    return Run(first, [draw(gradients(first, none)) for _ in range(draw(st.integers(1, max_steps)))])


@st.composite
def trainings(draw: st.DrawFn, steps: int = 3) -> Training:
    """Of no empty leaf; each gradient depends on every leaf."""

    def loss(params: Any, x: Tensor) -> Tensor:
        each = [torch.tanh(w.reshape(-1, 1) * x[:2] + x[2]).mean() for w in tree.leaves(params)]
        return sum(each, x[3]).square() + torch.stack(each).square().mean()

    first = draw(params(shapes=shapes(2, least=1)))
    return Training(first, loss, [_randn((4,), draw(st.integers(0, 999))) for _ in range(steps)])


# -- optimizers: each rule with a number for each argument that its signature has -------------------------------------

_UNIT = between(0.05, 0.95)

#: By the name of an argument; rules are smooth at these numbers.
NUMBERS: Mapping[str, st.SearchStrategy[Any]] = {
    "lr": between(0.01, 0.2),
    "betas": st.tuples(between(0.0, 0.95), between(0.05, 0.99)),
    "eps": between(0.01, 0.1),
    "weight_decay": between(0.0, 0.3),
    **dict.fromkeys(("momentum", "dampening", "alpha", "rho", "lr_decay", "momentum_decay", "lambd", "r"), _UNIT),
    **dict.fromkeys(("amsgrad", "centered", "decoupled", "decoupled_weight_decay", "maximize"), st.booleans()),
    "initial_accumulator_value": between(0.1, 1.0),
    "etas": st.tuples(_UNIT, between(1.1, 2.0)),
    "step_sizes": st.tuples(between(0.001, 0.05), between(0.06, 1.0)),
    "t0": between(0.0, 5.0),
    "beta2_decay": between(-0.9, -0.3),
    "d": between(1.0, 1.5),
    "clip_power": st.none() | _UNIT,
    "warmup_steps": st.integers(0, 3),
    "weight_lr_power": between(0.0, 2.0),
    "trust_coefficient": between(0.1, 0.5),
}
_OWN: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
    "adafactor": {"eps": st.tuples(st.none() | between(0.1, 0.3), between(0.1, 0.9))},
    "adan": {"betas": st.tuples(_UNIT, _UNIT, _UNIT)},
    "lars": {"nesterov": st.booleans()},
}
#: But muon, which takes matrices alone.
RULES: Sequence[Callable[..., hft.Optimizer]] = (
    hft.sgd, hft.adam, hft.adamw, hft.rmsprop, hft.adagrad, hft.adadelta, hft.adamax, hft.nadam, hft.radam, hft.rprop,
    hft.asgd, hft.lion, hft.adafactor, hft.adan, hft.adopt, hft.schedule_free_sgd, hft.schedule_free_adamw, hft.signum,
    hft.adabelief, hft.yogi, hft.lamb, hft.lars,
)  # fmt: skip


def options(make: Callable[..., hft.Optimizer], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a rule, or of one's own whose arguments have the usual names; ``more`` takes the place of some."""
    named = {name: NUMBERS[name] for name in inspect.signature(make).parameters if name in NUMBERS}
    return st.fixed_dictionaries({**named, **_OWN.get(make.__name__, {}), **more})


@st.composite
def rules(
    draw: st.DrawFn, makes: Sequence[Callable[..., hft.Optimizer]] = RULES, maximize: bool = False
) -> hft.Optimizer:
    """An optimizer that is no combinator, with random numbers."""
    make = draw(st.sampled_from(makes))
    return make(**draw(options(make) if maximize else options(make, maximize=st.just(False))))


#: ``around(base, anchor, x)``, x in [0, 1): another one at each level, for equal bounds would be a kink.
AROUND: Mapping[str, Callable[[hft.Optimizer, Any, float], hft.Optimizer]] = {
    "clipped": lambda base, anchor, x: hft.clipped(base, 0.5 + x),
    "clipped_by_value": lambda base, anchor, x: hft.clipped_by_value(base, 0.1 + x / 10),
    "clipped_per_layer": lambda base, anchor, x: hft.clipped_per_layer(base, 0.4 + x),
    "clipped_adaptively": lambda base, anchor, x: hft.clipped_adaptively(base, 0.2 + x / 10),
    "damped": lambda base, anchor, x: hft.damped(base, 0.9 - x / 2),
    "noisy": lambda base, anchor, x: hft.noisy(base, 0.01, seed=int(1000 * x)),
    "decayed": lambda base, anchor, x: hft.decayed(base, 0.1 + x),
    "averaged": lambda base, anchor, x: hft.averaged(base, 0.9 if x < 0.5 else None),
    "lookahead": lambda base, anchor, x: hft.lookahead(base, every=2, alpha=0.3 + x / 2),
    "accumulated": lambda base, anchor, x: hft.accumulated(base, every=2),
    "projected": lambda base, anchor, x: hft.projected(base, anchor, radius=0.3 + x),
    "ftp": lambda base, anchor, x: hft.ftp(base, anchor, radius_lr=0.1, kappa=0.8),
    "l2sp": lambda base, anchor, x: hft.l2sp(base, anchor, strength=0.2 + x, decoupled=x < 0.5),
}
_MOVES_WEIGHTS, _READS_LR = ("decayed", "lookahead", "projected", "ftp"), ("decayed", "l2sp")
_SCHEDULES: Sequence[Callable[[float], hft.schedules.Schedule]] = [
    lambda x: hft.schedules.cosine(4, floor=0.1 + x / 2),
    lambda x: hft.schedules.warm_up(hft.schedules.linear(1.0, 0.3, 5), share=0.3 + x / 4, start=0.2),
    lambda x: hft.schedules.one_cycle(6, share=0.4 + x / 10),
    lambda x: hft.schedules.joined([hft.schedules.constant(0.7), hft.schedules.exponential(0.8)], at=[2]),
]


@st.composite
def optimizers(draw: st.DrawFn, params: Any, depth: int = 3, none: bool = True, bases: Any = rules()) -> Any:  # noqa: B008
    """Up to so many combinators, or parts with some of their own, around a rule; held near the ``params``.

    With ``none`` they take gradients that are ``None``, which ``accumulated`` refuses.
    """
    if not draw(st.integers(0, depth)):
        return draw(bases)
    paths = [*tree.by_path(params)]
    kind = draw(st.sampled_from(["hyper", "scheduled", "per_step", "partition", *AROUND]))
    if kind == "partition":
        halves = {"one": paths[: len(paths) // 2], "two": paths[len(paths) // 2 :]}
        parts = {label: tree.pick(params, dict.fromkeys(half)) for label, half in halves.items() if half}
        labels = {path: label for label, half in parts.items() for path in half}
        made = {label: draw(optimizers(half, depth - 1, none, bases)) for label, half in parts.items()}
        return hft.partition(made, labels.__getitem__)
    base, x = draw(optimizers(params, depth - 1, none, bases)), draw(st.integers(0, 99)) / 100
    if kind in AROUND:
        moves = kind in _MOVES_WEIGHTS or (kind == "l2sp" and x < 0.5)
        assume(not (moves and base.weights_in_state))  # refused
        assume(kind not in _READS_LR or ("lr" in base.hparams and not tree.leaves(base.hparams["lr"])[0].ndim))
        assume(not (kind == "accumulated" and none))
        return AROUND[kind](base, params, x)
    # Two betas are one hparam. What is tuned already is tuned once.
    known = [path for path, value in tree.named(base.hparams) if not value.ndim and ".betas" not in f".{path}"]
    free = [path for path in known if not any(f"{path}.".startswith(f"{other}.") for other in base.tunes)]
    assume(free)
    path = draw(st.sampled_from(free))
    if kind == "hyper":
        return hft.hyper(base, by=hft.sgd(lr=1e-3), over=path)
    if kind == "scheduled":
        return hft.scheduled(base, {path: draw(st.sampled_from(_SCHEDULES))(x)})
    try:
        return hft.per_step(base, {path: tree.entry(base.hparams, path) * torch.tensor([1.0, 0.8, 0.9]).double()})
    except ValueError as error:  # of a number that may not be less
        assume("must lie in" not in str(error))
        raise
