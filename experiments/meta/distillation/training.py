"""Two small networks, training of several new ones at once, and what they then know."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples, generator
from experiments.common.small_networks import stretches
from experiments.meta.distillation.config import CHOICE_INITS, TEST_INITS
from experiments.meta.distillation.data import Task

MOMENTUM = 0.9
Params = dict[str, Tensor]
Shape = tuple[int, int, int]  # channels, height, width


class Network(NamedTuple):
    """As a function of its weights."""

    sizes: Callable[[Shape, int], dict[str, tuple[int, ...]]]  # of the weights, by picture shape and classes
    logits: Callable[[Params, Tensor], Tensor]  # of one network, for pictures [N, *Shape]

    def new(self, shape: Shape, classes: int, count: int, generator: Generator) -> Params:
        """Weights of `count` networks: normal, with a variance of 1 / inputs; biases 0."""
        made = {}
        for name, size in self.sizes(shape, classes).items():
            made[name] = torch.randn(count, *size, generator=generator) / math.sqrt(math.prod(size[1:]))
            made[name + ".bias"] = torch.zeros(count, size[0])
        return made


def _mlp_sizes(shape: Shape, classes: int) -> dict[str, tuple[int, ...]]:
    return {"hidden": (64, math.prod(shape)), "out": (classes, 64)}


def _mlp(p: Params, x: Tensor) -> Tensor:
    hidden = F.silu(F.linear(x.flatten(1), p["hidden"], p["hidden.bias"]))
    return F.linear(hidden, p["out"], p["out.bias"])


def _convolutional_sizes(shape: Shape, classes: int) -> dict[str, tuple[int, ...]]:
    channels, height, width = shape
    return {
        "first": (8, channels, 3, 3),
        "second": (16, 8, 4, 4),
        "out": (classes, 16 * (height // 4) * (width // 4)),
    }


def _convolutional(p: Params, x: Tensor) -> Tensor:
    x = F.avg_pool2d(F.silu(F.conv2d(x, p["first"], p["first.bias"], padding=1)), 2)
    x = F.silu(F.conv2d(x, p["second"], p["second.bias"], padding=1, stride=2))
    return F.linear(x.flatten(1), p["out"], p["out.bias"])


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(_mlp_sizes, _mlp),
    "convolutional": Network(_convolutional_sizes, _convolutional),
}


class Balanced(Sequence[Examples]):
    """Batches with equally many examples of each class, drawn anew for each place; the same each time it is read."""

    def __init__(self, examples: Examples, size: int, count: int, *seed: object) -> None:
        self._examples, self._count, self._seed = examples, count, seed
        labels = range(int(examples.y.max()) + 1)
        self._each = max(1, size // len(labels))
        self._places = [(examples.y == label).nonzero().flatten() for label in labels]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Examples:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= place < self._count:
            raise IndexError(place)
        drawn = generator(*self._seed, place)
        rows = [own[torch.randint(len(own), (self._each,), generator=drawn)] for own in self._places]
        return self._examples.take(torch.cat(rows))


class Choice(NamedTuple):
    lr: float
    steps: int
    validation: float  # accuracy in %


class Learner(NamedTuple):
    """A task and the network that is to learn it. Weights are those of several networks, stacked."""

    task: Task
    network: str

    def new(self, count: int, *seed: object) -> Params:
        return NETWORKS[self.network].new(self.task.shape, len(self.task.classes), count, generator(*seed))

    def loss(self, params: Params, batch: Examples) -> Tensor:
        """Of one network."""
        return F.cross_entropy(NETWORKS[self.network].logits(params, self.task.standardised(batch.x)), batch.y)

    def losses(self, params: Params, batch: Examples) -> Tensor:
        """Of each network, [count]."""
        return torch.func.vmap(self.loss, in_dims=(0, None))(params, batch)

    def accuracy(self, params: Params, part: Examples) -> Tensor:
        """In %, of each network: the mean over the classes, so that a common class counts as much as a rare one."""
        logits = torch.func.vmap(NETWORKS[self.network].logits, in_dims=(0, None))
        right = (logits(params, self.task.standardised(part.x)).argmax(-1) == part.y).float()
        return 100 * torch.stack([right[:, part.y == label].mean(1) for label in part.y.unique()]).mean(0)

    def trained(self, params: Params, lrs: Tensor, batches: Sequence[Examples], stops: Sequence[int]) -> list[Params]:
        """The networks, each trained at its own rate, after each of so many steps (in rising order)."""
        optimizer = hft.sgd(momentum=MOMENTUM)
        drawn = [batches[k] for k in range(stops[-1])]  # here, since vmap refuses random numbers

        def one(params: Params, lr: Tensor) -> list[Params]:
            hparams = {**optimizer.hparams, "lr": lr}
            return [ended for _, ended in stretches(optimizer, self.loss, params, drawn, stops, hparams)]

        with torch.no_grad():
            return torch.func.vmap(one)(params, lrs)

    def chosen(self, batches: Sequence[Examples], lrs: Sequence[float], stops: Sequence[int], *seed: object) -> Choice:
        """Rate and steps with the best mean accuracy on validation pictures; of equals the smallest."""
        fresh = self.new(CHOICE_INITS, *seed, "choice")
        params = {name: w.repeat(len(lrs), *[1] * (w.ndim - 1)) for name, w in fresh.items()}
        rates = torch.tensor(lrs).repeat_interleave(CHOICE_INITS)
        found = []
        for steps, ended in zip(stops, self.trained(params, rates, batches, stops), strict=True):
            scores = self.accuracy(ended, self.task.validation).reshape(len(lrs), CHOICE_INITS).mean(1)
            found += [Choice(lr, steps, score) for lr, score in zip(lrs, scores.tolist(), strict=True)]
        return max(sorted(found), key=lambda choice: choice.validation)

    def tested(self, batches: Sequence[Examples], lr: float, steps: int, *seed: object) -> float:
        """Mean accuracy of new networks."""
        params = self.new(TEST_INITS, *seed, "test")
        (ended,) = self.trained(params, torch.full((TEST_INITS,), lr), batches, [steps])
        return self.accuracy(ended, self.task.test).mean().item()


def labelled(pictures: Tensor, classes: int) -> Examples:
    """Pictures in the order of their classes, equally many of each."""
    return Examples(pictures, torch.arange(classes).repeat_interleave(len(pictures) // classes))
