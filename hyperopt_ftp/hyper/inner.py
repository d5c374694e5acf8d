"""The inner problem of a hypergradient: an optimizer, a training loss, and the steps to be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import tree
from ..types import HParams, Optimizer, Params, State
from . import paths

__all__ = ["Inner", "Result", "Strategy", "under_transform"]

#: What a strategy returns: value of the outer loss, its gradient like ``tuned``, and the final (params, state).
Result = tuple[Tensor, dict[str, Any], tuple[Params, State]]


class Inner(NamedTuple):
    """K steps of an optimizer. A strategy differentiates ``outer_loss(params after K steps)`` in ``tuned``.

    ``tuned`` is a dict by path of the hyperparameters that are differentiated; the others come from ``hparams``. Where
    ``hparams`` has an entry ``"loss"``, it is the loss's own and is passed to ``train_loss`` as third argument.
    """

    optimizer: Optimizer
    train_loss: Callable[..., Tensor]
    outer_loss: Callable[[Params], Tensor]
    params: Params
    batches: Sequence[Any]
    hparams: dict[str, Any]
    state: State | None  # None: optimizer.init, which is then differentiated too

    def split(self, tuned: dict[str, Any]) -> tuple[HParams, Any]:
        """All hyperparameters with ``tuned`` put in: the optimizer's, and the loss's (or ``None``)."""
        full = paths.merge(self.hparams, tuned)
        return {name: value for name, value in full.items() if name in self.optimizer.hparams}, full.get("loss")

    def begin(self, tuned: dict[str, Any]) -> State:
        """The state before the first step."""
        return self.optimizer.init(self.params, self.split(tuned)[0]) if self.state is None else self.state

    def loss(self, params: Params, k: int, tuned: dict[str, Any]) -> Tensor:
        """Training loss of step k."""
        own = self.split(tuned)[1]
        extra = () if own is None else (own,)
        return check_scalar("train_loss", self.train_loss(params, self.batches[k], *extra))

    def update(self, grads: Params, state: State, params: Params, tuned: dict[str, Any]) -> tuple[Params, State]:
        return self.optimizer.update(grads, state, params, self.split(tuned)[0])

    def step(self, params: Params, state: State, k: int, tuned: dict[str, Any]) -> tuple[Params, State]:
        """Step k as a pure function: ``torch.func`` can differentiate it in params, state and tuned."""
        return self.update(torch.func.grad(self.loss)(params, k, tuned), state, params, tuned)

    def outer(self, params: Params) -> Tensor:
        return check_scalar("outer_loss", self.outer_loss(params))


class Strategy(Protocol):
    """How a hypergradient through K steps is taken. Any object with this method can be passed as ``strategy``."""

    def through_steps(self, inner: Inner, tuned: dict[str, Any]) -> Result:
        """Value of ``inner.outer`` after the steps, its gradient in ``tuned``, and the final (params, state)."""
        ...


def check_object(strategy: Any) -> None:
    if isinstance(strategy, type):
        raise TypeError(f"strategy must be an object, got the class {strategy.__name__}; write {strategy.__name__}()")


def check_scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} must return a scalar tensor (shape ()), got {got}; reduce it, for instance by .mean()"
        )
    return value


def under_transform() -> bool:
    """Whether a ``torch.func`` transform is active: there, leaves of our own would cut its graph."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def floats(values: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The floating-point leaves of a tree, and the function that puts others in their place (step counts stay)."""
    all_leaves, rebuild = tree.flatten(values)
    places = [i for i, x in enumerate(all_leaves) if x.is_floating_point()]

    def put(new: Sequence[Tensor]) -> Any:
        result = list(all_leaves)
        for i, x in zip(places, new, strict=True):
            result[i] = x
        return rebuild(result)

    return [all_leaves[i] for i in places], put
