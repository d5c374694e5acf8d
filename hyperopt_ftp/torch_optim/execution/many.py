"""The second execution of a rule: on many tensors at once, in place, in pieces that fit into the cache.

Big tensors are bound by memory, small ones by Python. So a rule processes flat pieces of tensors in few passes, with
temporaries that are reused. Inner products go to the function of its pure definition, on vectors with an entry for each
tensor.
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

#: Elements in a bucket on the CPU: a core's cache holds several temporaries of this size.
CPU_BUCKET = 2**18

Tensors = list[Tensor]
Vectors = dict[str, Tensor]  # float64, on the CPU


class Bucket:
    """Flat pieces of tensors, each list a column.

    Attributes:
        owners: the position of each piece's tensor.
        state: the rule's entries of full size by name, and the anchors (``"w0"``), to be read.
        new: memory for results: ``"w"``, where the moved weights lie, and what :attr:`Phase.makes` names.
    """

    def __init__(self, owners: list[int], pieces: dict[str, Tensors], new: dict[str, Tensors], run: _Run) -> None:
        self.owners: list[int] = owners
        self.state: dict[str, Tensors] = pieces
        self.new: dict[str, Tensors] = new
        self._run: _Run = run

    @property
    def w(self) -> Tensors:
        """Weights before the base's step, after it a copy (:attr:`Many.keeps`), in working precision."""
        return self._wide("w")

    @property
    def g(self) -> Tensors:
        """Raw gradients, in working precision."""
        g = self._wide("g")
        return list(torch._foreach_neg(g)) if self._run.maximize else g

    @property
    def moved(self) -> Tensors:
        """Weights after the base's step, in working precision."""
        return self._wide("moved")

    def scratch(self, key: int) -> Tensors:
        """Memory for a column in working precision; that of a key is one."""
        return self._run.scratch(key, [x.numel() for x in self.new["w"]])

    def deviations(self, weights: Tensors, out: Tensors | None = None) -> Tensors:
        """``weights`` less their anchors; in the scratch memory 0, or in ``out``."""
        out = self.scratch(0) if out is None else out
        for w, w0, d in zip(weights, self.state["w0"], out, strict=True):
            if w0.numel():
                torch.sub(w, w0, out=d)
            else:
                d.copy_(w)
        return out

    def each(self, values: Sequence[float]) -> list[float]:
        """The value of each piece's tensor."""
        return [values[i] for i in self.owners]

    def _wide(self, name: str) -> Tensors:
        return [x.to(self._run.real) for x in self.state[name]]


class Phase(NamedTuple):
    """What a rule does before or after the base's step: first inner products, then numbers, then tensors.

    Attributes:
        apply: ``apply(bucket, numbers)`` writes ``bucket.new``.
        sums: ``sums(bucket) -> {name: products}``, 0-d and one for each piece; those of a tensor are added up.
        numbers: ``numbers(sums, state, h) -> {name: values}`` of all sums so far, the state's scalars and counts, and
            the hparams: new state under the names of the rule's specs, else Python numbers for ``apply``.
        makes: ``"g"`` for gradients that the base gets, names of specs for new state of full size. ``sums`` may begin
            to write them.
    """

    apply: Callable[[Bucket, dict[str, list[float]]], None] | None = None
    sums: Callable[[Bucket], dict[str, Tensors]] | None = None
    numbers: Callable[[Vectors, Vectors, Numbers], Vectors] | None = None
    makes: tuple[str, ...] = ()


class Many(NamedTuple):
    """A rule's execution on many tensors, for the options of a group."""

    before: Phase = Phase()
    after: Phase = Phase()
    keeps: bool = False  # whether ``after`` looks at the weights of before


class Known(NamedTuple):
    """What is known once the base is to step; none of it is in the state yet."""

    w: Tensors
    sums: Vectors
    new: dict[str, Any]  # state: a vector, or tensors of full size


def add(a: Tensors, factors: Sequence[float], b: Tensors, out: Tensors) -> Tensors:
    """``a + factor * b`` of each piece, in the memory of ``out``."""
    for x, factor, y, z in zip(a, factors, b, out, strict=True):
        torch.add(x, y, alpha=factor, out=z)
    return out


def dots(a: Tensors, b: Tensors) -> Tensors:
    """The inner product of each piece with that beside it."""
    return [torch.dot(x, y) for x, y in zip(a, b, strict=True)]


def can_step(params: Sequence[Tensor]) -> bool:
    """Whether parameters can be taken in flat pieces: their memory has neither gaps nor overlaps, and no graph is
    captured."""
    return not torch.compiler.is_compiling() and all(is_plain(p) and _is_dense(p) for p in params)


def before(columns: Columns, many: Many, rule: Rule, h: Numbers, amp: Amp) -> tuple[Tensors, Known]:
    """Gradients for the base, none where the rule leaves them as they are, and what is known for :func:`after_`."""
    given = {"w": columns.weights, "w0": columns.anchors, "g": columns.grads}
    sums, new = _execute(many.before, rule, h, columns, given, amp, {})
    kept = [w.clone() for w in columns.weights] if many.keeps else []
    return new.pop("g", []), Known(kept, sums, new)


def after_(columns: Columns, many: Many, rule: Rule, h: Numbers, amp: Amp, known: Known) -> None:
    """New weights, once a base has moved them, and the state."""
    given = {"moved": columns.weights, "w0": columns.anchors, **({"w": known.w} if many.keeps else {})}
    _, new = _execute(many.after, rule, h, columns, given, amp, known.sums)
    if not rule.specs:
        torch._foreach_add_(columns.state[-1], 1.0)  # a count alone says that it is initialized
    state = _by_name(columns, rule)
    for name, values in {**known.new, **new}.items():
        if isinstance(values, Tensor):
            torch._foreach_copy_(state[name], list(values.to(state[name][0].device).unbind()))
        else:  # the new memory in place of the old is a copy less
            for old, value in zip(state[name], values, strict=True):
                old.data = value


def _execute(
    phase: Phase, rule: Rule, h: Numbers, columns: Columns, given: dict[str, Tensors], amp: Amp, sums: Vectors
) -> tuple[Vectors, dict[str, Any]]:
    """Returns the sums so far, and what is new: gradients and state."""
    if phase == Phase():
        return sums, {}
    count, state = len(columns.weights), _by_name(columns, rule)
    full = {spec.name: state[spec.name] for spec in rule.specs if spec.kind == "weights"}
    new: dict[str, Any] = {
        name: list(map(torch.empty_like, columns.grads if name == "g" else full[name])) for name in phase.makes
    }
    numbers: dict[str, list[float]] = {}
    run = _Run({**given, **full}, dict(new), amp.maximize)
    if phase.sums is not None:
        sums = {**sums, **_summed(phase.sums, run.buckets(), count)}
    if phase.numbers is not None:
        small = {name: _vector(column) for name, column in state.items() if name not in full}
        found = phase.numbers(sums, small, {name: x.detach().cpu() for name, x in h.items()})
        new |= {name: values.expand(count) for name, values in found.items() if name in state}
        numbers = {name: values.expand(count).tolist() for name, values in found.items() if name not in state}
    if phase.apply is not None:
        for bucket in run.buckets():
            phase.apply(bucket, numbers)
    if amp.maximize and "g" in new:
        torch._foreach_neg_(new["g"])
    return sums, new


def _by_name(columns: Columns, rule: Rule) -> dict[str, Tensors]:
    return {spec.name: column for spec, column in zip(rule.specs, columns.state, strict=False)}


def _vector(values: Tensors) -> Tensor:
    return torch.stack(values).to("cpu", torch.float64)


def _summed(products: Callable[[Bucket], dict[str, Tensors]], buckets: Iterator[Bucket], count: int) -> Vectors:
    owners: list[int] = []
    found: dict[str, Tensors] = {}
    for bucket in buckets:
        owners += bucket.owners
        for name, values in products(bucket).items():
            found.setdefault(name, []).extend(values)
    where, zeros = torch.tensor(owners), torch.zeros(count, dtype=torch.float64)
    return {name: zeros.index_add(0, where, _vector(values)) for name, values in found.items()}


class _Run:
    """Columns of whole tensors, the weights first, cut into flat pieces, and the memory of temporaries."""

    def __init__(self, given: dict[str, Tensors], new: dict[str, Tensors], maximize: bool) -> None:
        weights = next(iter(given.values()))
        self.real: torch.dtype = working(weights[0]).dtype
        self.maximize: bool = maximize
        total = sum(w.numel() for w in weights)
        self._size: int = min(total, CPU_BUCKET) if weights[0].device.type == "cpu" else total
        self._given: list[str] = list(given)
        self._new: list[str] = list(new)
        self._rows: list[list[Sequence[Tensor]]] = []
        for row in zip(*given.values(), *new.values(), strict=True):
            w, size = row[0], self._size
            flat = row if w.ndim == 1 and all(map(_is_contiguous, row)) else [_flat(x, w) for x in row]
            pieces = -(-w.numel() // size) if size else 1
            self._rows.append([(x,) for x in flat] if pieces <= 1 else [_cut(x, pieces, size) for x in flat])
        self._scratch: dict[int, Tensor] = {}
        self._like: Tensor = weights[0]

    def buckets(self) -> Iterator[Bucket]:
        """All pieces in order. A tensor without entries is one."""
        owners: list[int] = []
        rows: list[tuple[Tensor, ...]] = []
        filled = 0
        for i, row in enumerate(self._rows):
            for piece in zip(*row, strict=True):
                entries = piece[0].numel()
                if rows and filled + entries > self._size:
                    yield self._bucket(owners, rows)
                    owners, rows, filled = [], [], 0
                owners.append(i)
                rows.append(piece)
                filled += entries
        yield self._bucket(owners, rows)

    def _bucket(self, owners: list[int], rows: list[tuple[Tensor, ...]]) -> Bucket:
        columns = list(map(list, zip(*rows, strict=True)))
        given = dict(zip(self._given, columns, strict=False))
        new = dict(zip(self._new, columns[len(given) :], strict=True))
        return Bucket(owners, given, {"w": columns[0], **new}, self)

    def scratch(self, key: int, sizes: list[int]) -> Tensors:
        if key not in self._scratch:
            self._scratch[key] = torch.empty(self._size, dtype=self.real, device=self._like.device)
        return list(self._scratch[key][: sum(sizes)].split(sizes))


def _cut(x: Tensor, pieces: int, size: int) -> Sequence[Tensor]:
    return x.split(size) if x.numel() else [x] * pieces


def _flat(x: Tensor, w: Tensor) -> Tensor:
    """All entries in the order in which those of ``w`` lie in memory; ABSENT as it is."""
    if x.numel() != w.numel():
        return x
    if x.is_contiguous() and w.is_contiguous():
        return x.view(-1)
    if x.stride() != w.stride():
        raise RuntimeError(f"weights of strides {w.stride()} have a gradient or state of strides {x.stride()}")
    return x.as_strided((x.numel(),), (1,))


def _is_contiguous(x: Tensor) -> bool:
    return x.is_contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.permute(sorted(range(x.ndim), key=lambda d: -x.stride(d))).is_contiguous()
