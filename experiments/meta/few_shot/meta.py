"""Meta-training: the loss of an outer training is what is left after an inner one."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.meta.few_shot.adaptation import Adaptation, Learned, adapted, loss
from experiments.meta.few_shot.config import OUTER_LR
from experiments.meta.few_shot.data import Batch, Both, World
from hyperopt_ftp import tree

PRETRAIN_BATCH = 256
OuterLoss = Callable[[Learned, Both], Tensor]


def through(adapt: Adaptation, steps: int, strategy: Any = None) -> OuterLoss:
    """Mean loss on the query after the adaptation, whose derivative the strategy takes (by default that of all its
    steps)."""

    def outer(learned: Learned, both: Both) -> Tensor:
        def after(support: Batch, query: Batch) -> Tensor:
            return loss(adapted(adapt(learned), support, steps, strategy), query)

        return torch.func.vmap(after)(*both).mean()

    return outer


def first_order(adapt: Adaptation, steps: int) -> OuterLoss:
    """The same loss; its derivative is taken as if the way from the start to the end were a constant."""

    def outer(learned: Learned, both: Both) -> Tensor:
        with torch.no_grad():
            ends = torch.func.vmap(lambda support: adapted(adapt(learned), support, steps))(both[0])
        moved = tree.map_tree(lambda p, end: p + (end - p).detach(), learned["net"], ends)
        return torch.func.vmap(loss)(moved, both[1]).mean()

    return outer


def falling(optimizer: hft.Optimizer, steps: int) -> hft.Optimizer:
    return hft.scheduled(optimizer, lr=hft.schedules.cosine(steps))


def meta_train(outer: OuterLoss, learned: Learned, world: World) -> Learned:
    """Adam on the outer loss; every method sees the same episodes."""
    steps, tasks = world.config.meta_steps, world.config.tasks
    support, query = world.episodes("train").batches(world.inputs)
    batches = list(zip(_cut(support, tasks), _cut(query, tasks), strict=True))
    with warnings.catch_warnings():  # that a few inner steps have not converged is part of what is compared
        warnings.filterwarnings("ignore", message="Implicit", category=UserWarning)
        return hft.train(falling(hft.adam(lr=OUTER_LR), steps), outer, learned, batches).params


def _cut(batch: Batch, size: int) -> list[Batch]:
    return list(zip(batch[0].split(size), batch[1].split(size), strict=True))


def pretrain(net: Any, world: World) -> Learned:
    """Ordinary training on all classes of meta-training at once, in all styles."""
    steps = 2 * world.config.meta_steps
    rows, labels = [], []
    for label, emoji in enumerate(world.parts["train"].values()):
        for style in range(world.styles):
            rows += [style * world.emoji + number for number in emoji]
            labels += [label] * len(emoji)
    x, y = world.inputs[rows], torch.tensor(labels)
    generator = torch.Generator().manual_seed(world.seed)
    chosen = [torch.randint(len(y), (PRETRAIN_BATCH,), generator=generator) for _ in range(steps)]
    optimizer = falling(hft.adamw(lr=OUTER_LR, weight_decay=0.1), steps)
    return {"net": hft.train(optimizer, loss, net, [(x[i], y[i]) for i in chosen]).params}
