"""What is compared: how the loss of a batch is made of the losses of its examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.common.examples import generator

NET = 100  # hidden units of the Meta-Weight-Net, as in its paper
Params = dict[str, Tensor]


def network(inputs: int, hidden: int, outputs: int, drawn: torch.Generator) -> Params:
    """What is trained, of one hidden layer: He's normal weights below the ReLU, and smaller ones above it."""
    return {
        "below": torch.randn(inputs, hidden, generator=drawn) * (2 / inputs) ** 0.5,
        "below_bias": torch.zeros(hidden),
        "above": torch.randn(hidden, outputs, generator=drawn) / hidden**0.5,
        "above_bias": torch.zeros(outputs),
    }


def logits(params: Params, x: Tensor) -> Tensor:
    """Shape (rows, outputs), of x with shape (rows, inputs)."""
    hidden = torch.relu(torch.addmm(params["below_bias"], x, params["below"]))
    return torch.addmm(params["above_bias"], hidden, params["above"])


class Batch(NamedTuple):
    """One step. Examples are given by their places, so that a list of batches is small."""

    noisy: Tensor  # places in the noisy set
    clean: Tensor  # places in the clean set
    kept: Tensor  # (): how many of the noisy examples small-loss selection keeps


class Seen(NamedTuple):
    """The noisy examples of a batch, as the network sees them."""

    logits: Tensor
    labels: Tensor  # as they were given
    batch: Batch
    number: float  # the method's own number, which is chosen as the learning rate is
    own: Any  # what the hypergradient moves; None where there is nothing

    @property
    def losses(self) -> Tensor:
        return F.cross_entropy(self.logits, self.labels, reduction="none")


def plain(seen: Seen) -> Tensor:
    return F.cross_entropy(seen.logits, seen.labels)


def smoothed(seen: Seen) -> Tensor:
    return F.cross_entropy(seen.logits, seen.labels, label_smoothing=seen.number)


def smallest(seen: Seen) -> Tensor:
    """The mean of the smallest losses (co-teaching, arXiv 1804.06872, with one network in place of two)."""
    return seen.losses.topk(int(seen.batch.kept), largest=False).values.mean()


def weighted_by_net(seen: Seen) -> Tensor:
    losses = seen.losses
    return _weighted(losses, net_weights(seen.own, losses))


def weighted_each(seen: Seen) -> Tensor:
    return _weighted(seen.losses, each_weights(seen.own)[seen.batch.noisy])


def net_weights(net: Any, losses: Tensor) -> Tensor:
    """Meta-Weight-Net (arXiv 1902.07379): from the loss of an example, as a constant, to its weight in (0, 1)."""
    return torch.sigmoid(logits(net, losses.detach()[:, None]))[:, 0]


def each_weights(own: Tensor) -> Tensor:
    """One number for each noisy example, to its weight in (0, 1)."""
    return torch.sigmoid(own)


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    # The sum is kept from 0, where all weights of a batch vanish.
    return (weights * losses).sum() / (weights.sum() + 1e-8)


def new_net(examples: int, seed: int) -> Any:
    """Nearly equal weights at first: a steep start, up or down by chance, decides what is learned. All numbers are even
    from -1 / sqrt(n) to 1 / sqrt(n), n the inputs of the layer: how `torch.nn.Linear` begins."""
    drawn = generator("weight net", seed)

    def even(*shape: int, of: int) -> Tensor:
        return (2 * torch.rand(shape, generator=drawn) - 1) / of**0.5

    return {
        "below": even(1, NET, of=1),
        "below_bias": even(NET, of=1),
        "above": even(NET, 1, of=NET),
        "above_bias": even(1, of=NET),
    }


def new_weights(examples: int, seed: int) -> Any:
    return torch.zeros(examples)


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    title: str
    about: str
    loss: Callable[[Seen], Tensor] = plain
    noisy: Literal["all", "right", "none"] = "all"  # which of the noisy examples it is given
    clean: bool = True  # whether it is trained on the clean examples too
    number: Literal["smoothing", "meta_lrs", "weight_lrs"] | None = None  # where the config has its own numbers to try
    start: Callable[[int, int], Any] | None = None  # what the hypergradient moves, of (noisy examples, seed)


METHODS: Mapping[str, Method] = {
    "noisy": Method("noisy", "the noisy examples alone", clean=False),
    "clean": Method("clean", "the clean examples alone", noisy="none"),
    "both": Method("noisy + clean", "both sets"),
    "smoothing": Method("label smoothing", "both sets, smoothed labels on the noisy one", smoothed, number="smoothing"),
    "small": Method("small-loss selection", "both sets; of the noisy one the share that should be right", smallest),
    "each_outer": Method(
        "weight per example", "a learned weight for each noisy example; the clean set only judges them",
        weighted_each, clean=False, number="weight_lrs", start=new_weights,
    ),
    "each": Method(
        "weight per example + clean", "the same, trained on the clean set as well",
        weighted_each, number="weight_lrs", start=new_weights,
    ),
    "net_outer": Method(
        "Meta-Weight-Net", "a learned function from loss to weight; the clean set only judges it",
        weighted_by_net, clean=False, number="meta_lrs", start=new_net,
    ),
    "net": Method(
        "Meta-Weight-Net + clean", "the same, trained on the clean set as well",
        weighted_by_net, number="meta_lrs", start=new_net,
    ),
    "oracle": Method("oracle", "both sets, without the wrong labels", noisy="right"),
}  # fmt: skip
