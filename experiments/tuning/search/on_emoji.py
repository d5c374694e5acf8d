"""Problems on the last blocks of EfficientNet-Lite0, which is fine-tuned on Twemoji; the blocks before are frozen."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

import hyperopt_ftp as hft
from experiments.common.examples import Examples, split
from experiments.common.frozen import Features, Tail
from experiments.tuning.search.networks import order
from experiments.tuning.search.problem import Box, Knob, Params, Problem, Values, as_it_is
from experiments.tuning.search.spaces import ADAM, one

SIZES = {"train": 700, "validation": 300, "test": 350}
LAST, LATE = 15, 13  # of the blocks 0 to 15: what is trained begins there
STYLE = "Twemoji"
LR = {"lr": one(0.01, 1e-5, 1.0)}  # of SGD with momentum 0.9; usual when fine-tuning


def learning_rate(features: Features, seed: int) -> Problem:
    return _problem("emoji, learning rate", features, LAST, seed, 30, hft.sgd(momentum=0.9), LR, as_it_is(LR))


def adam(features: Features, seed: int) -> Problem:
    return _problem("emoji, Adam's five", features, LAST, seed, 30, hft.adamw(), ADAM, as_it_is(ADAM))


def layers(features: Features, seed: int) -> Problem:
    """A learning rate for each tensor of the last three blocks, the last convolution and the head."""
    names = list(_network(features, LATE)[1])
    depths = {name: depth_of(name, LATE) for name in names}

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        return {"lr": {name: numbers["lr"] * numbers["decay"] ** depth for name, depth in depths.items()}}

    few = Box(
        {"lr": LR["lr"], "decay": one(0.9, 0.05, 0.99, "logit")}, expand,
        "the learning rate of the head and its decay from block to block before it",
    )  # fmt: skip
    space = {"lr": Knob({name: LR["lr"].default.clone() for name in names}, 1e-5, 1.0)}
    return _problem("emoji, learning rate of each tensor", features, LATE, seed, 12, hft.sgd(momentum=0.9), space, few)


def depth_of(name: str, first: int) -> int:
    """Blocks between a tensor and the head: 0 for the head itself, 1 for the last convolution."""
    part, number, *_ = name.split(".")
    return {"head": 0, "last": 1}[part] if part != "blocks" else 17 - first - int(number)


def one_of_each(features: Features) -> Examples:
    """Pictures of the style, one of each group of near-duplicates: none is in two parts of a split."""
    style, seen, chosen = features.style_names.index(STYLE), set(), []
    for number, (group, own) in enumerate(zip(features.groups, features.styles.tolist(), strict=True)):
        if own == style and group not in seen:
            seen.add(group)
            chosen.append(number)
    index = torch.tensor(chosen)
    return Examples(features.x[index], features.labels[index])


def _network(features: Features, block: int) -> tuple[Tail, Params]:
    tail = Tail(block, len(features.classes))
    return tail, {name: x.detach() for name, x in tail.named_parameters()}


def _problem(
    name: str, features: Features, block: int, seed: int, steps: int, optimizer: hft.Optimizer,
    space: dict[str, Knob], few: Box,
) -> Problem:  # fmt: skip
    tail, params = _network(features, block)
    parts, generator = split(one_of_each(features), SIZES, seed), torch.Generator().manual_seed(seed)

    def predict(p: Params, x: Tensor) -> Tensor:
        return functional_call(tail, p, (x,))

    def loss(p: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(predict(p, batch[0]), batch[1])

    batches = [tuple(parts["train"].take(index)) for index in order(SIZES["train"], steps, 16, generator)]
    return Problem(
        name, optimizer, loss, predict, params, batches, parts["validation"], parts["test"], space, few, seed=seed
    )
