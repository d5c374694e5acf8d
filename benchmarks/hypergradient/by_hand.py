"""The hypergradients by a plain loop: ``torch.autograd.grad(create_graph=True)`` and a functional update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problems import Problem
from .torch_losses import Ends, by_vmap, loss_of, penalised, tensors, trainings

BETAS = (0.9, 0.999)


def by_hand(problem: Problem) -> Callable[[], Tensor]:
    first, coefficients = tensors(problem)
    runs, loss = trainings(problem), loss_of(problem)

    def run() -> Tensor:
        ends = Ends(problem, first, coefficients)
        for training in runs:
            params: dict[str, Tensor] = {**ends.params}
            m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
            for k, batch in enumerate(training.batches):
                value = loss(params, batch) if ends.l2 is None else penalised(params, batch, ends.l2)
                grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
                named = dict(zip(params, grads, strict=True))
                if problem.rule == "adam":
                    params, m, v = _adam(params, named, m, v, k + 1, ends.lr, problem.eps)
                else:
                    params = {name: p - ends.lr * named[name] for name, p in params.items()}
            ends.add(loss(params, training.held_out))
        return ends.mean()

    return run


def _adam(params: Any, grads: Any, m: Any, v: Any, t: int, lr: Tensor, eps: float) -> tuple[Any, Any, Any]:
    b1, b2 = BETAS
    new: dict[str, Tensor] = {}
    for name, g in grads.items():
        m = m | {name: b1 * m[name] + (1 - b1) * g}
        v = v | {name: b2 * v[name] + (1 - b2) * g * g}
        new[name] = params[name] - lr * (m[name] / (1 - b1**t)) / ((v[name] / (1 - b2**t)).sqrt() + eps)
    return new, m, v


def by_hand_vmap(problem: Problem) -> Callable[[], Tensor]:
    """SGD for all tasks at once."""
    loss = loss_of(problem)

    def trained(p: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
        for _ in range(problem.steps):
            grads = torch.func.grad(loss)(p, batch)
            p = {name: x - problem.lr * grads[name] for name, x in p.items()}
        return p

    return by_vmap(problem, trained, torch.float32)
