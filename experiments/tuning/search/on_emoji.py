"""Problems on EfficientNet-Lite0, which is fine-tuned on Twemoji: its last block behind frozen ones, or all of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

import hyperopt_ftp as hft
from experiments.classification.data import Pictures
from experiments.classification.emoji import emoji_pictures
from experiments.classification.model import Classifier
from experiments.common.examples import Examples, split
from experiments.common.frozen import BLOCKS, Tail
from experiments.common.progress import Progress
from experiments.common.small_networks import Params, cross_entropy, passes
from experiments.tuning.search.problem import ADAM, Box, Knob, Problem, Values, as_it_is, one

SIZES = {"train": 700, "validation": 300, "test": 350}
LAST = 15  # of the blocks 0 to 15: what is trained begins there, where it is not all of the network
SMALL = 32  # pixels of the pictures, where it is
BATCH = 16
STYLE = "Twemoji"
LR = {"lr": one(0.01, 1e-5, 1.0)}  # of SGD with momentum 0.9; usual when fine-tuning


def learning_rate(features: Pictures, seed: int) -> Problem:
    sgd = hft.sgd(momentum=0.9)
    return _problem(features, _tail(features), seed, 30, sgd, LR, as_it_is(LR))


def adam(features: Pictures, seed: int) -> Problem:
    return _problem(features, _tail(features), seed, 30, hft.adamw(), ADAM, as_it_is(ADAM))


def layers(pictures: Pictures, seed: int) -> Problem:
    """A learning rate for each tensor of the whole network."""
    network = Classifier(len(pictures.classes), SMALL, dropout=0.0).eval()
    depths = {name: depth_of(name) for name, _ in network.named_parameters()}

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        return {"lr": {name: numbers["lr"] * numbers["decay"] ** depth for name, depth in depths.items()}}

    few = Box(
        {"lr": LR["lr"], "decay": one(0.9, 0.3, 0.99, "logit")}, expand,
        "the learning rate of the head and its decay from block to block before it",
    )  # fmt: skip
    space = {"lr": Knob({name: LR["lr"].default.clone() for name in depths}, 1e-5, 1.0)}
    sgd = hft.sgd(momentum=0.9)
    return _problem(pictures, network, seed, 10, sgd, space, few)


def depth_of(name: str) -> int:
    """Blocks between a tensor and the head: 0 for the head itself, 1 for the last convolution."""
    _, part, number, *_ = name.split(".")
    ends = {"_fc": 0, "_conv_head": 1, "_bn1": 1, "_conv_stem": BLOCKS + 2, "_bn0": BLOCKS + 2}
    return ends[part] if part != "_blocks" else BLOCKS + 1 - int(number)


def small_pictures(cache: Path, progress: Progress) -> Pictures:
    """The emoji as they are, but small: means of 2 x 2 pixels, from 0 to 255."""
    drawn = emoji_pictures(cache, progress)
    x = nn.functional.avg_pool2d(drawn.images.float(), drawn.images.shape[-1] // SMALL)
    return replace(drawn, images=x)


def one_of_each(features: Pictures) -> Examples:
    """Pictures of the style, one of each group of near-duplicates: none is in two parts of a split."""
    style, seen, chosen = features.domain_names.index(STYLE), set(), []
    for number, (group, own) in enumerate(zip(features.groups, features.domains.tolist(), strict=True)):
        if own == style and group not in seen:
            seen.add(group)
            chosen.append(number)
    index = torch.tensor(chosen)
    return Examples(features.images[index], features.labels[index])


def _tail(features: Pictures) -> Tail:
    return Tail(LAST, len(features.classes))


def _problem(
    features: Pictures, network: nn.Module, seed: int, steps: int, optimizer: hft.Optimizer,
    space: dict[str, Knob], few: Box,
) -> Problem:  # fmt: skip
    params = {name: x.detach() for name, x in network.named_parameters()}
    parts, generator = split(one_of_each(features), SIZES, seed), torch.Generator().manual_seed(seed)

    def predict(p: Params, x: Tensor) -> Tensor:
        return functional_call(network, p, (x,))

    batches = [tuple(parts["train"].take(index)) for index in passes(SIZES["train"], steps, BATCH, generator)]
    return Problem(
        optimizer, cross_entropy(predict), predict, params, batches, parts["validation"], parts["test"], space,
        few, seed=seed,
    )  # fmt: skip
