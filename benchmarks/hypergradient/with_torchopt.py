"""The hypergradients by TorchOpt: MetaAdam and MetaSGD; its functional SGD under ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problems import Problem
from .torch_losses import Ends, Holder, by_vmap, loss_of, tensors, trainings


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

    loss, opt = loss_of(problem), torchopt.sgd(problem.lr)

    def trained(p: Any, batch: Any) -> Any:
        state = opt.init(p)
        for _ in range(problem.steps):
            updates, state = opt.update(torch.func.grad(loss)(p, batch), state, params=p, inplace=False)
            p = torchopt.apply_updates(p, updates, inplace=False)
        return p

    return by_vmap(problem, trained, torch.float32)
