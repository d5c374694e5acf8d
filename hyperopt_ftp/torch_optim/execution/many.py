"""The second execution of a rule: in place, on pieces of tensors that fit into the cache.

A rule takes a piece in few passes, with temporaries that are reused. Inner products go to the function of its pure
definition, on vectors with an entry for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...anchored.rule import Numbers, Rule
from ...kernels.layers import Amp
from ...tree import working
from .store import Columns, is_plain

#: Elements in a piece on the CPU: a core's cache holds several temporaries of this size.
PIECE = 2**18

Tensors = list[Tensor]
Vectors = dict[str, Tensor]  # float64, on the CPU


class Piece(NamedTuple):
    """A flat piece of a tensor and of what belongs to it.

    Attributes:
        old: to be read: the rule's entries of full size by name, the anchor ``"w0"``, the raw gradient ``"g"`` before
            the base's step, ``"moved"`` weights after it, and ``"w"``, those before it (after it if
            :attr:`Many.keeps`).
        new: memory for results: ``"w"``, where the moved weights lie, and what :attr:`Phase.makes` names.
        memory: two tensors in working precision.
    """

    old: dict[str, Tensor]
    new: dict[str, Tensor]
    memory: list[Tensor]

    def read(self, name: str) -> Tensor:
        """In working precision."""
        return working(self.old[name])

    def scratch(self, key: int) -> Tensor:
        """Memory in working precision, 0 or 1: each is one."""
        return self.memory[key][: self.new["w"].numel()]

    def deviation(self, weights: str, out: Tensor | None = None) -> Tensor:
        """The weights of this name less their anchor; in the scratch memory 0, or in ``out``."""
        w, w0, out = self.read(weights), self.old["w0"], self.scratch(0) if out is None else out
        return torch.sub(w, w0, out=out) if w0.numel() else out.copy_(w)


class Phase(NamedTuple):
    """What a rule does before or after the base's step: first inner products, then numbers, then tensors.

    Attributes:
        apply: ``apply(piece, numbers)`` writes ``piece.new``.
        sums: ``sums(piece) -> {name: product}``, 0-d; those of a tensor are added up.
        numbers: ``numbers(sums, state, h) -> {name: values}`` of all sums so far, the state's scalars and counts, and
            the hparams: new state under the names of the rule's specs, else Python numbers for ``apply``.
        makes: ``"g"`` for gradients that the base gets, names of specs for new state of full size. ``sums`` may begin
            to write them.
    """

    apply: Callable[[Piece, dict[str, float]], None] | None = None
    sums: Callable[[Piece], dict[str, Tensor]] | None = None
    numbers: Callable[[Vectors, Vectors, Numbers], Vectors] | None = None
    makes: tuple[str, ...] = ()


class Many(NamedTuple):
    """A rule's execution on many tensors, for the options of a group."""

    before: Phase = Phase()
    after: Phase = Phase()
    keeps: bool = False  # whether ``after`` looks at the weights of before


#: What is known once the base is to step: old weights, sums, and new state, which is not written yet.
Known = tuple[Tensors, Vectors, dict[str, Any]]


def can_step(params: Sequence[Tensor]) -> bool:
    """Whether parameters can be taken in flat pieces: their memory has neither gaps nor overlaps, and no graph is
    captured."""
    return not torch.compiler.is_compiling() and all(is_plain(p) and _is_dense(p) for p in params)


def before(columns: Columns, many: Many, rule: Rule, h: Numbers, amp: Amp) -> tuple[Tensors, Known]:
    """Gradients for the base, none where the rule leaves them as they are, and what is known for :func:`after_`."""
    grads = list(torch._foreach_neg(columns.grads)) if amp.maximize else columns.grads
    given = {"w": columns.weights, "w0": columns.anchors, "g": grads}
    sums, new = _execute(many.before, rule, h, columns, given, {})
    kept = [w.clone() for w in columns.weights] if many.keeps else []
    made = new.pop("g", [])
    if amp.maximize and made:
        torch._foreach_neg_(made)
    return made, (kept, sums, new)


def after_(columns: Columns, many: Many, rule: Rule, h: Numbers, known: Known) -> None:
    """New weights, once a base has moved them, and the state."""
    kept, sums, before = known
    given = {"moved": columns.weights, "w0": columns.anchors, **({"w": kept} if many.keeps else {})}
    _, new = _execute(many.after, rule, h, columns, given, sums)
    if not rule.specs:
        torch._foreach_add_(columns.state[-1], 1.0)  # a count alone says that it is initialized
    state = _by_name(columns, rule)
    for name, values in {**before, **new}.items():
        if isinstance(values, Tensor):
            torch._foreach_copy_(state[name], list(values.to(state[name][0].device).unbind()))
        else:  # the new memory in place of the old is a copy less
            for old, value in zip(state[name], values, strict=True):
                old.data = value


def _execute(
    phase: Phase, rule: Rule, h: Numbers, columns: Columns, given: dict[str, Tensors], sums: Vectors
) -> tuple[Vectors, dict[str, Any]]:
    """Returns the sums so far, and what is new: gradients and state."""
    if phase == Phase():
        return sums, {}
    count, state = len(columns.weights), _by_name(columns, rule)
    full = {spec.name: state[spec.name] for spec in rule.specs if spec.kind == "weights"}
    new: dict[str, Any] = {
        name: list(map(torch.empty_like, columns.grads if name == "g" else full[name])) for name in phase.makes
    }
    numbers: list[dict[str, float]] = [{} for _ in range(count)]
    pieces = list(_pieces({**given, **full}, dict(new)))
    if phase.sums is not None:
        sums = {**sums, **_summed(phase.sums, pieces, count)}
    if phase.numbers is not None:
        small = {name: _vector(column) for name, column in state.items() if name not in full}
        found = phase.numbers(sums, small, {name: x.detach().cpu() for name, x in h.items()})
        new |= {name: values.expand(count) for name, values in found.items() if name in state}
        for name in found.keys() - state.keys():
            for mine, value in zip(numbers, found[name].expand(count).tolist(), strict=True):
                mine[name] = value
    if phase.apply is not None:
        for i, piece in pieces:
            phase.apply(piece, numbers[i])
    return sums, new


def _by_name(columns: Columns, rule: Rule) -> dict[str, Tensors]:
    return {spec.name: column for spec, column in zip(rule.specs, columns.state, strict=False)}


def _vector(values: Tensors) -> Tensor:
    return torch.stack(values).to("cpu", torch.float64)


def _summed(products: Callable[[Piece], dict[str, Tensor]], pieces: list[tuple[int, Piece]], count: int) -> Vectors:
    found: dict[str, Tensors] = {}
    for _, piece in pieces:
        for name, value in products(piece).items():
            found.setdefault(name, []).append(value)
    where, zeros = (
        torch.tensor([i for i, _ in pieces], device="cpu"),
        torch.zeros(count, dtype=torch.float64, device="cpu"),
    )
    return {name: zeros.index_add(0, where, _vector(values)) for name, values in found.items()}


def _pieces(given: dict[str, Tensors], new: dict[str, Tensors]) -> Iterator[tuple[int, Piece]]:
    """Whole tensors, the weights first, cut into flat pieces, each with the position of its tensor. A tensor without
    entries is one."""
    weights = next(iter(given.values()))
    size = max(w.numel() for w in weights)
    size = max(1, min(size, PIECE) if weights[0].device.type == "cpu" else size)
    memory = [torch.empty(size, dtype=working(weights[0]).dtype, device=weights[0].device) for _ in range(2)]
    for i, row in enumerate(zip(*given.values(), *new.values(), strict=True)):
        count = max(1, -(-row[0].numel() // size))
        cut = [x.split(size) if x.numel() else [x] * count for x in (_flat(x, row[0]) for x in row)]
        for piece in zip(*cut, strict=True):
            old = dict(zip(given, piece, strict=False))
            yield i, Piece(old, {"w": piece[0], **dict(zip(new, piece[len(given) :], strict=True))}, memory)


def _flat(x: Tensor, w: Tensor) -> Tensor:
    """All entries in the order in which those of ``w`` lie in memory; ABSENT as it is."""
    if x.numel() != w.numel():
        return x
    if x.is_contiguous() and w.is_contiguous():
        return x.view(-1)
    if x.stride() != w.stride():
        raise RuntimeError(f"weights of strides {w.stride()} have a gradient or state of strides {x.stride()}")
    return x.as_strided((x.numel(),), (1,))


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.permute(sorted(range(x.ndim), key=lambda d: -x.stride(d))).is_contiguous()
