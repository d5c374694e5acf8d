"""K steps of training as one program, and their derivatives as others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ... import tree
from ...calls import callers_level
from ...dtensors import is_dtensor
from ...types import Compile, Params, State
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import OptionalTensors, added, combine, detached, detached_leaves, floats, present, select_floats
from ..core.problem import InnerProblem, loss_at, without_loss
from ..core.replay import Replay, refuse_other_losses
from ..core.second_order import compiled_steps
from ..core.torch_private import has_saved_tensor_hooks, is_batched
from .programs import codes_of, program
from .scan import entry, loop, stacked, why_not

#: Of batches, in one run: each has programs of its own.
SHAPES = 3


class Stretch(NamedTuple):
    """Consecutive steps with batches of one shape, run by one program."""

    steps: range
    planned: bool  # whether the run has met other shapes: that a program is compiled for each is no surprise
    batches: Any  # stacked; None: to be read again


class Ran(NamedTuple):
    """A stretch that was run."""

    params: Params
    state: State
    losses: Tensor
    points: tuple[Params, State]  # where each step began, stacked
    seeds: Tensor | None  # of its random numbers, where there are some


class CompiledSteps:
    """K steps, the backward pass through them, and the steps with tangents: each a program for any number of steps.

    Programs are cached in the process, by the code of loss and update. Other shapes, dtypes or values that the loss
    closes over recompile.

    Args:
        problem, inputs: of the training.
        compile: as in :class:`~hyperopt_ftp.Unroll`.
        first: the first step that is differentiated.
        every: keep the points (params and state at the start) of every n-th step, from which a program recomputes the
            others; 1: keep all.
    """

    def __init__(
        self, problem: InnerProblem, inputs: TrainInputs, compile: Compile, first: int = 0, every: int = 1
    ) -> None:
        self.inputs: TrainInputs = inputs
        self._problem, self._compile, self._first, self._every = problem, compile, first, every
        self._batches, self._hparams = inputs.batches, detached(inputs.hparams)
        self._functions = problem.unguarded.train_loss, problem.optimizer.update
        self._code = (*codes_of(self._functions[0]), *codes_of(self._functions[1], constants=True))
        self._shapes: list[Any] = []  # of batches, that were met
        self._kept: list[tuple[Stretch, Ran]] = []

    def forward(self) -> TrainOutputs:
        begin, count = self.inputs, len(self.inputs.batches)
        params, state = detached((begin.params, begin.state))
        losses, size = [], self._every if self._every > 1 else count
        head = max(8, math.isqrt(self._first))  # of which nothing is kept; one step alone has programs of its own
        with _compiling():
            for stretch in chain(self._stretches(0, self._first, head), self._stretches(self._first, count, size)):
                ran = self._run(stretch, params, state)
                losses.append(ran.losses)
                if stretch.steps[0] >= self._first:
                    kept = ran if self._every == 1 else ran._replace(points=(params, state))
                    self._kept.append((stretch._replace(batches=None), kept))
                params, state = ran.params, ran.state
        return TrainOutputs(params, state, torch.cat(losses))

    def back(
        self, cotangents: TrainOutputs
    ) -> tuple[OptionalTensors, OptionalTensors, OptionalTensors, dict[int, OptionalTensors]]:
        """Cotangents of params, state and hparams where training began, and of the batches, by step.

        Raises:
            RuntimeError: a step is another one than it was.
        """
        count = len(present(cotangents.params))
        bars: OptionalTensors = [*present(cotangents.params), *present(cotangents.state)]
        sums: OptionalTensors = [None] * len(select_floats(self._hparams, self._problem.needs_grad.hparams))
        of_batches: dict[int, OptionalTensors] = {}
        with _compiling(bars):
            for stretch, ran in reversed(self._kept):
                if self._every > 1:
                    again = self._run(stretch, *ran.points, ran.seeds)
                    refuse_other_losses(ran.losses, again.losses, steps=stretch.steps)
                    ran = again
                bars, more, found = self._back(stretch, ran, bars)
                sums = added(sums, more)
                of_batches |= found
        return bars[:count], bars[count:], sums, of_batches

    def along(
        self, tangents: list[list[Tensor]], of_batch: Callable[[int], list[Tensor]]
    ) -> tuple[TrainOutputs, list[Tensor]]:
        """Where training ends, and the tangents of the floats of params and state there.

        Args:
            tangents: of the floats of params and state, and of the hparams that need a gradient; the first dimension
                counts them.
            of_batch: those of what needs a gradient of a step's batch.
        """
        params, state = detached((self.inputs.params, self.inputs.state))
        (d_params, d_state, d_hparams), losses = tangents, []
        with _compiling():
            for stretch in self._stretches(0, len(self.inputs.batches), len(self.inputs.batches)):
                d_batches = [torch.stack(row) for row in zip(*map(of_batch, stretch.steps), strict=True)]
                rows = [d_params, d_state, d_hparams]
                asked, look = self._asked(stretch), partial(self._as_written, stretch, params, state)
                found, _ = self._call(_run_along, stretch, (params, state), look, asked, rows, stacked(d_batches))
                (params, state), some, d_params, d_state = found
                losses.append(some)
        return TrainOutputs(params, state, torch.cat(losses)), [*d_params, *d_state]

    def _run(self, stretch: Stretch, params: Params, state: State, seeds: Tensor | None = None) -> Ran:
        look = partial(self._as_written, stretch, params, state)
        found, seeds = self._call(_run, stretch, (params, state), look, seeds=seeds)
        (params, state), losses, points = found
        return Ran(params, state, losses, points, seeds)

    def _back(
        self, stretch: Stretch, ran: Ran, cotangents: OptionalTensors
    ) -> tuple[OptionalTensors, OptionalTensors, dict[int, OptionalTensors]]:
        """Cotangents before a stretch, of the floats of params and state; of the hparams; of the batches, by step."""
        after = [tree.working(x) for x in (*floats(ran.params), *floats(ran.state))]
        given = [torch.zeros_like(x) if v is None else v.to(x.dtype) for x, v in zip(after, cotangents, strict=True)]
        given, asked = [v.contiguous() for v in given], self._asked(stretch)
        found, _ = self._call(_run_back, stretch, stacked(ran.points), None, asked, given, seeds=ran.seeds)
        bars, sums, losses, batches = found
        # Each program adds up in an order of its own.
        refuse_other_losses(ran.losses, losses.flip(0), power=0.5, steps=stretch.steps)
        return bars, sums, {k: [x[i] for x in batches] for i, k in enumerate(reversed(stretch.steps))}

    def _call(
        self, function: Any, stretch: Stretch, point: tuple[Params, State], look: Any, *more: Any,
        seeds: Tensor | None = None,
    ) -> tuple[Any, Tensor | None]:  # fmt: skip
        batches = stretch.batches
        if batches is None:
            batches = _stacked([self._batches[k] for k in stretch.steps])
        given = _apart(*self._functions, *point, stacked(batches), self._hparams, *more)
        steps = stretch.steps[::-1] if function is _run_back else stretch.steps
        what = program(function, self._compile, len(steps) == 1, *self._code)
        return what.run(given, steps, seeds, look=look, planned=stretch.planned)

    def _stretches(self, first: int, last: int, size: int) -> Iterator[Stretch]:
        parts = max(1, math.ceil((last - first) / size))
        for a, b in pairwise(first + (last - first) * i // parts for i in range(parts + 1)):
            batches = [self._batches[k] for k in range(a, b)]
            for _, group in groupby(zip(range(a, b), batches, strict=True), lambda row: self._shape(row[1])):
                steps, some = zip(*group, strict=True)
                yield Stretch(range(steps[0], steps[-1] + 1), len(self._shapes) > 1, _stacked(some))

    def _shape(self, batch: Any) -> int:
        for i, (like, kinds) in enumerate(self._shapes):
            leaves = tree.fitted(batch, like)
            if leaves is not None and [_kind(x) for x in leaves] == kinds:
                return i
        leaves, rebuild = tree.flatten(batch)
        self._shapes.append((rebuild, [_kind(x) for x in leaves]))
        if len(self._shapes) > SHAPES:
            raise ValueError(
                f"compile=True makes programs for each shape of a batch, and more than {SHAPES} are met: "
                f"{', '.join(str(kinds) for _, kinds in self._shapes)}. Pad the batches, give numbers as tensors, or "
                "leave compile out"
            )
        return len(self._shapes) - 1

    def _asked(self, stretch: Stretch) -> tuple[Any, Any]:
        """What a derivative is asked for, in hparams and in any of a stretch's batches."""
        asked = self._problem.needs_grad
        if not self._problem.asks_batches:
            return asked.hparams, tree.map_tree(lambda _: False, self._problem.batch_needs_grad(stretch.steps[0]))
        of_batches = [self._problem.batch_needs_grad(k) for k in stretch.steps]
        return asked.hparams, tree.map_tree(lambda *flags: any(flags), *of_batches)

    def _as_written(self, stretch: Stretch, params: Params, state: State) -> None:
        """Runs a stretch's first step uncompiled and drops the result: its errors are those of the program."""
        problem, k, replay = self._problem, stretch.steps[0], Replay()
        knobs = detached_leaves(self._hparams, problem.needs_grad.hparams)[1]
        batch = detached_leaves(self._batches[k], problem.batch_needs_grad(k))[1]
        found = replay.run(replay.now(), lambda: problem.gradient(params, batch, knobs, graph=True))
        grads = found.rebuild([g.detach() for g in found.grads])
        with torch.no_grad():
            new = replay.run(replay.now(), lambda: problem.update(grads, state, params, knobs))
        for (name, x), y in zip(tree.named((params, state)), tree.leaves(new), strict=True):
            if _kind(x) != _kind(y):
                raise RuntimeError(
                    f"compile=True: a step makes {_kind(y)} of {_kind(x)}, at {name!r} of (params, state); a loop that "
                    "is compiled keeps shapes, dtypes and numbers: keep what changes as a tensor, or leave compile out"
                )


def compiled_loop(problem: InnerProblem, inputs: TrainInputs, compile: Compile) -> TrainOutputs:
    return CompiledSteps(problem, inputs, compile, first=len(inputs.batches)).forward()


def compilable(compile: Compile, problem: InnerProblem, params: Params) -> Compile:
    """``compile``, or an error where steps may not be compiled; ``False``, with a warning, where they cannot be."""
    leaves = [x for x in tree.leaves(params) if isinstance(x, Tensor)]
    if any(map(is_dtensor, leaves)):
        raise RuntimeError("params are DTensors, whose steps cannot be compiled: leave out compile")
    why = why_not(compile, leaves[0].device) if leaves else None
    if why is not None:
        warnings.warn(f"compile=True has no effect: {why}", UserWarning, stacklevel=callers_level())
        return False
    if not problem.alone:
        raise ValueError(
            "compile=True cannot take a data-parallel loss: a program has no collectives that can be differentiated "
            "twice; leave it out"
        )
    if any(x.dtype == torch.float16 for x in leaves):
        raise ValueError("compile=True does not scale adjoints, and those of float16 params would vanish; leave it out")
    if any(torch.is_autocast_enabled(kind) for kind in {x.device.type for x in leaves}):
        raise RuntimeError("compile=True does not run under autocast; cast inside the training loss, or leave it out")
    return compile


@contextmanager
def _compiling(cotangents: Sequence[Tensor | None] = ()) -> Iterator[None]:
    """A context for running programs; a clear error where torch.compile would fail with an unrelated one."""
    where = None
    if _get_current_dispatch_mode_stack():
        where = "inside a dispatch mode, such as the loss of another train that is being looked at"
    elif has_saved_tensor_hooks():
        where = "under hooks on saved tensors, such as those of torch.utils.checkpoint"
    elif any(v is not None and is_batched(v) for v in cotangents):
        where = "for cotangents that torch has batched, as jacobian(vectorize=True) does"
    if where:
        raise RuntimeError(f"compile=True: a compiled step cannot run {where}; leave compile out there")
    with compiled_steps():
        yield


def _kind(x: Any) -> Any:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else x


def _stacked(batches: Sequence[Any]) -> Any:
    """Batches of one shape, stacked along a new first dimension."""
    rebuild = tree.flatten(batches[0])[1]
    leaves = map(rebuild.aligned, batches)
    return rebuild([_rows(xs) if isinstance(xs[0], Tensor) else xs[0] for xs in zip(*leaves, strict=True)])


def _rows(xs: Sequence[Tensor]) -> Tensor:
    """``torch.stack``, without a copy if the tensors are contiguous in memory, or all the same."""
    first = xs[0]
    places = [(x.untyped_storage().data_ptr(), x.storage_offset(), x.is_contiguous()) for x in xs]
    for step in (0, first.numel()):
        if places == [(places[0][0], places[0][1] + i * step, True) for i in range(len(xs))]:
            return first.as_strided((len(xs), *first.shape), (step, *first.stride()))
    return torch.stack(tuple(xs))


def _apart(*parts: Any) -> Any:
    """The same trees without shared tensors: torch recompiles when other inputs are shared."""
    rows, rebuild = tree.flatten(parts)
    seen: set[int] = set()
    for i, x in enumerate(rows):
        if isinstance(x, Tensor):
            rows[i] = x.detach() if id(x) in seen else x
            seen.add(id(x))
    return rebuild(rows)


# The functions that are compiled. Rows are the numbers of the steps and their seeds.


def _run(
    train_loss: Any, update: Any, params: Params, state: State, batches: Any, hparams: dict[str, Any], rows: Any
) -> Any:
    """Where the loop ends, the losses, and where each step began."""
    leaves, rebuild = tree.flatten((params, state))

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        params, state = rebuild(_put(leaves, carry))
        grads, loss = torch.func.grad_and_value(loss_at, argnums=1)(train_loss, params, entry(batches, k), hparams)
        return _tensors(update(grads, state, params, without_loss(hparams))), [loss, *carry]

    end, (losses, *points) = loop(body, _tensors(leaves), rows)
    return rebuild(_put(leaves, end)), losses, rebuild(_put(leaves, points))


def _run_back(
    train_loss: Any, update: Any, params: Params, state: State, batches: Any, hparams: dict[str, Any],
    needs_grad: tuple[Any, Any], cotangents: list[Tensor], rows: Any,
) -> Any:  # fmt: skip
    """Cotangents where the loop began, of the hparams, the losses, and cotangents of each batch."""
    count = len(cotangents)

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        at_params, at_state, batch = entry((params, state, batches), k)
        step, point = _step_of_floats(train_loss, update, at_params, at_state, batch, hparams, needs_grad)
        _, back, (loss, _) = torch.func.vjp(step, *point, has_aux=True)  # pyright: ignore[reportAssignmentType]
        bar_p, bar_s, bar_h, bar_b = back(carry[:count])
        return [*bar_p, *bar_s, *map(torch.add, carry[count:], bar_h)], [loss, *bar_b]

    zeros = [torch.zeros_like(x) for x in select_floats(hparams, needs_grad[0])]
    end, (losses, *of_batches) = loop(body, [*cotangents, *zeros], rows)
    return end[:count], end[count:], losses, of_batches


def _run_along(
    train_loss: Any, update: Any, params: Params, state: State, batches: Any, hparams: dict[str, Any],
    needs_grad: tuple[Any, Any], tangents: list[list[Tensor]], d_batches: list[Tensor], rows: Any,
) -> Any:  # fmt: skip
    """Where the loop ends, the losses, and tangents of the floats of params and of state there."""
    leaves, rebuild = tree.flatten((params, state))
    (d_params, d_state, d_knobs), count = tangents, len(_tensors(leaves))
    split = count + len(d_params)

    def body(carry: list[Tensor], k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        (params, state), batch = rebuild(_put(leaves, carry[:count])), entry(batches, k)
        step, point = _step_of_floats(train_loss, update, params, state, batch, hparams, needs_grad)

        def one(*along: list[Tensor]) -> Any:
            _, moved, seen = torch.func.jvp(step, point, along, has_aux=True)  # pyright: ignore[reportAssignmentType]
            return moved, seen

        given = carry[count:split], carry[split:], d_knobs, entry(d_batches, k)
        if len(d_params[0]) == 1:  # without vmap, which not every operation knows
            moved, (loss, grads) = one(*[[x.squeeze(0) for x in row] for row in given])
            moved = [x.unsqueeze(0) for x in moved]
        else:
            alone: Any = (0, None)  # torch's types do not know None inside
            moved, (loss, grads) = torch.func.vmap(one, out_dims=alone, randomness="same")(*given)
        new = update(grads, state, params, without_loss(hparams))
        return [*_tensors(new), *moved], [loss]

    end, (losses,) = loop(body, [*_tensors(leaves), *d_params, *d_state], rows)
    return rebuild(_put(leaves, end[:count])), losses, end[count:split], end[split:]


def _step_of_floats(
    train_loss: Any, update: Any, params: Params, state: State, batch: Any, hparams: dict[str, Any],
    needs_grad: tuple[Any, Any],
) -> tuple[Any, tuple[list[Tensor], ...]]:  # fmt: skip
    """A step as a function of the floats of params and state, and of what needs a gradient of hparams and batch.

    It gives the floats of params and state, the loss and the gradient, and the point of the step. 16-bit params and
    state go in and out in 32 bits.
    """

    def step(p: list[Tensor], s: list[Tensor], h: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], Any]:
        at, knobs = combine(params, p), combine(hparams, h, needs_grad[0])
        stored = tree.map_tree(lambda x, y: x.to(y.dtype), at, params)
        grads, loss = torch.func.grad_and_value(loss_at, argnums=1)(
            train_loss, stored, combine(batch, b, needs_grad[1]), knobs
        )
        new = update(tree.map_tree(tree.working, grads), combine(state, s), at, without_loss(knobs))
        return floats(new), (loss, grads)

    wide = [[tree.working(x) for x in floats(part)] for part in (params, state)]
    return step, (*wide, select_floats(hparams, needs_grad[0]), select_floats(batch, needs_grad[1]))


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree.leaves(values) if isinstance(x, Tensor)]


def _put(leaves: list[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The leaves with other tensors in place of theirs."""
    rest = iter(tensors)
    return [next(rest) if isinstance(x, Tensor) else x for x in leaves]
