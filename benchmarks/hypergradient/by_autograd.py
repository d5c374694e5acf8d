"""The hypergradients by ``torch.autograd`` through the graphs of all steps: by hand, by TorchOpt and by higher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problems import Problem
from .torch_losses import Batch, Ends, Holder, by_vmap, loss_of, penalised, tensors, trainings

BETAS = (0.9, 0.999)
#: Starts a training from leaves: a function that makes a step on a batch, and the loss of where the steps have led.
Begin = Callable[[Ends], tuple[Callable[[Batch], Any], Callable[[Batch], Tensor]]]


def _through_all_steps(problem: Problem, begin: Begin) -> Callable[[], Tensor]:
    first, coefficients = tensors(problem)
    runs = trainings(problem)

    def run() -> Tensor:
        ends = Ends(problem, first, coefficients)
        for training in runs:
            step, loss = begin(ends)
            for batch in training.batches:
                step(batch)
            ends.add(loss(training.held_out))
        return ends.mean()

    return run


def by_hand(problem: Problem) -> Callable[[], Tensor]:
    """``torch.autograd.grad(create_graph=True)`` and a functional update."""
    loss = loss_of(problem)

    def begin(ends: Ends) -> Any:
        params: dict[str, Tensor] = {**ends.params}
        m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
        done = 0

        def step(batch: Batch) -> None:
            nonlocal done
            done += 1
            value = loss(params, batch) if ends.l2 is None else penalised(params, batch, ends.l2)
            grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
            for name, g in zip(params, grads, strict=True):
                move = g
                if problem.rule == "adam":
                    m[name], v[name], move = _adam(g, m[name], v[name], done, problem.eps)
                params[name] = params[name] - ends.lr * move

        return step, lambda batch: loss(params, batch)

    return _through_all_steps(problem, begin)


def _adam(g: Tensor, m: Any, v: Any, t: int, eps: float) -> tuple[Any, Any, Tensor]:
    b1, b2 = BETAS
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return m, v, (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)


def by_hand_vmap(problem: Problem) -> Callable[[], Tensor]:
    """SGD for all tasks at once."""
    loss = loss_of(problem)

    def trained(p: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
        for _ in range(problem.steps):
            grads = torch.func.grad(loss)(p, batch)
            p = {name: x - problem.lr * grads[name] for name, x in p.items()}
        return p

    return by_vmap(problem, trained, torch.float32)


def with_torchopt(problem: Problem) -> Callable[[], Tensor]:
    """MetaAdam and MetaSGD."""
    import torchopt

    def begin(ends: Ends) -> Any:
        lr: Any = ends.lr if problem.over == "lr" else problem.lr
        net = Holder(problem, {**ends.params})
        adam = problem.rule == "adam"
        opt = torchopt.MetaAdam(net, lr=lr, eps=problem.eps) if adam else torchopt.MetaSGD(net, lr=lr)
        return lambda batch: opt.step(net(batch, ends.l2)), net

    return _through_all_steps(problem, begin)


def with_torchopt_vmap(problem: Problem) -> Callable[[], Tensor]:
    """Its functional SGD for all tasks at once."""
    import torchopt

    loss, opt = loss_of(problem), torchopt.sgd(problem.lr)

    def trained(p: Any, batch: Any) -> Any:
        state = opt.init(p)
        for _ in range(problem.steps):
            updates, state = opt.update(torch.func.grad(loss)(p, batch), state, params=p, inplace=False)
            p = torchopt.apply_updates(p, updates, inplace=False)
        return p

    return by_vmap(problem, trained, torch.float32)


def with_higher(problem: Problem) -> Callable[[], Tensor]:
    import higher

    adam = problem.rule == "adam"

    def begin(ends: Ends) -> Any:
        module, done = Holder(problem, {**ends.params}), 0
        base = torch.optim.Adam(module.parameters(), problem.lr) if adam else torch.optim.SGD(module.parameters(), 1.0)
        net = higher.monkeypatch(module, copy_initial_weights=False)
        override: dict[str, list[Any]] = {"lr": [ends.lr if problem.over == "lr" else problem.lr]}
        opt = higher.get_diff_optim(base, module.parameters(), fmodel=net, override=override)

        def step(batch: Batch) -> None:
            nonlocal done
            done += 1
            # Its Adam adds eps before the second moment's bias is corrected.
            eps = {"eps": [problem.eps * (1 - BETAS[1] ** done) ** 0.5]} if adam else None
            opt.step(net(batch, ends.l2), override=eps)

        return step, net

    return _through_all_steps(problem, begin)
