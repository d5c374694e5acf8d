"""The protocol of strategies: how K steps of training are differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import tree
from ...calls import did_you_mean
from ...types import Compile
from .inputs import TrainInputs, TrainOutputs
from .problem import InnerProblem
from .replay import Replay, RngState


class Strategy(ABC):
    """How K steps of training are differentiated.

    ``run`` trains, and keeps what ``pullback`` needs. ``pullback`` is linear in the cotangents. Without a
    ``torch.func`` transform both run under ``no_grad`` and may use ``torch.autograd`` on their own leaves. Under a
    transform an exact strategy is not called: the steps are differentiated as they are. A strategy that is not exact
    runs again in a backward pass, unless ``residual_of`` will do; it must use ``torch.func`` or plain tensor functions.

    Attributes:
        exact: whether its derivative is that of the steps themselves.
        takes_shards: whether it can differentiate in batches of which each process has its own part.
        needs_values_only: whether :func:`~hyperopt_ftp.hypergradient` calls ``from_values``, with the function from
            hyperparameters to the outer loss, instead of ``run`` and ``pullback``.
        twice: whether it may differentiate the training gradient twice, in all that it depends on: what has no second
            derivative is then refused everywhere in the loss.
        compile: as in :class:`~hyperopt_ftp.Unroll`.
        generators: its own random generators, which are reset when a run is repeated.
    """

    takes_shards: ClassVar[bool] = True
    needs_values_only: ClassVar[bool] = False
    twice: ClassVar[bool] = True
    compile: Compile = False

    @property
    def exact(self) -> bool:
        return False

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        return ()

    @abstractmethod
    def run(self, problem: InnerProblem, inputs: TrainInputs) -> tuple[TrainOutputs, Any]:
        """The params, state and losses (``problem.loop(inputs)`` is the plain way), and a residual for ``pullback``."""

    def residual_of(self, inputs: TrainInputs, trained: TrainOutputs, replay: Replay, rng: RngState) -> Any:
        """The residual of a run that ended in that random state, if these are all it takes; ``None``: run again."""
        return None

    @abstractmethod
    def pullback(self, problem: InnerProblem, residual: Any, cotangents: TrainOutputs) -> TrainInputs:
        """Derivatives of ``<cotangents, (params, state)>`` in the inputs; ``None`` for a part, or a tensor, is zero.

        ``cotangents.params`` and ``cotangents.state`` have the structure of the trained ones, with ``None`` in place of
        integers. ``cotangents.losses`` is ``None``. Inputs whose ``problem.needs_grad`` is False need no derivative.
        """

    def values(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        return problem.loop(inputs)

    def draw(self) -> int:
        """A number that all processes must have in common, for ``from_values``."""
        raise NotImplementedError

    def from_values(
        self, function: Callable[[list[Tensor]], Tensor], x: list[Tensor], seed: int, replay: Replay, rng: RngState
    ) -> list[Tensor]:
        """The derivative of a function at x, with the random numbers of that state."""
        raise NotImplementedError


def check_strategy(strategy: Any) -> None:
    if isinstance(strategy, Strategy):
        return
    got, hint = type(strategy).__name__, ""
    if isinstance(strategy, type):
        got, hint = f"the class {strategy.__name__}", f"; write {strategy.__name__}()"
    elif isinstance(strategy, str):
        hint = did_you_mean(strategy, ("Unroll()", "Forward()", "Implicit()", "ZeroOrder(8, 1e-3)"))
    raise TypeError(
        "strategy must be a hyperopt_ftp.hyper.Strategy, with the methods run(problem, inputs) and pullback(problem, "
        f"residual, cotangents), as Unroll, Forward, Implicit and ZeroOrder are; got {got}{hint}"
    )


def checked_outputs(strategy: Strategy, result: Any) -> tuple[TrainOutputs, Any]:
    name = type(strategy).__name__
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], TrainOutputs):
        got = type(result).__name__
        raise TypeError(f"{name}.run must return (TrainOutputs(params, state, losses), residual), got a {got}")
    return result


def cotangent_leaves(strategy: Strategy, inputs: TrainInputs, found: Any) -> list[Tensor | None]:
    """The leaves that ``pullback`` returned, in the order of the inputs' leaves, each of its shape or ``None``."""
    name = type(strategy).__name__
    if not isinstance(found, TrainInputs):
        got = type(found).__name__
        raise TypeError(f"{name}.pullback must return TrainInputs(hparams, params, state, batches), got a {got}")
    leaves: list[Tensor | None] = []
    for part, values, given in zip(TrainInputs._fields, inputs, found, strict=True):
        if part == "batches" and not isinstance(values, (list, tuple)):
            continue  # read one by one, and constant
        if given is None:
            leaves += [None] * len(tree.leaves(values))
            continue
        row = tree.fitted(given, tree.Structure(values))
        if row is None:
            raise ValueError(f"{name}.pullback must return {part} in the structure of inputs.{part}, or None")
        for value, cotangent in zip(tree.leaves(values), row, strict=True):
            if cotangent is not None and (not isinstance(cotangent, Tensor) or cotangent.shape != value.shape):
                got = tuple(cotangent.shape) if isinstance(cotangent, Tensor) else type(cotangent).__name__
                raise ValueError(
                    f"{name}.pullback returned {got} for a tensor of {part} with shape {tuple(value.shape)}; a "
                    "cotangent has the shape of its tensor"
                )
        leaves += row
    return leaves
