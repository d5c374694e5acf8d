"""How a network is trained on the support of an episode. Each is one `hft.train`, batched over episodes by vmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.meta.few_shot.episodes import Batch, Both
from experiments.meta.few_shot.network import Net, loss, right
from hyperopt_ftp import tree

CHUNK = 200  # episodes at once: more of them no longer fit into a cache
Learned = dict[str, Any]  # what meta-training has made: {"net": Net} and, of Meta-SGD, "lr"


class Start(NamedTuple):
    """What is trained, by what, on which loss."""

    optimizer: hft.Optimizer
    loss: Callable[[Any, Batch, Any], Tensor]  # params, batch, hparams["loss"]
    params: Any
    hparams: dict[str, Any]
    whole: Callable[[Any], Net]  # of the params


Adaptation = Callable[[Learned], Start]


def _plain(net: Net, batch: Batch, _: Any) -> Tensor:
    return loss(net, batch)


def everything(lr: float, weight_decay: float = 0.0) -> Adaptation:
    """MAML's: SGD on all weights. Where learning rates were learned, those."""
    optimizer = hft.sgd(lr=lr, weight_decay=weight_decay)

    def start(learned: Learned) -> Start:
        own = {"lr": learned["lr"]} if "lr" in learned else {}
        hparams = {**optimizer.hparams, **own, "loss": {}}
        return Start(optimizer, _plain, learned["net"], hparams, lambda net: net)

    return start


def anchored(lr: float, radius_lr: float) -> Adaptation:
    """Fast Trainable Projection around the body that was learned; the head, whose classes are new, moves freely."""

    def start(learned: Learned) -> Start:
        optimizer = hft.ftp(hft.sgd(lr=lr), anchor={"body": learned["net"]["body"]}, radius_lr=radius_lr)
        return Start(optimizer, _plain, learned["net"], {**optimizer.hparams, "loss": {}}, lambda net: net)

    return start


def head_alone(lr: float, l2: float = 0.0, momentum: float = 0.0) -> Adaptation:
    """The head on what the body makes of the pictures; of a network without a body a linear classifier."""
    optimizer = hft.sgd(lr=lr, momentum=momentum, nesterov=momentum > 0)

    def fit(own: Net, batch: Batch, rest: Net) -> Tensor:
        penalty = 0.5 * l2 * own["weight"].square().sum() if l2 else 0.0
        return loss({**rest, "head": own}, batch) + penalty

    def start(learned: Learned) -> Start:
        net = learned["net"]
        rest = {name: part for name, part in net.items() if name != "head"}
        hparams = {**optimizer.hparams, "loss": rest}
        return Start(optimizer, fit, net["head"], hparams, lambda own: {**rest, "head": own})

    return start


def near(strength: float, lr: float = 0.1, momentum: float = 0.6) -> Adaptation:
    """Implicit MAML's: all weights, drawn to the center that they start from."""
    optimizer = hft.sgd(lr=lr, momentum=momentum)

    def fit(net: Net, batch: Batch, center: Net) -> Tensor:
        apart = zip(tree.leaves(net), tree.leaves(center), strict=True)
        return loss(net, batch) + 0.5 * strength * torch.stack([(p - c).square().sum() for p, c in apart]).sum()

    def start(learned: Learned) -> Start:
        net = learned["net"]
        return Start(optimizer, fit, net, {**optimizer.hparams, "loss": net}, lambda net: net)

    return start


def adapted(start: Start, support: Batch, steps: int, strategy: Any = None) -> Net:
    run = hft.train(
        start.optimizer, start.loss, start.params, [support] * steps, hparams=start.hparams, strategy=strategy
    )
    return start.whole(run.params)


@torch.no_grad()
def accuracies(adapt: Adaptation, learned: Learned, episodes: Both, marks: Sequence[int]) -> Tensor:
    """Share of the query that is right after so many steps, in rising order: [episode, mark]."""

    def one(support: Batch, query: Batch) -> Tensor:
        begin, state, done, found = adapt(learned), None, 0, []
        params = begin.params
        for mark in marks:
            if mark > done:
                run = hft.train(
                    begin.optimizer, begin.loss, params, [support] * (mark - done), hparams=begin.hparams, state=state
                )
                params, state, done = run.params, run.state, mark
            found.append(right(begin.whole(params), query))
        return torch.stack(found)

    return torch.func.vmap(one, chunk_size=CHUNK)(*episodes)
