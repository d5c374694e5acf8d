"""The hypergradients by TorchOpt: MetaAdam and MetaSGD; its functional SGD under ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problems import Problem
from .torch_losses import Ends, Holder, flat, loss_of, tensors, together, trainings


def with_torchopt(problem: Problem) -> Callable[[], Tensor]:
    import torchopt

    first, coefficients = tensors(problem)
    runs = trainings(problem)

    def run() -> Tensor:
        ends = Ends(problem, first, coefficients)
        lr: Any = ends.lr if problem.over == "lr" else problem.lr
        for training in runs:
            net = Holder(problem, {**ends.params})
            if problem.rule == "adam":
                opt = torchopt.MetaAdam(net, lr=lr, eps=problem.eps)
            else:
                opt = torchopt.MetaSGD(net, lr=lr)
            for batch in training.batches:
                opt.step(net(batch, ends.l2))
            ends.add(net(training.held_out))
        return ends.mean()

    return run


def with_torchopt_vmap(problem: Problem) -> Callable[[], Tensor]:
    import torchopt

    start = tensors(problem)[0]
    data, loss, opt = together(problem), loss_of(problem), torchopt.sgd(problem.lr)
    learned, held_out = data.batches[0], data.held_out

    def outer(params: dict[str, Tensor]) -> Tensor:
        def of_one(batch: Any, test: Any) -> Tensor:
            p: Any = params
            state = opt.init(p)
            for _ in range(problem.steps):
                updates, state = opt.update(torch.func.grad(loss)(p, batch), state, params=p, inplace=False)
                p = torchopt.apply_updates(p, updates, inplace=False)
            return loss(p, test)

        return torch.func.vmap(of_one)(learned, held_out).mean()

    return lambda: flat(torch.func.grad(outer)(start))
