"""The hypergradients by higher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .by_hand import BETAS
from .problems import Problem
from .torch_losses import Ends, Holder, tensors, trainings


def with_higher(problem: Problem) -> Callable[[], Tensor]:
    import higher

    first, coefficients = tensors(problem)
    runs, adam = trainings(problem), problem.rule == "adam"

    def run() -> Tensor:
        ends = Ends(problem, first, coefficients)
        module = Holder(problem, {**ends.params})
        base = torch.optim.Adam(module.parameters(), problem.lr) if adam else torch.optim.SGD(module.parameters(), 1.0)
        override: dict[str, list[Any]] = {"lr": [ends.lr if problem.over == "lr" else problem.lr]}
        for training in runs:
            with higher.innerloop_ctx(module, base, copy_initial_weights=False, override=override) as (net, opt):
                for k, batch in enumerate(training.batches):
                    # Its Adam adds eps before the second moment's bias is corrected.
                    eps = {"eps": [problem.eps * (1 - BETAS[1] ** (k + 1)) ** 0.5]} if adam else None
                    opt.step(net(batch, ends.l2), override=eps)
                ends.add(net(training.held_out))
        return ends.mean()

    return run
