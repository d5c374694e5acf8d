"""The inner problem as strategies of the older protocol, ``through_steps(inner, tuned)``, get it. Deprecated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import HParams, Optimizer, Params, State
from . import paths
from .arguments import check_scalar

__all__ = ["Inner"]


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
