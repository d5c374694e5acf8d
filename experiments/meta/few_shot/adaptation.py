"""The network, and how it is trained on the support of an episode: each way is one `hft.train`, batched by vmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.small_networks import stretches
from experiments.meta.few_shot.config import WAYS
from experiments.meta.few_shot.data import Batch, Both
from hyperopt_ftp import tree

CHUNK = 200  # episodes at once: more of them no longer fit into a cache
FIT_STEPS = 100  # of a linear head: more no longer change what it predicts
#: {"body": {"weight", "bias"}, "head": {"weight", "bias"}}: one hidden layer on frozen features, and a head of as many
#: outputs as there are ways; without a body the head reads the inputs.
Net = dict[str, Any]
Learned = dict[str, Any]  # what meta-training has made: {"net": Net} and, of Meta-SGD, "lr"


def head(inputs: int, outputs: int) -> Net:
    """Zero: all classes are equally likely."""
    return {"weight": torch.zeros(outputs, inputs), "bias": torch.zeros(outputs)}


def network(inputs: int, width: int, outputs: int, seed: int) -> Net:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, inputs, generator=generator) * inputs**-0.5
    return {"body": {"weight": weight, "bias": torch.zeros(width)}, "head": head(width, outputs)}


def hidden(net: Net, x: Tensor) -> Tensor:
    return F.gelu(F.linear(x, **net["body"])) if "body" in net else x  # smooth: it is differentiated twice


def logits(net: Net, x: Tensor) -> Tensor:
    return F.linear(hidden(net, x), **net["head"])


def loss(net: Net, batch: Batch) -> Tensor:
    return F.cross_entropy(logits(net, batch[0]), batch[1])


def right(net: Net, batch: Batch) -> Tensor:
    """Share of the pictures that are told right; 0 where the network has diverged."""
    found = logits(net, batch[0])
    return ((found.argmax(-1) == batch[1]) & found.isfinite().all(-1)).float().mean()


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
        begin = adapt(learned)
        batches = [support] * marks[-1]
        ways = stretches(begin.optimizer, begin.loss, begin.params, batches, marks, begin.hparams)
        return torch.stack([right(begin.whole(params), query) for _, params in ways])

    return torch.func.vmap(one, chunk_size=CHUNK)(*episodes)


def nearest_mean(both: Both, scale: Tensor, cosine: bool) -> Tensor:
    """Share of each episode's query that is nearest to the mean of its own class: [episode, 1]."""
    (support, _), (query, labels) = both
    support, query = support * scale, query * scale
    if cosine:
        support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
    means = rearrange(support, "e (way each) c -> e way each c", way=WAYS).mean(dim=2)
    return (torch.cdist(query, means).argmin(-1) == labels).float().mean(dim=1, keepdim=True)


def logistic(net: Net, inputs: Tensor, l2: float) -> Adaptation:
    """Logistic regression on what the body makes of the inputs. The rate is safe: the loss bends by at most half the
    squared norm, and the penalty by l2."""
    bend = 0.5 * hidden(net, inputs).square().sum(dim=1).mean().item() + l2
    return head_alone(0.5 / bend, l2, momentum=0.9)
