"""An optimizer held near an anchor by a rule for one tensor: what FTP, L2-SP, SPD and others share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..dtensors import in_layout_of
from ..hparams import Domain
from ..optimizers.leafwise import check_grads, check_params, check_state, no_steps
from ..optimizers.wrap import check_goes_on, check_no_table, wrapped
from ..types import Norm, Optimizer, Params
from .anchors import anchors, by_name, check_anchor, check_same_names, numbers
from .projections import rows

Numbers = dict[str, Any]  # the rule's hparams of one tensor, 0-d, and what it reads of the base's
RuleState = dict[str, Tensor]  # of one tensor, by the names of its specs


class Spec(NamedTuple):
    """One entry of a rule's state for a tensor.

    Kinds: ``"weights"`` has the tensor's shape, ``"rows"`` is ``(rows,)``, ``"scalar"`` is 0-d, all three in working
    precision; ``"count"`` is a 0-d number of steps.
    """

    name: str  # in checkpoints
    kind: Literal["weights", "rows", "scalar", "count"]
    fill: float = 0.0  # before the first step, at the anchor


class Rule(NamedTuple):
    """How one tensor is kept near its anchor: what happens before and after the base's step. All functions are pure.

    In all of them ``w`` are the weights before the step and ``w0`` is the anchor, both in working precision. ``g`` is
    the raw gradient, ``state`` the tensor's own state by the names of ``specs``, and ``h`` the hparams, 0-d tensors by
    name.

    Attributes:
        hparams: the rule's own hparams by name: one value for all tensors, or a dict by path.
        before: ``before(g, w, w0, state, h) -> (g, state)``: the gradient that the base gets.
        after: ``after(moved, w, w0, g, state, h) -> (W, state)``: the new weights, from those that the base has made.
        specs: the entries of the state, in the order in which kernels take them.
        norm: what a row is, ``"mars"`` or ``"l2"``.
        off: ``off(c) -> state``: entries that differ from their fill if training starts at W0 + c.
        master: ``master(stored, w0, state) -> w``: the master copy of 16-bit weights. ``None``: the stored weights.
        start, settle: ``start(w, w0, h) -> h`` and ``settle(h, state) -> h``, for one tensor, as in
            :class:`~hyperopt_ftp.Optimizer`.
        reads: hparams of the base that ``h`` has too.
        keeps: which of ``w`` and ``g`` ``after`` reads; they are copied if a base works in place.
        domains: of the rule's hparams; ``None``: those in :data:`~hyperopt_ftp.hparams.DOMAINS`.
    """

    hparams: dict[str, Any]
    before: Callable[[Tensor, Tensor, Tensor, RuleState, Numbers], tuple[Tensor, RuleState]] | None = None
    after: Callable[[Tensor, Tensor, Tensor, Tensor, RuleState, Numbers], tuple[Tensor, RuleState]] | None = None
    specs: tuple[Spec, ...] = ()
    norm: Norm = "mars"
    off: Callable[[Tensor], RuleState] | None = None
    master: Callable[[Tensor, Tensor, RuleState], Tensor] | None = None
    start: Callable[[Tensor, Tensor, Numbers], Numbers] | None = None
    settle: Callable[[Numbers, RuleState], Numbers] | None = None
    reads: tuple[str, ...] = ()
    keeps: tuple[Literal["w", "g"], ...] = ("w", "g")
    domains: Mapping[str, Domain] | None = None


class AnchoredState(NamedTuple):
    """State of an optimizer that is held by a :class:`Rule`."""

    base: Any
    rule: dict[str, RuleState]  # by path of the constrained tensors


class Layout(NamedTuple):
    """How the base's state and those of the tensors, by path, make up the public state.

    Attributes:
        kind: the class of the public state.
        pack: ``pack(base's, tensors', apart) -> state``. Tensors that step together may share a count; from the first
            gradient that was ``None`` on they are ``apart``.
        unpack: ``unpack(state) -> (base's, tensors')``.
        apart: whether they are apart, in a state.
    """

    kind: type
    pack: Callable[[Any, dict[str, RuleState], bool], Any]
    unpack: Callable[[Any], tuple[Any, dict[str, RuleState]]]
    apart: Callable[[Any], bool] = lambda state: False


BY_PATH = Layout(
    AnchoredState, lambda base, held, apart: AnchoredState(base, held), lambda state: (state.base, state.rule)
)


#: What there is in place of a rule that moves weights, around a base that does not go on from them.
_INSTEAD = (
    "take another base, or a rule on gradients (hft.directed, hft.l2sp with decoupled=False); of a partition, put the "
    "rule into the other parts; the drop-in classes, such as hft.FTP, hold what a schedule-free torch optimizer deploys"
)


def anchored(base: Optimizer, anchor: Params, rule: Rule, layout: Layout = BY_PATH) -> Optimizer:
    """``base`` kept near ``anchor`` by ``rule``. 16-bit weights are computed in float32.

    The rule's hparams are numbers for all constrained tensors, or dicts by path. An hparam of the base that the rule
    reads must not be scheduled inside: put :func:`scheduled` around the result.

    Args:
        base: any optimizer that has the hparams that the rule reads. If the rule has an ``after``, not a schedule-free
            one.
        anchor: as in :func:`ftp`.
        rule: what happens to the gradient, or to the moved weights, of each constrained tensor.
        layout: the form of the state; ``None``: :class:`AnchoredState`.

    Returns:
        An optimizer whose hparams are those of ``base`` and the rule's. A name that ``base`` has already gets a number.

    Raises:
        ValueError: an hparam by path whose paths are not the anchor's; a base without an hparam that the rule reads, or
            with a table of it; a schedule-free base, if the rule moves weights; one that maximizes, if the rule reads
            gradients; at ``init``, an anchor that does not fit.

    >>> import torch, hyperopt_ftp as hft
    >>> from hyperopt_ftp.anchored import Rule, anchored
    >>> def half_way(moved, w, w0, g, state, h):  # a rule of one's own
    ...     return moved - h["share"] * (moved - w0), state
    >>> rule = Rule({"share": torch.tensor(0.5)}, after=half_way, domains={})
    >>> opt = anchored(hft.sgd(lr=1.0), torch.zeros(2), rule)
    >>> w = torch.ones(2)
    >>> opt.update(torch.tensor([0.0, 1.0]), opt.init(w), w)[0], sorted(opt.hparams)[-1]
    (tensor([0.5000, 0.0000]), 'weight_decay')
    """
    fixed = anchors(anchor)
    for key, value in rule.hparams.items():
        if not isinstance(value, Tensor):
            check_same_names(key, tree.by_path(value).keys(), fixed)

    def numbers_of(owns: dict[str, Any], read: dict[str, Any]) -> dict[str, Numbers]:
        columns = {key: numbers(key, value, fixed) for key, value in owns.items()}
        columns |= {key: by_name(key, value, fixed) for key, value in read.items()}
        return {name: {key: column[name] for key, column in columns.items()} for name in fixed}

    def init(params: Any, bases: Any, owns: dict[str, Any]) -> Any:
        check_params(params)
        check_anchor(fixed, params)
        weights = {name: tree.working(w) for name, w in tree.pick(params, fixed).items()}
        held = {name: _first(rule, w, in_layout_of(fixed[name], w).to(w.dtype)) for name, w in weights.items()}
        return layout.pack(base.init(tree.put(params, weights), bases), held, False)

    def update(grads: Any, state: Any, params: Any, bases: Any, owns: dict[str, Any]) -> tuple[Any, Any]:
        check_state(layout.kind, state)
        check_grads(grads, params)
        given = tree.by_path(grads)
        inner, held = layout.unpack(state)
        held, stored = dict(held), tree.pick(params, fixed)
        h = numbers_of(owns, {key: bases[key] for key in rule.reads})
        before, w0, raw, seen = {}, {}, {}, {}
        for name in fixed:
            if name not in given:  # without a gradient the base leaves the weights alone, and so does the rule
                continue
            g, w = given[name], tree.working(stored[name])
            w0[name], raw[name] = in_layout_of(fixed[name], w).to(w.dtype), g.to(w.dtype)
            seen[name] = raw[name]
            before[name] = rule.master(stored[name], w0[name], held[name]) if rule.master else w
            if rule.before:
                g, held[name] = rule.before(raw[name], before[name], w0[name], held[name], h[name])
                seen[name] = g.to(w.dtype)
        moved, inner = base.update(tree.put(grads, seen), inner, tree.put(params, before), bases)
        new = tree.pick(moved, before)
        for name, w in new.items():
            if rule.after:
                w, held[name] = rule.after(w, before[name], w0[name], raw[name], held[name], h[name])
            new[name] = w.to(stored[name].dtype)
            # In the order of the first state: another one is another structure to a compiler.
            held[name] = {spec.name: held[name][spec.name] for spec in rule.specs}
        apart = layout.apart(state) or len(before) < len(fixed)
        return tree.put(moved, new), layout.pack(inner, held, apart)

    def start(params: Any, owns: dict[str, Any]) -> dict[str, Any]:
        h = numbers_of(owns, {})
        for name, w in tree.pick(params, fixed).items():
            assert rule.start is not None
            w = tree.working(w)
            h[name] = rule.start(w, in_layout_of(fixed[name], w).to(w.dtype), h[name])
        return _columns(h, owns)

    def settle(owns: dict[str, Any], new_state: Any) -> dict[str, Any]:
        h, (_, held) = numbers_of(owns, {}), layout.unpack(new_state)
        assert rule.settle is not None
        return _columns({name: rule.settle(h[name], held[name]) for name in fixed}, owns)

    starts, settles = start if rule.start else None, settle if rule.settle else None
    result = wrapped(
        base, rule.hparams, init, update, starts, settles, lambda state: layout.unpack(state)[0], rule.domains
    )
    if base.maximize and (rule.before or "g" in rule.keeps):
        raise ValueError(
            "the rule reads the gradient of a loss, and base has maximize=True, which goes up: take minus the loss "
            "instead (FTPAdamW, FTP and the other classes take maximize=True)"
        )
    missing = [key for key in rule.reads if key not in base.hparams]
    if missing:
        raise ValueError(
            f"the optimizer to be held has no {missing[0]}, its hparams are {sorted(base.hparams)}; put the rule "
            "around the optimizer that has it: inside hyper, or in each part of a partition"
        )
    for key in rule.reads:
        check_no_table(key, base.hparams[key])
    if rule.after:
        check_goes_on(base, "what holds these near the anchor", _INSTEAD)
    return result


def _first(rule: Rule, w: Tensor, w0: Tensor) -> RuleState:
    shapes = {"weights": w.shape, "rows": rows(w, rule.norm), "scalar": (), "count": ()}
    state = {}
    for name, kind, fill in rule.specs:
        zeros = torch.zeros_like(w) if kind == "weights" else w.new_zeros(shapes[kind])
        state[name] = no_steps() if kind == "count" else zeros + fill
    return {**state, **(rule.off(w - w0) if rule.off else {})}


def _columns(h: dict[str, Numbers], keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {key: {name: values[key] for name, values in h.items()} for key in keys}


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()
