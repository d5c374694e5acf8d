"""The hypergradients by this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import hyperopt_ftp as hft

from .problems import Problem
from .torch_losses import Training, by_vmap, flat, loss_of, penalised, tensors, together


def optimizer_of(problem: Problem) -> hft.Optimizer[Any]:
    return hft.adam(lr=problem.lr, eps=problem.eps) if problem.rule == "adam" else hft.sgd(lr=problem.lr)


def ours(
    problem: Problem,
    strategy: hft.Unroll | hft.Forward | hft.Implicit,
    dtype: torch.dtype = torch.float32,
    optimizer: hft.Optimizer[Any] | None = None,
) -> Callable[[], Tensor]:
    """By ``hypergradient``; where there are tasks, by ``train`` under ``grad`` and ``vmap``.

    A compiled step cannot run under a transform: there, one training of all tasks has the vmap inside its loss.
    """
    opt, how = optimizer or optimizer_of(problem), strategy
    params, l2 = tensors(problem, dtype)
    data, loss = together(problem, dtype), loss_of(problem)
    if problem.tasks is not None and getattr(how, "compile", False):
        return lambda: flat(_at_once(opt, loss, params, data, how))
    if problem.tasks is not None:

        def trained(p: Any, batch: Any) -> Any:
            return hft.train(opt, loss, p, [batch] * problem.steps, strategy=how).params

        return by_vmap(problem, trained, dtype)
    hparams, train_loss = opt.hparams, loss
    if l2 is not None:
        hparams, train_loss = {**opt.hparams, "loss": {"l2": l2}}, _with_l2
    over = "lr" if l2 is None else "loss.l2"

    def run() -> Tensor:
        grads = hft.hypergradient(
            opt, train_loss, lambda p: loss(p, data.held_out), params, data.batches, over, hparams, strategy=how
        )[1]
        return flat(grads[over])

    return run


def _with_l2(params: dict[str, Tensor], batch: Any, extra: dict[str, Tensor]) -> Tensor:
    return penalised(params, batch, extra["l2"])


def _at_once(opt: hft.Optimizer[Any], loss: Any, params: dict[str, Tensor], data: Training, how: Any) -> Any:
    learned, held_out, steps = data.batches[0], data.held_out, len(data.batches)
    each = torch.func.vmap(loss)
    start = {name: x.detach().requires_grad_() for name, x in params.items()}
    count = len(tree_leaves(learned)[0])
    run = hft.train(
        opt,
        lambda p, batch: each(p, batch).sum(),
        {name: x.expand(count, *x.shape) for name, x in start.items()},
        [learned] * steps,
        strategy=how,
    )
    return dict(zip(start, torch.autograd.grad(each(run.params, held_out).mean(), list(start.values())), strict=True))
