"""Programs of torch.compile, cached in the process; compilations and their reasons are reported."""

from __future__ import annotations

import functools
import logging
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import callers_level, shown
from ...types import Compile
from . import scan

#: The functions, in words.
_WHAT = {"_run": "training program", "_run_back": "backward program", "_run_along": "tangent program"}

Look = Callable[[], Any]  # makes a step as it is written, and raises where its loss does what it may not


@functools.lru_cache(maxsize=64)
def program(function: Callable[..., Any], backend: Compile, single: bool, *code: Any) -> Program:
    """The cached program of a function, for arguments made of the same code.

    ``single``: for one step, since torch takes a size of 1 for a constant.
    """
    return Program(function, backend)


class Program:
    """A function of (train_loss, update, params, state, batches, hparams, ..., rows), compiled at its first run.

    Args:
        function: reads nothing but its arguments, which torch checks in each call.
        backend: ``True`` for inductor, or the name of one of torch.compile's backends.
    """

    def __init__(self, function: Callable[..., Any], backend: Compile) -> None:
        self._function, self._backend = function, backend
        self._what: str = _WHAT[function.__name__]
        self._lock = threading.RLock()
        self._given: tuple[Any, ...] = ()  # in this call
        self._began: float | None = None  # when something was compiled in this call
        self._begin()

    def _begin(self) -> None:
        # A code object of its own: torch counts recompilations, and looks for what fits, by code object.
        code = self._function.__code__.replace()
        own = types.FunctionType(code, self._function.__globals__, self._function.__name__)
        self._compiled, self._draws = scan.compiled(own, self._backend, self._compiles)
        self._was: dict[str, str] = {}  # what it was compiled for before the last time
        self._is: dict[str, str] = {}  # and for the last time

    def run(
        self, given: tuple[Any, ...], steps: range, seeds: Tensor | None = None, look: Look | None = None,
        planned: bool = False,
    ) -> tuple[Any, Tensor | None]:  # fmt: skip
        """The function's value, and the seeds of its random numbers, if it has some.

        Args:
            given: the function's arguments except the last, which is made here: rows of the loop.
            steps: of the loop; downwards, from the last to the first.
            seeds: of an earlier run. ``None``: drawn if needed.
            look: called before the first compilation and after each.
            planned: a recompilation is expected, so nothing is said.
        """
        with self._lock:
            first = not self._is
            if look and first:
                look()
            self._given, self._began = given, None
            place = next(x.device for x in tree.leaves(given[2]) if isinstance(x, Tensor))
            may_draw = look is not None and seeds is None  # the way back takes what its run has drawn
            try:
                if may_draw and any(self._draws):
                    seeds = _seeds(len(steps))
                found = self._value(given, steps, seeds, place)
                if may_draw and seeds is None and any(self._draws):  # as has come out when it was compiled
                    seeds = _seeds(len(steps))
                    found = self._value(given, steps, seeds, place)
            except _failures() as error:
                text = " ".join(str(error).rpartition("Got graph break/error:")[2].strip().split("\n\n")[:2])
                raise RuntimeError(
                    f"the {self._what} cannot be compiled: {text}\nWrite the training loss in operations of torch "
                    "without branches on values and without random numbers of one's own (compile='eager' tells whether "
                    "it is that, or a compiler that is missing), or leave out compile=True"
                ) from error
            finally:
                self._given = ()
            if self._began is not None:
                text = "compiled the %s in %.0f s"
                logging.getLogger("hyperopt_ftp").info(text, self._what, time.monotonic() - self._began)
                if not first:
                    self._look_again(look)
                    if not planned:
                        warnings.warn(self._changed(), UserWarning, stacklevel=callers_level())
            return found, seeds

    def _value(self, given: tuple[Any, ...], steps: range, seeds: Tensor | None, place: torch.device) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit

        rows = scan.rows(steps, seeds, place)
        try:
            return self._compiled(*given, rows)
        except FailOnRecompileLimitHit:  # so many programs are kept of one code object, and no more
            was = self._is
            self._begin()
            self._is = was
            return self._compiled(*given, rows)

    def _look_again(self, look: Look | None) -> None:
        try:
            if look:
                look()
        except BaseException:
            self._begin()  # else what is refused would run the next time, without a look
            raise

    def _compiles(self) -> None:
        """Is called where torch.compile compiles."""
        if self._began is None:  # torch may begin anew in one compilation
            self._began = time.monotonic()
            self._was, self._is = self._is, dict(_described(self._given[2:]))
            if not self._was:  # what is compiled anew has a warning
                logging.getLogger("hyperopt_ftp").info(
                    "compiling the %s: ten seconds to two minutes on a CPU, far longer for deep convolutional "
                    "networks; once for this optimizer, loss and shapes, whatever the number of steps",
                    self._what,
                )

    def _changed(self) -> str:
        changes = [
            f"{name} is {self._is[name]} and was {self._was.get(name, 'absent')}"
            for name in self._is
            if self._is[name] != self._was.get(name)
        ]
        changes += [f"{name} is absent" for name in self._was if name not in self._is]
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        what = "; ".join(changes[:3]) + more
        return (
            f"the {self._what} was compiled again: "
            + (what or "something that the training loss or the optimizer closes over is another")
            + ". TORCH_LOGS=recompiles says more"
        )


def _seeds(count: int) -> Tensor:
    return torch.randint(2**62, (count,))


def _failures() -> tuple[type[BaseException], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def codes_of(value: Any, constants: bool = False) -> tuple[Any, ...]:
    """The code of functions and of the functions that they close over.

    ``constants``: also the numbers and strings that they close over, which choose between branches.
    """
    return tuple(_codes(value, set(), constants))


def _codes(value: Any, seen: set[int], constants: bool) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple):
        for part in value:
            yield from _codes(part, seen, constants)
    elif isinstance(value, functools.partial):
        yield from _codes((value.func, *value.args), seen, constants)
    elif isinstance(value, types.MethodType):
        yield from _codes(value.__func__, seen, constants)
    elif isinstance(value, types.FunctionType):
        yield value.__code__
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # empty
                yield from _codes(cell.cell_contents, seen, constants)
    elif callable(value):
        yield type(value)
    elif constants and isinstance(value, (bool, int, float, str)):
        yield value


def _described(parts: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """What a program depends on, by name, in words."""
    for name, part in zip(("params", "state", "batches", "hparams", "what is asked for", "rows"), parts, strict=False):
        for path, x in tree.named(part):
            yield f"{name}.{path}" if path else name, _kind(x) if isinstance(x, Tensor) else shown(x)


def _kind(x: Tensor) -> str:
    shape = "of shape " + str(tuple(x.shape))
    if hasattr(x, "_dynamo_dynamic_indices"):
        shape = f"{'the same' if x.stride(0) == 0 else 'one'} for each step, of shape {tuple(x.shape[1:])}"
    return f"{str(x.dtype).removeprefix('torch.')} {shape} on {x.device}"
