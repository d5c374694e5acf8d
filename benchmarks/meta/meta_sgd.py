"""Meta-SGD on sine curves: as MAML, with a learned learning rate for each weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from examples.recipes.sines import Batch, loss
from hyperopt_ftp.tree import leaves, map_tree

from . import sine_tasks
from .module import Module
from .sine_tasks import LR, OUTER_LR, TASKS, jax_loss, one_by_one


def start() -> tuple[Any, Any, Any]:
    net, data = sine_tasks.start()
    return net, map_tree(lambda p: torch.full_like(p, LR, requires_grad=True), net), data


def score(learned: Any) -> float:
    return sine_tasks.loss_after(*learned)


def ours(net: Any, lr: Any, data: Any) -> Iterator[Any]:
    inner, outer = hft.sgd(), torch.optim.Adam(leaves((net, lr)), lr=OUTER_LR)

    def after(seen: Batch, new: Batch) -> Tensor:
        return loss(hft.train(inner, loss, net, [seen], hparams={"lr": lr}).params, new)

    for batch in data:
        outer.zero_grad()
        torch.func.vmap(after)(*batch).mean().backward()
        outer.step()
        yield net, lr


def with_torchopt(net: Any, lr: Any, data: Any) -> Iterator[Any]:
    import torchopt

    outer = torch.optim.Adam(leaves((net, lr)), lr=OUTER_LR)

    def after(seen: Batch, new: Batch) -> Tensor:
        # Its optimizers take one learning rate for all weights.
        updates = map_tree(lambda rate, g: -rate * g, lr, torch.func.grad(loss)(net, seen))
        return loss(torchopt.apply_updates(net, updates, inplace=False), new)

    for batch in data:
        outer.zero_grad()
        torch.func.vmap(after)(*batch).mean().backward()
        outer.step()
        yield net, lr


def with_higher(net: Any, lr: Any, data: Any) -> Iterator[Any]:
    import higher

    module, rates = Module(loss, net), leaves(lr)
    inner = torch.optim.SGD([{"params": [p]} for p in module.parameters()], lr=LR)
    outer = torch.optim.Adam([*module.parameters(), *rates], lr=OUTER_LR)
    for batch in data:
        outer.zero_grad()
        for seen, new in one_by_one(batch):
            context = higher.innerloop_ctx(module, inner, copy_initial_weights=False, override={"lr": rates})
            with context as (moving, steps):
                steps.step(moving(seen))
                (moving(new) / TASKS).backward()
        outer.step()
        yield module.params(), lr


def with_jax(net: Any, lr: Any, data: Any) -> Iterator[Any]:
    import jax
    import optax

    outer = optax.adam(OUTER_LR)

    def after(net: Any, lr: Any, seen: Any, new: Any) -> Any:
        grads = jax.grad(jax_loss)(net, seen)
        return jax_loss(jax.tree.map(lambda p, rate, g: p - rate * g, net, lr, grads), new)

    @jax.jit
    def step(learned: Any, state: Any, batch: Any) -> Any:
        each = jax.vmap(after, (None, None, 0, 0))
        updates, state = outer.update(jax.grad(lambda both: each(*both, *batch).mean())(learned), state)
        return optax.apply_updates(learned, updates), state

    learned, state = (net, lr), outer.init((net, lr))
    for batch in data:
        learned, state = step(learned, state, batch)
        yield learned
