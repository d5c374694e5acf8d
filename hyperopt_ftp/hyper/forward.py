"""Exact forward mode: the derivative of params and state is carried along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..calls import check_compile, check_count
from ..dtensors import is_dtensor, layout, like, replicated, whole
from ..types import Compile, Params, State
from .compiled import CompiledSteps, check_compilable
from .leaves import Row, chosen, cotangents_of, floats, fresh, is_float, known, refill
from .rng import Recorder, RngState, refuse_other_losses
from .second_order import compiled_steps, twice_differentiable
from .steps import Steps, check_constant, pull
from .strangers import refuse_once
from .strategy import Start, Trained


class _Run(NamedTuple):
    start: Start
    recorder: Recorder
    rng: RngState
    losses: Tensor
    tangents: list[Tensor] | None  # of the floats of (params, state) at the end, where all were carried at once


@dataclass(frozen=True)
class Forward:
    """Forward mode through all steps: memory does not depend on their number.

    With ``z = (params, state)`` and one tangent for each scalar x that a derivative is asked for::

        dg/dx   = d/dp ( <dL/dp, dp/dx> + <dL/dh, dh/dx> + <dL/db, db/dx> )       L: the training loss, b: the batch
        dz/dx  <- d update(g, z, h) . (dg/dx, dz/dx, dh/dx)

    Both are taken in reverse mode (the second as the transpose of a transpose), so every operation with a second
    derivative will do. A tangent costs about as much as the training itself and one copy of params and state: the
    choice for a handful of hyperparameters and many steps. Under a ``torch.func`` transform the steps themselves are
    differentiated.

    Args:
        chunk: how many tangents live at once. ``None``: all, by ``vmap``. 1: one after the other, without ``vmap``, for
            losses that it cannot take. With more tangents than that the training is run again for each chunk.
        compile: run each step, its tangents included, as one program; as in :class:`Unroll`, without effect where the
            steps themselves are differentiated.

    Raises:
        ValueError: a chunk below 1; as :class:`Unroll` with ``compile``.
        RuntimeError: as :class:`Unroll`.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> _, grads, _ = hft.hypergradient(
    ...     hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr", strategy=hft.Forward()
    ... )
    >>> round(grads["lr"].item(), 6)
    -3.93216
    """

    chunk: int | None = None
    compile: Compile = False

    exact = True

    def __post_init__(self) -> None:
        check_compile(self.compile)
        check_count("chunk", self.chunk, "tangents", none=True)

    def run(self, steps: Steps, start: Start) -> tuple[Trained, Any]:
        steps.refuse_shards("Forward")
        recorder = Recorder()
        rng, count = recorder.now(), _count(steps, start)
        if self.chunk is None or count <= self.chunk:
            trained, tangents = self.carry(steps, start, 0, count)
        else:
            trained, tangents = steps.loop(start), None
        return trained, _Run(start, recorder, rng, trained.losses, tangents)

    def pullback(self, steps: Steps, residual: Any, cotangents: Trained) -> Start:
        run: _Run = residual
        given = [*known(cotangents.params), *known(cotangents.state)]
        if run.tangents is not None:
            slopes = _contract(given, run.tangents)
        else:
            count, size = _count(steps, run.start), self.chunk or 1
            parts = []
            for a in range(0, count, size):
                b = min(a + size, count)
                trained, tangents = run.recorder.again(run.rng, lambda a=a, b=b: self.carry(steps, run.start, a, b))
                refuse_other_losses(run.losses, trained.losses)
                parts.append(_contract(given, tangents))
            slopes = torch.cat(parts)
        return _by_input(steps, run.start, slopes)

    def carry(self, steps: Steps, start: Start, a: int, b: int) -> tuple[Trained, list[Tensor]]:
        """Train, with the tangents of the wanted scalars a to b."""
        if self.compile:
            return _carry_compiled(steps, start, a, b, self.compile)
        with twice_differentiable():
            return _carry(steps, start, a, b)


def _carry(steps: Steps, start: Start, a: int, b: int) -> tuple[Trained, list[Tensor]]:
    """Train, with the tangents of the wanted scalars a to b: each tensor's have a first dimension that counts them."""
    rows = b - a
    units = _Units(a, b)
    knobs, hparams = fresh(start.hparams, steps.wanted.hparams)
    d_knobs = units.of(start.hparams, steps.wanted.hparams)
    d_params = units.of_all(start.params, steps.wanted.params)
    d_state = units.of_all(start.state, steps.wanted.state)
    params, state = fresh((start.params, start.state), False)[1]
    losses = []
    for k in range(len(start.batches)):
        batch, wanted = start.batches[k], steps.wanted_batch(k)
        d_batch = units.of(batch, wanted)
        curved = any(v is not None for v in (*d_params, *d_batch, *d_knobs))
        found = steps.gradient(params, batch, hparams, wanted, graph=curved)
        if curved:
            refuse_once(found.loss)
        losses.append(found.loss.detach())
        others = [*knobs, *found.batch]
        d_grads: Row = [None] * len(found.grads)
        if curved:
            more: Row = [None] * len(others)
            if found.loss.requires_grad and others:
                more = pull([found.loss], [torch.ones_like(found.loss)], others, graph=True)
            outputs = [x for x in (*found.grads, *more) if x is not None]
            along = (*d_params, *d_knobs, *d_batch)
            tangents = [t for x, t in zip((*found.grads, *more), along, strict=True) if x is not None]
            d_grads = _pull_rows(outputs, tangents, found.params, rows)
        params, state, d_params, d_state = _update(
            steps, found.grads, params, state, hparams, knobs, (d_grads, d_params, d_state, d_knobs), rows
        )
    ends = _filled(floats(params), d_params, rows) + _filled(floats(state), d_state, rows)
    return Trained(params, state, torch.stack(losses)), ends


def _carry_compiled(steps: Steps, start: Start, a: int, b: int, compile: Compile) -> tuple[Trained, list[Tensor]]:
    """:func:`_carry` by compiled steps: all tangents are there from the start, most of them zero."""
    check_compilable(start.params, steps.train_loss)
    compiled = CompiledSteps(steps.optimizer, steps.train_loss, compile)
    rows, units, losses = b - a, _Units(a, b), []
    params, state, hparams = fresh((start.params, start.state, start.hparams), False)[1]
    d_knobs = _filled(chosen(hparams, steps.wanted.hparams), units.of(hparams, steps.wanted.hparams), rows)
    tangents = _filled(floats(params), units.of_all(params, steps.wanted.params), rows)
    tangents += _filled(floats(state), units.of_all(state, steps.wanted.state), rows)
    split = len(floats(params))
    with compiled_steps():
        for k in range(len(start.batches)):
            batch, wanted = start.batches[k], steps.wanted_batch(k)
            check_constant(batch, wanted)
            batch = fresh(batch, False)[1]
            d_batch = _filled(chosen(batch, wanted), units.of(batch, wanted), rows)
            params, state, loss, tangents = compiled.along(
                params, state, batch, hparams, (steps.wanted.hparams, wanted),
                (tangents[:split], tangents[split:], d_knobs, d_batch),
                lambda p=params, s=state, batch=batch, wanted=wanted: steps.look(p, s, batch, hparams, wanted),
            )  # fmt: skip
            losses.append(loss)
    return Trained(params, state, torch.stack(losses)), tangents


def _update(
    steps: Steps, grads: list[Tensor], params: Params, state: State, hparams: dict[str, Any], knobs: list[Tensor],
    tangents: tuple[Row, Row, Row, Row], rows: int,
) -> tuple[Params, State, Row, Row]:  # fmt: skip
    """The update and its derivative along the tangents of gradients, params, state and knobs."""
    g, at_grads = fresh(refill(params, grads), wide=True)
    p, at = fresh(params, wide=True)
    s, before = fresh(state, wide=True)
    with torch.enable_grad():
        new_p, new_s = steps.update(at_grads, before, at, hparams)
        outputs = [*floats(new_p), *floats(new_s)]
        dual = [torch.zeros_like(y).requires_grad_() for y in outputs]
        back = pull(outputs, dual, [*g, *p, *s, *knobs], graph=True)
    pairs = [(w, t) for w, t in zip(back, (x for row in tangents for x in row), strict=True) if w is not None]
    moved = _pull_rows([w for w, _ in pairs], [t for _, t in pairs], dual, rows)
    if any(tree.working(x).dtype != x.dtype for x in floats(params)):  # the values are those of the 16-bit step
        with torch.no_grad():
            new_p, new_s = steps.update(refill(params, grads), state, params, hparams)
    new_p, new_s = fresh((new_p, new_s), False)[1]
    return new_p, new_s, moved[: len(p)], moved[len(p) :]


def _filled(values: list[Tensor], tangents: Row, rows: int) -> list[Tensor]:
    """Tangents of tensors, zeros among them."""
    pairs = zip(map(tree.working, values), tangents, strict=True)
    return [_zeros(x, rows) if t is None else t for x, t in pairs]


def _zeros(x: Tensor, rows: int) -> Tensor:
    return torch.stack([torch.zeros_like(x)] * rows) if is_dtensor(x) else x.new_zeros((rows, *x.shape))


def _pull_rows(outputs: list[Tensor], rows_in: Row, inputs: list[Tensor], rows: int) -> Row:
    if rows > 1 and not any(map(is_dtensor, inputs)):  # for which there is no vmap
        return pull(outputs, rows_in, inputs, rows=True)
    found = [
        pull(outputs, [None if v is None else v[i] for v in rows_in], inputs, again=i < rows - 1) for i in range(rows)
    ]
    columns = zip(inputs, *found, strict=True)
    return [None if column[0] is None else torch.stack([like(x, w) for x in column]) for w, *column in columns]


class _Units:
    """Unit vectors of the wanted scalars a to b, part by part in the order of the start."""

    def __init__(self, a: int, b: int) -> None:
        self._from, self._to, self._at = a, b, 0

    def of(self, values: Any, wanted: Any) -> Row:
        """For the tensors that are wanted."""
        return [self._of(x) for x in chosen(values, wanted)]

    def of_all(self, values: Any, wanted: Any) -> Row:
        """For all floating-point tensors: those that are not wanted have no tangent."""
        mask = [w for x, w in zip(tree.leaves(values), tree.leaves(wanted), strict=True) if is_float(x)]
        return [self._of(x) if is_wanted else None for x, is_wanted in zip(floats(values), mask, strict=True)]

    def _of(self, x: Tensor) -> Tensor | None:
        begin, self._at = self._at, self._at + x.numel()
        low, high = max(begin, self._from), min(self._at, self._to)
        if low >= high:
            return None
        unit = torch.zeros((self._to - self._from, x.numel()), dtype=tree.working(x).dtype, device=x.device)
        places = torch.arange(low, high, device=x.device)
        unit[places - self._from, places - begin] = 1
        unit = unit.reshape(-1, *x.shape)
        at = layout(x)
        return unit if at is None else replicated(unit, at.mesh)


def _parts(steps: Steps, start: Start) -> list[tuple[Any, Any]]:
    """Values and what is wanted of them, in the order of the scalars."""
    wanted = steps.wanted
    parts = [(start.hparams, wanted.hparams), (start.params, wanted.params), (start.state, wanted.state)]
    return parts + ([(start.batches, wanted.batches)] if isinstance(wanted.batches, (list, tuple)) else [])


def _count(steps: Steps, start: Start) -> int:
    return sum(x.numel() for values, wanted in _parts(steps, start) for x in chosen(values, wanted))


def _contract(cotangents: list[Tensor], tangents: list[Tensor]) -> Tensor:
    """``<cotangents, tangent>`` for each tangent."""
    pairs = [(v, t) for v, t in zip(cotangents, tangents, strict=True) if v.numel()]
    if not pairs:
        return torch.zeros(len(tangents[0]) if tangents else 0)
    place = tangents[0].device
    return torch.stack([_along(v.to(t), t).to(place) for v, t in pairs]).sum(0)


def _along(cotangent: Tensor, tangents: Tensor) -> Tensor:
    if is_dtensor(tangents):  # shards of different sizes cannot be flattened
        return torch.stack([whole((cotangent * t).sum()) for t in tangents.unbind()])
    return tangents.reshape(len(tangents), -1) @ cotangent.reshape(-1)


def _by_input(steps: Steps, start: Start, slopes: Tensor) -> Start:
    """One number for each wanted scalar, as cotangents of the start."""
    at, found = 0, []
    for values, wanted in _parts(steps, start):
        new = []
        for x in chosen(values, wanted):
            new.append(slopes[at : at + x.numel()].reshape(x.shape))
            at += x.numel()
        found.append(cotangents_of(values, new, wanted))
    return Start(*found)
