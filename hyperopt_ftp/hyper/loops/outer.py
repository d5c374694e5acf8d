"""The outer optimizer: a pure one, or one of torch.optim as a pure one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...types import Optimizer, check_optimizer


def pure_outer(name: str, by: Any) -> Optimizer:
    """``by`` if it is pure, else a pure optimizer whose state is the ``state_dict`` of what the factory ``by`` makes.

    The factory is called anew for every step, so the ``state_dict`` must hold all that the optimizer remembers.
    """
    if not callable(by):
        if isinstance(by, torch.optim.Optimizer):
            raise TypeError(
                f"{name} must be a pure optimizer such as hft.adam(lr=1e-3), or make one of torch.optim: got an object "
                f"of the class {type(by).__name__}, which has parameters of its own; pass the class, or "
                f"functools.partial(torch.optim.{type(by).__name__}, lr=...)"
            )
        check_optimizer(name, by)
        return by

    def make(values: Any) -> tuple[Any, list[Tensor], Callable[[list[Any]], Any]]:
        leaves, rebuild = tree.flatten(values)
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        return _made(name, by, leaves), leaves, rebuild

    def init(params: Any, hparams: Any = None) -> dict[str, Any]:
        return make(params)[0].state_dict()

    def update(grads: Any, state: dict[str, Any], params: Any, hparams: Any = None) -> tuple[Any, dict[str, Any]]:
        optimizer, leaves, rebuild = make(params)
        optimizer.load_state_dict(copy.deepcopy(state))
        for x, g in zip(leaves, tree.leaves(grads), strict=True):
            x.grad = g.detach().to(x)
        optimizer.step()
        return rebuild([x.detach() for x in leaves]), copy.deepcopy(optimizer.state_dict())

    return Optimizer(init, update, {})


def _made(name: str, by: Callable[..., Any], leaves: list[Tensor]) -> Any:
    try:
        optimizer = by(leaves)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} was called with a list of {len(leaves)} tensors and failed: {error}") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(f"{name}: LBFGS evaluates the loss itself, and a hypergradient is taken once in a step")
    if not all(hasattr(optimizer, x) for x in ("step", "state_dict", "load_state_dict")):
        title = getattr(by, "__name__", type(by).__name__)
        raise TypeError(
            f"{name} must be a pure optimizer, such as hft.adam(lr=1e-3), or make an optimizer of torch.optim from a "
            f"list of tensors; {title} made a {type(optimizer).__name__}. Is it {title}(...) that was meant?"
        )
    return optimizer
