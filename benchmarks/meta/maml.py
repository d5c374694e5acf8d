"""MAML on sine curves: one inner step, 25 tasks a meta-step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from examples.recipes.sines import Batch, loss
from hyperopt_ftp.tree import leaves, map_tree

from .module import Module
from .sine_tasks import LR, OUTER_LR, TASKS, jax_loss, loss_after, one_by_one, start

__all__ = ["ours", "score", "start", "with_higher", "with_jax", "with_torchopt"]


def score(net: Any) -> float:
    return loss_after(net, map_tree(lambda p: LR, net))


def ours(net: Any, data: Any) -> Iterator[Any]:
    inner, outer = hft.sgd(lr=LR), torch.optim.Adam(leaves(net), lr=OUTER_LR)

    def after(seen: Batch, new: Batch) -> Tensor:
        return loss(hft.train(inner, loss, net, [seen]).params, new)

    for batch in data:
        outer.zero_grad()
        torch.func.vmap(after)(*batch).mean().backward()
        outer.step()
        yield net


def with_torchopt(net: Any, data: Any) -> Iterator[Any]:
    import torchopt

    inner, outer = torchopt.sgd(lr=LR), torch.optim.Adam(leaves(net), lr=OUTER_LR)

    def after(seen: Batch, new: Batch) -> Tensor:
        updates, _ = inner.update(torch.func.grad(loss)(net, seen), inner.init(net), inplace=False)
        return loss(torchopt.apply_updates(net, updates, inplace=False), new)

    for batch in data:
        outer.zero_grad()
        torch.func.vmap(after)(*batch).mean().backward()
        outer.step()
        yield net


def with_higher(net: Any, data: Any) -> Iterator[Any]:
    import higher

    module = Module(loss, net)
    inner, outer = torch.optim.SGD(module.parameters(), lr=LR), torch.optim.Adam(module.parameters(), lr=OUTER_LR)
    for batch in data:
        outer.zero_grad()
        for seen, new in one_by_one(batch):
            with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (moving, steps):
                steps.step(moving(seen))
                (moving(new) / TASKS).backward()
        outer.step()
        yield module.params()


def with_jax(net: Any, data: Any) -> Iterator[Any]:
    import jax
    import optax

    inner, outer = optax.sgd(LR), optax.adam(OUTER_LR)

    def after(net: Any, seen: Any, new: Any) -> Any:
        updates, _ = inner.update(jax.grad(jax_loss)(net, seen), inner.init(net))
        return jax_loss(optax.apply_updates(net, updates), new)

    @jax.jit
    def step(net: Any, state: Any, batch: Any) -> Any:
        grads = jax.grad(lambda net: jax.vmap(after, (None, 0, 0))(net, *batch).mean())(net)
        updates, state = outer.update(grads, state)
        return optax.apply_updates(net, updates), state

    state = outer.init(net)
    for batch in data:
        net, state = step(net, state, batch)
        yield net
