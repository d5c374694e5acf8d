"""Fine-tuning the end of the network, and choosing: learning rates, and FTP's knobs by searches and hypergradients."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperopt_ftp as hft
from experiments.classification.data import Pictures
from experiments.common.frozen import BLOCKS, Tail
from experiments.common.small_networks import accuracy, passes
from experiments.tuning.knobs.config import ANCHOR_LR, HIGHEST, LOWEST, OUTER_LR, START, Config, Knobs
from experiments.tuning.knobs.styles import Parts

Weights = dict[str, Tensor]
Make = Callable[[int, float, Weights], hft.Optimizer]  # of the steps, a learning rate and the anchor


def base(steps: int, lr: float) -> hft.Optimizer:
    """Without weight decay: nothing but FTP is to hold the weights."""
    return hft.scheduled(hft.adamw(lr=lr, weight_decay=0.0), lr=hft.schedules.cosine(steps))


def with_knobs(steps: int, anchor: Weights, knobs: Knobs) -> hft.Optimizer:
    return hft.ftp(base(steps, knobs.lr), anchor, radius_lr=knobs.radius_lr, kappa=knobs.kappa)


#: Those whose only choice is the learning rate.
PLAIN: Mapping[str, Make] = {
    "adamw": lambda steps, lr, anchor: base(steps, lr),
    "ftp": lambda steps, lr, anchor: hft.ftp(base(steps, lr), anchor),
    "ftp_exact": lambda steps, lr, anchor: hft.ftp(base(steps, lr), anchor, gradient="exact"),
}


class Score(NamedTuple):
    """On some pictures."""

    accuracy: float  # %
    loss: float  # cross-entropy


class Trainee:
    """The trained end of the network as a pure function of its weights. A batch is the numbers of its rows: features
    stay in one place."""

    def __init__(self, features: Pictures) -> None:
        self._x, self._y = features.images, features.labels
        self._tail = Tail(BLOCKS, len(features.classes))
        self.fresh: Weights = {name: p.detach().clone() for name, p in self._tail.named_parameters()}

    def _logits(self, weights: Weights, rows: Tensor) -> Tensor:
        return torch.func.functional_call(self._tail, weights, (self._x[rows],))

    def loss(self, weights: Weights, rows: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(weights, rows), self._y[rows])

    @torch.no_grad()
    def score(self, weights: Weights, rows: Tensor) -> Score:
        logits, truth = self._logits(weights, rows), self._y[rows]
        return Score(accuracy(logits, truth), F.cross_entropy(logits, truth).item())

    @torch.no_grad()
    def trained(self, optimizer: hft.Optimizer, start: Weights, batches: list[Tensor]) -> Weights:
        return hft.train(optimizer, self.loss, start, batches).params

    def anchor(self, config: Config, pretrain: Tensor, seed: int) -> Weights:
        """Trained on all styles."""
        optimizer = hft.scheduled(hft.adamw(lr=ANCHOR_LR), lr=hft.schedules.cosine(config.anchor_steps))
        return self.trained(optimizer, self.fresh, orders(pretrain, config.anchor_steps, config.batch_size, seed))


def orders(rows: Tensor, steps: int, size: int, seed: int) -> list[Tensor]:
    """Batches of whole passes, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [rows[part] for part in passes(len(rows), steps, min(size, len(rows)), generator)]


#: Held-out pictures that choices are made on, by their role.
SOURCES = ("other", "own")

Losses = Mapping[str, float | None]  # by role; None where it is not finite


@dataclass(frozen=True)
class Tuner:
    """Of one seed and style."""

    config: Config
    trainee: Trainee
    parts: Parts
    anchor: Weights
    seed: int  # of the orders

    def batches(self, tested: bool) -> list[Tensor]:
        """All choices are made with one order, so that their held-out losses compare; what is tested has another."""
        return orders(self.parts.train, self.config.steps, self.config.batch_size, 2 * self.seed + tested)

    def held_out(self, optimizer: hft.Optimizer) -> Losses:
        """Cross-entropy after a fine-tuning."""
        weights = self.trainee.trained(optimizer, self.anchor, self.batches(tested=False))
        return {role: finite(self.trainee.score(weights, rows).loss) for role, rows in self.parts.held_out.items()}

    def rates(self, method: str) -> dict:
        """Held-out losses by learning rate, and what they took."""
        make, begin = PLAIN[method], time.perf_counter()
        losses = {str(lr): self.held_out(make(self.config.steps, lr, self.anchor)) for lr in self.config.lrs}
        return {"losses": losses, "seconds": time.perf_counter() - begin}

    def search(self, looked_at: Sequence[Knobs]) -> dict:
        """Held-out losses at some points, and what they took."""
        begin = time.perf_counter()
        losses = [self.held_out(with_knobs(self.config.steps, self.anchor, knobs)) for knobs in looked_at]
        seconds = time.perf_counter() - begin
        return {"points": [list(knobs) for knobs in looked_at], "losses": losses, "seconds": seconds}

    def bilevel(self, source: str) -> dict:
        """The way of the knobs, and the held-out loss and its hypergradients at each point of it but the last."""
        config, begin = self.config, time.perf_counter()
        records = hft.bilevel(
            with_knobs(config.steps, self.anchor, START),
            hft.scheduled(hft.adam(lr=OUTER_LR, betas=(0.5, 0.99)), lr=hft.schedules.cosine(config.rounds)),
            Knobs._fields,
            self.trainee.loss,
            self.trainee.loss,
            self.anchor,
            self.batches(tested=False),
            [self.parts.held_out[source]],
            inner_steps=config.steps,
            outer_steps=config.rounds,
            strategy=hft.Unroll(),
            constrain={"lr": "log", "radius_lr": "log", "kappa": "logit"},
            reset=self.anchor,
            not_finite="skip",
        )
        way, values, slopes = [list(START)], [], []
        with warnings.catch_warnings():
            # Where no radius was asked to shrink, kappa has not acted, and its hypergradient is 0 indeed.
            warnings.filterwarnings("ignore", "the hypergradient of", UserWarning)
            for record in records:
                way.append([rounded(record.tuned[name].item()) for name in Knobs._fields])
                slopes.append([finite(record.hypergradient[name].item()) for name in Knobs._fields])
                values.append(finite(record.value))
        return {"way": way, "values": values, "slopes": slopes, "seconds": time.perf_counter() - begin}


def draws(config: Config, seed: int) -> list[Knobs]:
    """Of the random search: evenly in the logarithm of both rates, and in kappa."""
    generator = torch.Generator().manual_seed(seed)
    even = torch.rand(config.tries, 3, generator=generator, dtype=torch.float64).tolist()

    def in_log(low: float, high: float, share: float) -> float:
        return rounded(low * (high / low) ** share)

    return [
        Knobs(
            in_log(LOWEST.lr, HIGHEST.lr, lr),
            in_log(LOWEST.radius_lr, HIGHEST.radius_lr, radius),
            rounded(LOWEST.kappa + kappa * (HIGHEST.kappa - LOWEST.kappa)),
        )
        for lr, radius, kappa in even
    ]


def of_source(losses: Losses, source: str) -> float:
    """What is to be small; infinite for a training that diverged."""
    return math.inf if (loss := losses[source]) is None else loss


def best_rate(losses: Mapping[str, Losses], source: str) -> float:
    """Of equals the first."""
    return float(min(losses, key=lambda lr: of_source(losses[lr], source)))


def best_round(values: Sequence[float | None]) -> int:
    """Of bilevel: the round that began with the best knobs."""
    return min(range(len(values)), key=lambda k: math.inf if (value := values[k]) is None else value)


def best_point(losses: Sequence[Losses], source: str) -> int:
    """The number of a point; of equals the first."""
    return min(range(len(losses)), key=lambda number: of_source(losses[number], source))


def finite(x: float) -> float | None:
    return rounded(x) if math.isfinite(x) else None


def rounded(x: float) -> float:
    """As many digits as a report can need."""
    return float(f"{x:.6g}")
