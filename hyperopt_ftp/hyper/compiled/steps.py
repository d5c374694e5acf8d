"""K steps of training, run and differentiated by programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ... import tree
from ...calls import warn_caller
from ...dtensors import is_dtensor
from ...types import Compile, Params
from ..core.inputs import TrainInputs, TrainOutputs
from ..core.leaves import OptionalTensors, added, detached, detached_leaves, floats, present, select_floats
from ..core.problem import InnerProblem
from ..core.replay import Replay, refuse_other_losses
from ..core.second_order import compiled_steps
from ..core.torch_private import has_saved_tensor_hooks, is_batched
from .programs import codes_of, kind, program
from .scan import stacked, why_not
from .traced import Point, backward, tangent, training

#: Of batches, in one run: each has programs of its own.
SHAPES = 3


class Segment(NamedTuple):
    """Consecutive steps with batches of one shape, which one program has run."""

    steps: range
    end: Point
    losses: Tensor
    points: Point  # where each step began, stacked; or where the first one began
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
        self._kept: list[Segment] = []

    def forward(self) -> TrainOutputs:
        count, point = len(self._batches), detached((self.inputs.params, self.inputs.state))
        losses, size = [], self._every if self._every > 1 else count
        head = max(8, math.isqrt(self._first))  # of which nothing is kept; one step alone has programs of its own
        with _compiling():
            for steps, batches in chain(self._parts(0, self._first, head), self._parts(self._first, count, size)):
                segment = self._run(steps, batches, point)
                losses.append(segment.losses)
                if steps[0] >= self._first:
                    self._kept.append(segment if self._every == 1 else segment._replace(points=point))
                point = segment.end
        return TrainOutputs(*point, losses=torch.cat(losses))

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
            for segment in reversed(self._kept):
                steps, batches = segment.steps, _stacked([self._batches[k] for k in segment.steps])
                if self._every > 1:
                    again = self._run(steps, batches, segment.points, segment.seeds)
                    refuse_other_losses(segment.losses, again.losses, steps=steps)
                    segment = again
                point, pairs = stacked(segment.points), zip(map(tree.working, floats(segment.end)), bars, strict=True)
                given = [torch.zeros_like(x) if v is None else v.to(x.dtype) for x, v in pairs]
                given = [v.detach().contiguous() for v in given]  # no two one tensor: torch would recompile
                found, _ = self._call(backward, steps, batches, point, self._asked(steps), given, seeds=segment.seeds)
                bars, more, losses, rows = found
                # Each program adds up in an order of its own.
                refuse_other_losses(segment.losses, losses, power=0.5, steps=steps)
                sums = added(sums, more)
                of_batches |= {k: [x[i] for x in rows] for i, k in enumerate(steps)}
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
        point, losses = detached((self.inputs.params, self.inputs.state)), []
        d_point, d_hparams = [*tangents[0], *tangents[1]], tangents[2]
        with _compiling():
            for steps, batches in self._parts(0, len(self._batches), len(self._batches)):
                d_batches = [torch.stack(row) for row in zip(*map(of_batch, steps), strict=True)]
                given = d_point, d_hparams, stacked(d_batches)
                (point, some, d_point), _ = self._call(tangent, steps, batches, point, self._asked(steps), given)
                losses.append(some)
        return TrainOutputs(*point, losses=torch.cat(losses)), d_point

    def _run(self, steps: range, batches: Any, point: Point, seeds: Tensor | None = None) -> Segment:
        found, seeds = self._call(training, steps, batches, point, seeds=seeds)
        return Segment(steps, *found, seeds=seeds)

    def _call(
        self, function: Any, steps: range, batches: Any, point: Point, *more: Any, seeds: Tensor | None = None
    ) -> tuple[Any, Tensor | None]:
        given = self._functions, point, stacked(batches), self._hparams, *more
        look = None if function is backward else partial(self._as_written, steps[0], *point)
        what = program(function, self._compile, len(steps) == 1, *self._code)
        # Where the run has met other shapes, it is no surprise that a program is compiled for each.
        return what.run(given, len(steps), seeds, look, planned=len(self._shapes) > 1)

    def _parts(self, first: int, last: int, size: int) -> Iterator[tuple[range, Any]]:
        """Steps that one program runs, and their batches, stacked."""
        parts = max(1, math.ceil((last - first) / size))
        for a, b in pairwise(first + (last - first) * i // parts for i in range(parts + 1)):
            batches = [self._batches[k] for k in range(a, b)]
            for _, group in groupby(zip(range(a, b), batches, strict=True), lambda row: self._shape(row[1])):
                steps, some = zip(*group, strict=True)
                yield range(steps[0], steps[-1] + 1), _stacked(some)

    def _shape(self, batch: Any) -> int:
        for i, (like, kinds) in enumerate(self._shapes):
            leaves = tree.fitted(batch, like)
            if leaves is not None and [*map(kind, leaves)] == kinds:
                return i
        leaves, rebuild = tree.flatten(batch)
        self._shapes.append((rebuild, [*map(kind, leaves)]))
        if len(self._shapes) > SHAPES:
            raise ValueError(
                f"compile=True makes programs for each shape of a batch, and more than {SHAPES} are met: "
                f"{', '.join(str(kinds) for _, kinds in self._shapes)}. Pad the batches, give numbers as tensors, or "
                "leave compile out"
            )
        return len(self._shapes) - 1

    def _asked(self, steps: range) -> tuple[Any, Any]:
        """What a derivative is asked for, in hparams and in any of the steps' batches."""
        of_batches = map(self._problem.batch_needs_grad, steps)
        return self._problem.needs_grad.hparams, tree.map_tree(lambda *flags: any(flags), *of_batches)

    def _as_written(self, k: int, params: Any, state: Any) -> None:
        """Runs a step uncompiled and drops the result: its errors are those of the program."""
        problem = self._problem
        knobs = detached_leaves(self._hparams, problem.needs_grad.hparams)[1]
        batch = detached_leaves(self._batches[k], problem.batch_needs_grad(k))[1]
        *new, _ = Replay().again(lambda: problem.step(params, state, batch, knobs))
        for (name, x), y in zip(tree.named((params, state)), tree.leaves(new), strict=True):
            if kind(x) != kind(y):
                raise RuntimeError(
                    f"compile=True: a step makes {kind(y)} of {kind(x)}, at {name!r} of (params, state); a loop that "
                    "is compiled keeps shapes, dtypes and numbers: keep what changes as a tensor, or leave compile out"
                )


def compiled_loop(problem: InnerProblem, inputs: TrainInputs, compile: Compile) -> TrainOutputs:
    return CompiledSteps(problem, inputs, compile, first=len(inputs.batches)).forward()


def compilable(compile: Compile, problem: InnerProblem, params: Params) -> Compile:
    """``compile``, or an error where steps may not be compiled; ``False``, with a warning, where they cannot be."""
    leaves = tree.tensors(params)
    if any(map(is_dtensor, leaves)):
        raise RuntimeError("params are DTensors, whose steps cannot be compiled: leave out compile")
    why = why_not(compile, leaves[0].device) if leaves else None
    if why is not None:
        warn_caller(f"compile=True has no effect: {why}")
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


def _stacked(batches: Sequence[Any]) -> Any:
    """Batches of one shape, stacked along a new first dimension."""
    return tree.map_tree(lambda *xs: _rows(xs) if isinstance(xs[0], Tensor) else xs[0], *batches)


def _rows(xs: Sequence[Tensor]) -> Tensor:
    """``torch.stack``, without a copy if the tensors are contiguous in memory, or all the same."""
    first = xs[0]
    places = [(x.untyped_storage().data_ptr(), x.storage_offset(), x.is_contiguous()) for x in xs]
    for step in (0, first.numel()):
        if places == [(places[0][0], places[0][1] + i * step, True) for i in range(len(xs))]:
            return first.as_strided((len(xs), *first.shape), (step, *first.stride()))
    return torch.stack(tuple(xs))
