"""The protocol of strategies: how K steps of training are differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...calls import did_you_mean
from .inputs import TrainInputs, TrainOutputs
from .leaves import detached, or_zeros, requiring_grad
from .memory import trial_peak
from .node import Method, Run, through_node
from .problem import InnerProblem, differentiable_steps
from .replay import Replay
from .second_order import twice_differentiable
from .torch_private import run_backward, under_transform

_PACKAGE = __name__.partition(".")[0] + "."

#: Of some tensors, and trained by a strategy: the outer loss, and where training ended.
Objective: TypeAlias = Callable[[Sequence[Tensor], "Strategy"], tuple[Tensor, TrainOutputs]]

#: Steps after which one more takes no more memory.
STEADY = 3


class Costs(NamedTuple):
    """What a strategy takes for all steps, for :func:`~hyperopt_ftp.estimate`.

    Attributes:
        gradients: number of gradients of the training loss.
        products: number of products with its second derivatives.
        plan: what is stored, in words.
        trial: takes as much memory as all steps. ``None``: two and three steps are made there and back, and each
            further one is taken to add as much as the third.
        memory: bytes, if they are known without a trial.
    """

    gradients: int
    products: int
    plan: str
    trial: Callable[[], Any] | None = None
    memory: int | None = None


class Strategy(ABC):
    """How K steps of training are differentiated: one differentiable function of a problem and its inputs.

    ``problem.step(params, state, batch, hparams)`` is one step, ``problem.loop(inputs)`` all of them; both are
    differentiable. :func:`with_pullback` gives a training a derivative of your own.
    """

    @property
    def stepwise(self) -> bool:
        """Whether steps may be differentiated one by one, each as a training of its own."""
        return False

    @property
    def constant_start(self) -> bool:
        """Whether there is no derivative in the params and the state that training starts from."""
        return False

    @abstractmethod
    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        """The params, state and losses after all steps: differentiable in eager mode and under ``torch.func``."""

    def value_and_grad(
        self, objective: Objective, leaves: list[Tensor], agreed: Callable[[Sequence[int]], list[int]]
    ) -> tuple[Tensor, list[Tensor], TrainOutputs]:
        """The value of an objective, its derivatives in the leaves, and where training ended.

        ``agreed`` makes numbers the same on all processes.
        """
        if under_transform():
            value, back, run = torch.func.vjp(lambda x: objective(x, self), leaves, has_aux=True)  # pyright: ignore
            return value, back(torch.ones_like(value))[0], run
        with twice_differentiable():  # in the backward pass too: what a checkpoint computes again is computed alike
            with torch.enable_grad():
                value, run = objective(leaves, self)
            run = run._replace(params=detached(run.params), state=detached(run.state))
            return value.detach(), _slopes(value, leaves, run), run

    def costs(self, problem: InnerProblem, inputs: TrainInputs) -> Costs:
        """What all steps take. What is asked for requires grad among the inputs; the problem has been looked at."""
        raise TypeError(
            f"estimate does not know what {type(self).__name__} takes: give it a method costs(problem, inputs) that "
            "returns hyperopt_ftp.hyper.Costs, or measure a short run"
        )


class PlainSteps(Strategy):
    """The steps as they are, differentiated by autograd or the transforms around them."""

    def __call__(self, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
        return differentiable_steps(problem, inputs)


def with_pullback(
    pullback: Callable[[InnerProblem, TrainInputs, TrainOutputs, TrainOutputs], TrainInputs],
    problem: InnerProblem,
    inputs: TrainInputs,
) -> TrainOutputs:
    """Training whose derivative is ``pullback(problem, inputs, end, cotangents)``.

    Args:
        pullback: the derivatives of ``<cotangents, (params, state)>`` in the inputs, as a ``TrainInputs``; ``None`` for
            a part, or a tensor of it, is zero. ``end`` is where training ended. ``cotangents`` has the structure of it,
            with ``None`` in place of integers and of the losses. Without a ``torch.func`` transform it runs under
            ``no_grad`` and may use ``torch.autograd`` on leaves of its own; under one it must be made of differentiable
            operations, and second derivatives are those of what it computes. ``create_graph=True`` is an error.
        problem, inputs: of the strategy.

    Each call of ``problem.loop``, ``step`` or ``loss`` in ``pullback`` begins with the random state in which training
    began: the loop draws the numbers of the training, and differences of two calls are not those of their numbers.

    Raises:
        TypeError, ValueError: a result of ``pullback`` that does not fit the inputs.
    """
    if not callable(pullback) or not isinstance(problem, InnerProblem):
        raise TypeError("with_pullback takes (pullback, problem, inputs), the first a function")
    again = Replay().again

    def back(problem: InnerProblem, run: Run, cotangents: TrainOutputs) -> TrainInputs:
        assert run.end is not None
        return pullback(replace(problem, again=again), run.inputs, run.end, cotangents)

    needs = {"differentiates_whole_gradient": True}
    return through_node(Method("with_pullback", back, wants_end=True, needs=needs), problem, inputs)


def _slopes(value: Tensor, leaves: list[Tensor], run: TrainOutputs) -> list[Tensor]:
    """The derivatives of the outer loss in leaves.

    float16 cotangents of the params would underflow, so the outer loss is scaled by the largest power of two that fits.
    """
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    narrow = any(x.dtype == torch.float16 for x in tree.leaves(run.params))
    found: Sequence[Tensor | None] = []
    for scale in (2.0**15, 2.0**8, 1.0, 2.0**-8, 2.0**-15) if narrow else (1.0,):
        start = torch.full_like(value, scale) if narrow else torch.ones_like(value)
        found = run_backward([value], leaves, [start], narrow, False)
        found = [None if x is None else x / scale for x in found] if narrow else found
        if not narrow or all(x is None or bool(x.isfinite().all()) for x in found):
            break
    return or_zeros(found, leaves)


def check_strategy(strategy: Any) -> None:
    if isinstance(strategy, Strategy):
        return
    got, hint = type(strategy).__name__, ""
    if isinstance(strategy, type):
        got, hint = f"the class {strategy.__name__}", f"; write {strategy.__name__}()"
    elif isinstance(strategy, str):
        hint = did_you_mean(strategy, ("Unroll()", "Forward()", "Implicit()", "ZeroOrder(8, 1e-3)"))
    raise TypeError(
        "strategy must be a hyperopt_ftp.hyper.Strategy: of a class that derives from it, as Unroll, Forward, Implicit "
        f"and ZeroOrder do, with the method __call__(problem, inputs); got {got}{hint}"
    )


def check_stepwise(who: str, strategy: Strategy) -> None:
    if not strategy.stepwise:
        raise ValueError(
            f"{who} makes steps one by one, without knowing which is the last, and this {type(strategy).__name__} "
            "needs all at once: take hft.Unroll() (with checkpoint=1 or False, truncate=1 or first_order, if you like) "
            "or hft.Implicit(), or train a given number of steps"
        )


def trained_by(strategy: Strategy, problem: InnerProblem, inputs: TrainInputs) -> TrainOutputs:
    """Training by a strategy; by one from outside the package on a problem that is looked at."""
    if str(type(strategy).__module__).startswith(_PACKAGE):
        return strategy(problem, inputs)
    found = differentiable_steps(problem, inputs, strategy)
    _check_outputs(type(strategy).__name__, found, problem, inputs)
    return found


def _check_outputs(name: str, found: Any, problem: InnerProblem, inputs: TrainInputs) -> None:
    if not isinstance(found, TrainOutputs):
        raise TypeError(f"{name} must return TrainOutputs(params, state, losses), got a {type(found).__name__}")
    given = tree.Structure(inputs.params)
    params = tree.fitted(found.params, given)
    if params is None or [*map(_kind, params)] != [*map(_kind, given.leaves)]:
        raise ValueError(
            f"{name} must return TrainOutputs with params of the structure, shapes and dtypes of inputs.params"
        )
    count, losses = len(inputs.batches), found.losses
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise ValueError(
            f"{name} must return the training losses as a tensor of shape ({count},), one a step, got {got}"
        )
    if found.state is None and problem.begun(inputs).state is not None:
        raise ValueError(f"{name} must return the state in which training ended, got TrainOutputs with state=None")


def _kind(x: Any) -> tuple[Any, Any]:
    return getattr(x, "shape", None), getattr(x, "dtype", None)


def few_steps(problem: InnerProblem, inputs: TrainInputs, count: int = STEADY) -> tuple[InnerProblem, TrainInputs]:
    """The first steps of a training."""

    def first(batches: Any) -> Any:
        return [batches[k] for k in range(min(count, len(inputs.batches)))]

    asked = problem.needs_grad
    short = asked if asked.batches is False else asked._replace(batches=first(asked.batches))
    return replace(problem, needs_grad=short), inputs._replace(batches=first(inputs.batches))


def memory_of_steps(strategy: Strategy, problem: InnerProblem, inputs: TrainInputs, count: int) -> int:
    """Bytes that so many steps and their derivatives in all that requires grad take, from those of two and of three."""

    def of(steps: int) -> int:
        return trial_peak(inputs.params, lambda: there_and_back(*few_steps(problem, inputs, steps)))

    def there_and_back(problem: InnerProblem, inputs: TrainInputs) -> None:
        ends = requiring_grad(strategy(problem, inputs).params)
        if ends:
            torch.autograd.grad(ends, requiring_grad(inputs), [torch.ones_like(x) for x in ends], allow_unused=True)

    return of(count) if count < STEADY else (two := of(2)) + (count - 2) * (of(3) - two)
