"""Programs of torch.compile, cached in the process; compilations are reported."""

from __future__ import annotations

import functools
import logging
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import warn_caller
from ...types import Compile
from . import scan


class Program:
    """A function of (functions, point, batches, hparams, ..., rows), compiled at its first run.

    Args:
        function: reads nothing but its arguments, which torch checks in each call.
        backend: ``True`` for inductor, or the name of one of torch.compile's backends.
        kept_for: what another program is made for: one step, since torch takes a size of 1 for a constant, and the
            code that the arguments are made of.
    """

    def __init__(self, function: Callable[..., Any], backend: Compile, *kept_for: Any) -> None:
        self._function, self._backend = function, backend
        self._what: str = f"{function.__name__} program"
        self._lock = threading.RLock()
        self._made = False  # whether something was compiled, and not refused
        self._began: float | None = None  # when something was compiled in this call
        self._begin()

    def _begin(self) -> None:
        # A code object of its own: torch counts recompilations, and looks for what fits, by code object.
        function = types.FunctionType(self._function.__code__.replace(), self._function.__globals__)
        self._compiled, self._draws = scan.compiled(function, self._backend, self._compiles)

    def run(
        self, given: tuple[Any, ...], steps: int, seeds: Tensor | None = None, look: Callable[[], Any] | None = None,
        planned: bool = False,
    ) -> tuple[Any, Tensor | None]:  # fmt: skip
        """The function's value, and the seeds of its random numbers, if it has some.

        Args:
            given: the function's arguments except the last, which is made here: rows of the loop.
            steps: their number.
            seeds: of an earlier run. ``None``: drawn if needed, but not on the way back, which has no ``look``.
            look: makes a step as it is written, for its errors, before the first compilation and after each other.
            planned: a recompilation is expected, so nothing is said.
        """
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._inductor.exc import InductorError

        with self._lock:
            if look and not self._made:
                look()
            if look and seeds is None and any(self._draws):
                seeds = torch.randint(2**62, (steps,))
            self._began = None
            rows = scan.rows(steps, seeds, next(x.device for x in tree.tensors(given[1])))
            try:
                found = self._compiled(*given, rows)
            except FailOnRecompileLimitHit:  # so many programs are kept of one code object, and no more
                self._begin()
                return self.run(given, steps, seeds, look, planned)
            except (TorchDynamoException, InductorError) as error:
                text = " ".join(str(error).rpartition("Got graph break/error:")[2].strip().split("\n\n")[:2])
                raise RuntimeError(
                    f"the {self._what} cannot be compiled: {text}\nWrite the training loss in operations of torch "
                    "without branches on values and without random numbers of one's own (compile='eager' tells whether "
                    "it is that, or a compiler that is missing), or leave out compile=True"
                ) from error
            if self._began is not None:
                logging.getLogger("hyperopt_ftp").info(
                    "compiled the %s in %.0f s", self._what, time.monotonic() - self._began
                )
                self._note(look, planned)
            if look and seeds is None and any(self._draws):  # as has come out when it was compiled
                return self.run(given, steps, None, look, planned)
            return found, seeds

    def _note(self, look: Callable[[], Any] | None, planned: bool) -> None:
        """Look again where it was compiled a second time, and say so."""
        if not self._made:
            self._made = True
            return
        try:
            if look:
                look()
        except BaseException:
            self._made = False  # else what is refused would run the next time, without a look
            self._begin()
            raise
        if not planned:
            warn_caller(
                f"the {self._what} was compiled again, for other shapes, dtypes or values that the loss or the "
                "optimizer closes over; TORCH_LOGS=recompiles says which"
            )

    def _compiles(self) -> None:
        """Is called where torch.compile compiles."""
        if self._began is None:  # torch may begin anew in one compilation
            self._began = time.monotonic()
            if not self._made:  # what is compiled anew has a warning
                logging.getLogger("hyperopt_ftp").info(
                    "compiling the %s: ten seconds to two minutes on a CPU, far longer for deep convolutional "
                    "networks; once for this optimizer, loss and shapes, whatever the number of steps",
                    self._what,
                )


#: The cached one.
program: functools._lru_cache_wrapper[Program] = functools.lru_cache(maxsize=64)(Program)


def codes_of(value: Any, constants: bool = False) -> list[Any]:
    """The code of functions and of the functions that they close over.

    ``constants``: also the numbers and strings that they close over, which choose between branches.
    """
    found, stack, seen = list[Any](), [value], set[int]()
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, tuple):
            stack += x
        elif isinstance(x, functools.partial):
            stack += x.func, *x.args
        elif isinstance(x, types.MethodType):
            stack.append(x.__func__)
        elif isinstance(x, types.FunctionType):
            found.append(x.__code__)
            for cell in x.__closure__ or ():
                with suppress(ValueError):  # empty
                    stack.append(cell.cell_contents)
        elif callable(x):
            found.append(type(x))
        elif constants and isinstance(x, (bool, int, float, str)):
            found.append(x)
    return found


def kind(x: Any) -> Any:
    """Dtype, shape and device of a tensor, in words; anything else is its own kind."""
    if not isinstance(x, Tensor):
        return x
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)} on {x.device}"
