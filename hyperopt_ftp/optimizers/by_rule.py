"""A pure optimizer from a rule for one tensor and the numbers and state that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import tree
from ..calls import check_flag, shown
from ..hparams import Domain, as_numbers, check_parts, complete, domains_of, is_scalar
from ..types import Optimizer, StateT
from .leafwise import advanced, check_params, check_state, for_each, leafwise, no_steps

Entries: TypeAlias = dict[str, Tensor]  #: the state of one tensor, by name
#: The hparams of one tensor, by name: 0-d tensors, tuples of them where they have parts; Python numbers if ``plain``.
Numbers: TypeAlias = dict[str, Any]
Moved: TypeAlias = tuple[Tensor, Entries]  #: new weights and state

#: ``rule(w, g, s, h, t) -> (w, s)``; ``t`` is the number of this update, from 1, or ``None`` where none is counted.
Rule: TypeAlias = Callable[[Tensor, Tensor, Entries, Numbers, Any], Moved]


@dataclass(frozen=True)
class EntryRule:
    """A rule that acts entry by entry, for those who carry all weights through a training as one vector.

    Attributes:
        rule: ``rule(w, g, s, h, t) -> (w, s)``.
        init: of the optimizer; its state is that of zeros.
        kind: class of the state.
        keeps: names of the rule's state; its first values are zeros.
        counted: whether updates are counted.
        maximize: whether the gradient is negated first.
        plain: whether the rule takes Python numbers.
        join_from: so many tensors are worth being joined.
        flat: all numbers of hparams in one list, checked.
        by_name: hparams of such a list.
        filled: a state, from trees by name and the number of updates.
        ours: whether the rule is of the package, whose rules are known to have right derivatives.
    """

    rule: Rule
    init: Callable[..., Any]
    kind: type
    keeps: tuple[str, ...]
    counted: bool
    maximize: bool
    plain: bool
    join_from: int
    flat: Callable[[dict[str, Any]], list[Any]]
    by_name: Callable[[Sequence[Any]], Numbers]
    filled: Callable[[Mapping[str, Any], Any], Any]
    ours: bool


_PACKAGE = __name__.partition(".")[0] + "."

#: By update function: what stands in the place of one, or around it, has no such rule.
_RULES: WeakKeyDictionary[Any, EntryRule] = WeakKeyDictionary()


def entry_rule(update: Any) -> EntryRule | None:
    """The rule behind an update, if it acts entry by entry and begins with zeros."""
    return _RULES.get(update) if type(update) is FunctionType else None


def by_rule(
    rule: Rule,
    kind: type[StateT],
    hparams: dict[str, Any],
    *,
    keeps: Sequence[str] | None = None,
    first: Callable[[Tensor, Numbers], Entries] | None = None,
    domains: Mapping[str, Domain] | None = None,
    maximize: bool = False,
    entrywise: bool = False,
    join_from: int = 2,
    plain: bool = False,
) -> Optimizer[StateT]:
    """The optimizer that applies ``rule`` to each tensor. 16-bit weights are computed in float32.

    Args:
        rule: ``rule(w, g, s, h, t) -> (w, s)``, pure: weights, gradient, state and hparams by name, number of this
            update.
        kind: class of the state, a NamedTuple: the trees of ``keeps``, ``step`` if updates are counted.
        hparams: the defaults by name, from :func:`~hyperopt_ftp.optimizers.to_tensors`.
        keeps: names of the rule's state, in working precision; ``None``: all fields of ``kind`` but ``step``. Fields
            that are left out are ``()``.
        first: ``first(w, h)``: first values by name, where they are not zeros in the shape of w. A tensor that lacks an
            entry has an empty one.
        domains: of the hparams; ``None``: those in ``DOMAINS``.
        maximize: negate the gradient first.
        entrywise: the rule does to each entry what it does to it alone, whatever the shape: no norm, no matrix product.
            Then small tensors are joined, and the rule gets them as one vector, which takes less time.
        join_from: so many small tensors are joined, but fewer are not: of a short rule joining them costs more.
        plain: the rule also takes Python numbers in ``h`` and ``t``, whose arithmetic costs less than that of 0-d
            tensors. Hparams that are differentiated, transformed or traced stay tensors, and so does a ``t`` that is
            traced, in float64. All rules of the package are plain. Yours may be where it calls no methods of numbers.

    Raises:
        TypeError: no function, no class of a NamedTuple, hparams that are no dict.
        ValueError: ``keeps`` that are no fields of it.

    >>> import torch
    >>> from typing import Any, NamedTuple
    >>> from hyperopt_ftp.optimizers import by_rule, to_tensors
    >>> class Count(NamedTuple):
    ...     step: Any
    >>> opt = by_rule(lambda w, g, s, h, t: (w - h["lr"] * g / t, {}), Count, to_tensors(lr=0.5), entrywise=True)
    >>> opt.update(torch.ones(1), opt.init(torch.ones(1)), torch.ones(1))
    (tensor([0.5000]), Count(step=tensor(1)))
    """
    check_flag("maximize", maximize)
    if not callable(rule) or not isinstance(kind, type) or not hasattr(kind, "_fields"):
        raise TypeError(
            "by_rule takes a function, the class of its state (class State(NamedTuple): step: Any; mean: Any) and "
            f"hparams (to_tensors(lr=0.1)), got {shown(rule)}, {shown(kind)}"
        )
    if not isinstance(hparams, dict):
        raise TypeError(f"hparams must be the defaults by name, as of to_tensors(lr=0.1), got {shown(hparams)}")
    fields: tuple[str, ...] = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
    keeps = [name for name in fields if name != "step"] if keeps is None else keeps
    if isinstance(keeps, str) or not set(keeps) <= set(fields):
        raise ValueError(f"keeps must be a list of fields of {kind.__name__}, {list(fields)}, got {shown(keeps)}")
    domains = domains_of(hparams) if domains is None else domains
    counts = {name: len(domains[name].parts) if name in domains else 0 for name in hparams}
    counted, names, absent = "step" in fields, frozenset(keeps), dict.fromkeys(fields, ())
    paired = any(counts.values())

    def flat(h: dict[str, Any]) -> list[Any]:
        h = complete(h, default)  # in this order, also of a strategy that gives them anew
        for name, value in h.items():
            if counts[name]:
                check_parts(name, value, domains[name])
        return [x for name, value in h.items() for x in (value if counts[name] else [value])]

    def by_name(numbers: Sequence[Any]) -> Numbers:
        if not paired:  # as most have it
            return dict(zip(counts, numbers, strict=False))
        rest = iter(numbers)
        return {name: tuple(next(rest) for _ in range(n)) if n else next(rest) for name, n in counts.items()}

    def filled(trees: Mapping[str, Any], step: Any) -> StateT:
        return kind(**{**absent, **trees, **({"step": step} if counted else {})})

    def read(numbers: Sequence[Any]) -> tuple[Numbers, Any]:
        """Hparams by name, and the number of the update."""
        numbers = as_numbers(numbers) if plain else numbers
        t = numbers[-1] if counted else None
        if plain and isinstance(t, Tensor):
            t = t.double()  # a Python number to the power of an int64 tensor is a float32
        return by_name(numbers), t

    def init(params: Any, hparams: Any = None) -> StateT:
        check_params(params)
        leaves, rebuild, numbers = *tree.flatten(params), flat(hparams)
        columns = [for_each(x, rebuild) for x in numbers] if first else []

        def beginning(i: int, w: Tensor) -> Entries:
            own = first(w, by_name([column[i] for column in columns])) if first else {}
            return {name: own[name].to(w.dtype) if name in own else torch.zeros_like(w) for name in keeps}

        rows = [beginning(i, tree.working(w)) for i, w in enumerate(leaves)]
        return filled({name: rebuild([row[name] for row in rows]) for name in keeps}, no_steps())

    def update(grads: Any, state: StateT, params: Any, hparams: Any = None) -> tuple[Any, StateT]:
        check_state(kind, state)
        step = advanced(state.step, grads, params) if counted else None  # pyright: ignore[reportAttributeAccessIssue]
        numbers = [*flat(hparams), *([step] if counted else [])]
        shared = read(numbers) if all(map(is_scalar, numbers)) else None

        def of_one(w: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            s = dict(zip(keeps, rest, strict=False))
            h, t = shared or read(rest[len(keeps) :])
            moved = rule(w, -g if maximize else g, s, h, t)
            w, s = moved if _is_move(moved, names) else _refused(moved, keeps)
            return (w, *[s[name] for name in keeps])

        moments = [getattr(state, name) for name in keeps]
        own = () if shared else numbers
        params, *moments = leafwise(of_one, params, grads, moments, own, whole=not entrywise, join_from=join_from)
        return params, filled(dict(zip(keeps, moments, strict=True)), step)

    default = hparams
    if first is None and entrywise and not torch.compiler.is_compiling():
        _RULES[update] = EntryRule(
            rule, init, kind, tuple(keeps), counted, maximize, plain, join_from, flat, by_name, filled,
            str(rule.__module__).startswith(_PACKAGE),
        )  # fmt: skip
    return Optimizer(init, update, default, domains=domains, maximize=maximize)


def _is_move(moved: Any, names: frozenset[str]) -> bool:
    return isinstance(moved, tuple) and len(moved) == 2 and isinstance(moved[1], dict) and moved[1].keys() == names


def _refused(moved: Any, keeps: Sequence[str]) -> NoReturn:
    def form(x: Any) -> str:
        return f"a dict of {sorted(map(str, x))}" if isinstance(x, dict) else type(x).__name__

    got = f"({', '.join(map(form, moved))})" if isinstance(moved, tuple) else form(moved)
    raise TypeError(f"rule must return (w, s), s a dict of {sorted(keeps)} (the fields of the state), got {got}")
