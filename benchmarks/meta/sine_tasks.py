"""What MAML and Meta-SGD share: tasks, and the loss on new tasks after a step of the learned weights and rates."""

from __future__ import annotations

from typing import Any

import torch

from examples.recipes.sines import Batch, loss, network, sines
from hyperopt_ftp import tree

TASKS, LR, OUTER_LR = 25, 0.01, 3e-3


def start() -> tuple[Any, list[tuple[Batch, Batch]]]:
    """Initial weights, and batches of tasks."""
    g = torch.Generator().manual_seed(0)
    return tree.map_tree(torch.Tensor.requires_grad_, network()), [sines(TASKS, g) for _ in range(20)]


def one_by_one(batch: tuple[Batch, Batch]) -> list[tuple[Batch, Batch]]:
    """The tasks of a batch, for libraries that vmap cannot take."""
    (x, y), (new_x, new_y) = batch
    return [((x[k], y[k]), (new_x[k], new_y[k])) for k in range(len(x))]


def loss_after(net: Any, lr: Any) -> float:
    def one(seen: Batch, new: Batch) -> torch.Tensor:
        moved = tree.map_tree(lambda p, a, g: p - a * g, net, lr, torch.func.grad(loss)(net, seen))
        return loss(moved, new)

    return torch.func.vmap(one)(*sines(500, torch.Generator().manual_seed(1))).mean().item()


def jax_loss(net: Any, batch: Any) -> Any:
    import jax

    (w0, b0, w1, b1), (w2, b2) = net["body"], net["head"]
    hidden = jax.nn.relu(jax.nn.relu(batch[0] @ w0 + b0) @ w1 + b1)
    return ((hidden @ w2 + b2 - batch[1]) ** 2).mean()
