"""The one-step hypergradient: the present gradient, pulled back through the previous update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ... import tree
from ...types import HParams, Optimizer, Params, State
from . import paths


class Previous(NamedTuple):
    """The arguments of the base's previous update."""

    grads: Params
    state: State
    params: Params
    hparams: HParams  # settled: the point where a pullback linearises


class GradientStrategy(Protocol):
    """A way to take a hypergradient from gradients alone, without the loss: it can run inside an optimizer's update."""

    def pullback(self, base: Optimizer, previous: Previous, cotangent: Params, over: tuple[str, ...]) -> HParams:
        """Derivative of the loss whose gradient at the present params is ``cotangent``, for the hparams in ``over``."""
        ...


@dataclass(frozen=True)
class OneStep:
    """Hypergradient of one step: ``h = (d W_t / d hparams)^T g``, where ``g`` is the gradient at ``W_t``.

    This is the vector-Jacobian product of the previous update in the tuned hyperparameters. Everything before that
    update is held fixed (hypergradient descent, arXiv 1703.04782; towers, arXiv 1909.13371). Nothing is detached, so
    the result can be differentiated again.

    Args:
        through: differentiate the update of this optimizer instead of the base's. Its state and hparams must have the
            structure of the base's. FTP's "paper" gradient is
            ``OneStep(through=projected(base, anchor, bounded=False))``.

    >>> import torch, hyperopt_ftp as hft
    >>> opt = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.01), over="lr", strategy=hft.OneStep())
    >>> w = torch.ones(1); state = opt.init(w)
    >>> for _ in range(2):
    ...     w, state = opt.update(w, state, w)          # the loss is w^2 / 2
    >>> state.tuned["lr"]                               # 0.1 + 0.01 * <0.9, 1>
    tensor(0.1090, dtype=torch.float64)
    """

    through: Optimizer | None = None

    def pullback(self, base: Optimizer, previous: Previous, cotangent: Params, over: tuple[str, ...]) -> HParams:
        step = (self.through or base).update

        def again(tuned: dict[str, Any]) -> Params:
            return step(previous.grads, previous.state, previous.params, paths.merge(previous.hparams, tuned))[0]

        pull = torch.func.vjp(again, paths.select(previous.hparams, over))[1]
        return pull(tree.map_tree(_or_zeros, previous.params, cotangent))[0]


def _or_zeros(w: Tensor, g: Tensor | None) -> Tensor:
    return torch.zeros_like(w) if g is None else g
