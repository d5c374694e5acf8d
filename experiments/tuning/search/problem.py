"""What is tuned: a training run, its hyperparameters with their usual values and ranges, and the numbers that people
would search in their place."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import Params, accuracy
from hyperopt_ftp import tree

Values = dict[str, Any]  # by path in the hparams: a tensor, or a tree of 0-d ones


@dataclass(frozen=True)
class Knob:
    """A hyperparameter, of one number or of many, and the range that a search looks for each of them in.

    `scale` is where ranges are uniform and where hypergradient methods move: the logarithm, or for what lies in (0, 1)
    the logit.
    """

    default: Any  # a tensor, or a tree of 0-d ones
    low: float
    high: float
    scale: Literal["log", "logit"] = "log"

    @property
    def size(self) -> int:
        return sum(x.numel() for x in tree.leaves(self.default))

    @property
    def free_range(self) -> tuple[float, float]:
        if self.scale == "log":
            return math.log(self.low), math.log(self.high)
        return math.log(self.low / (1 - self.low)), math.log(self.high / (1 - self.high))

    def natural(self, free: Tensor) -> Tensor:
        return free.exp() if self.scale == "log" else free.sigmoid()

    def draw(self, generator: torch.Generator) -> Any:
        low, high = self.free_range
        return tree.map_tree(
            lambda x: self.natural(low + (high - low) * torch.rand(x.shape, generator=generator)), self.default
        )


@dataclass(frozen=True)
class Box:
    """A few named numbers that stand for all hyperparameters: what a search is given."""

    knobs: Mapping[str, Knob]  # each of one number
    expand: Callable[[Mapping[str, Tensor]], Values]
    about: str

    def draw(self, generator: torch.Generator) -> Values:
        return self.expand({name: knob.draw(generator) for name, knob in self.knobs.items()})


class Trial(NamedTuple):
    """One full training."""

    loss: float  # on the validation part; NaN where it diverged
    params: Params
    values: Values  # what it was trained with


@dataclass(frozen=True)
class Problem:
    optimizer: hft.Optimizer
    train_loss: Callable[..., Tensor]  # (params, batch), and the loss's own hyperparameters where it has any
    predict: Callable[[Params, Tensor], Tensor]  # logits
    params: Params  # where training starts
    batches: list[Any]  # one for each step
    validation: Examples
    test: Examples
    space: Mapping[str, Knob]  # by path in the hparams
    few: Box
    own: Mapping[str, Any] | None = None  # the loss's hyperparameters
    seed: int = 0

    @property
    def size(self) -> int:
        return sum(knob.size for knob in self.space.values())

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def default(self) -> Values:
        return {path: knob.default for path, knob in self.space.items()}

    def hparams(self, values: Values) -> dict[str, Any]:
        full = dict(self.optimizer.hparams) | ({} if self.own is None else {"loss": self.own})
        for path, value in values.items():
            full = tree.replaced(full, path, value)
        return full

    def loss(self, params: Params, examples: Examples) -> Tensor:
        return torch.nn.functional.cross_entropy(self.predict(params, examples.x), examples.y)

    def train(self, values: Values) -> Trial:
        run = hft.train(self.optimizer, self.train_loss, self.params, self.batches, hparams=self.hparams(values))
        return self.trial(run.params, values)

    @torch.no_grad()
    def trial(self, params: Params, values: Values) -> Trial:
        return Trial(self.loss(params, self.validation).item(), params, values)

    @torch.no_grad()
    def tested(self, params: Params) -> tuple[float, float]:
        """Loss, and accuracy in percent, on the test part."""
        logits = self.predict(params, self.test.x)
        return torch.nn.functional.cross_entropy(logits, self.test.y).item(), accuracy(logits, self.test.y)

    def generator(self) -> torch.Generator:
        """What a contender draws by: the same draws for all of them."""
        return torch.Generator().manual_seed(self.seed)


def as_it_is(space: Mapping[str, Knob]) -> Box:
    """Where the hyperparameters are few themselves."""
    return Box(space, dict, "the hyperparameters themselves")


def one(default: float, low: float, high: float, scale: Literal["log", "logit"] = "log") -> Knob:
    return Knob(torch.tensor(default), low, high, scale)


LR = {"lr": one(0.1, 1e-4, 10.0)}  # of SGD with momentum 0.9

ADAM = {
    "lr": one(1e-3, 1e-5, 1.0),
    "betas.0": one(0.9, 0.5, 0.99, "logit"),
    "betas.1": one(0.999, 0.8, 0.9999, "logit"),
    "eps": one(1e-8, 1e-10, 1e-2),
    "weight_decay": one(1e-2, 1e-4, 1.0),
}
