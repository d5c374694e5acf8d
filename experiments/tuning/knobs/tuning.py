"""Choosing on held-out pictures: learning rates, and FTP's knobs by a grid and by hypergradients."""

import itertools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.tuning.knobs.config import Config
from experiments.tuning.knobs.optimizers import PLAIN, Knobs, with_knobs
from experiments.tuning.knobs.styles import Parts
from experiments.tuning.knobs.tail import Trainee, Weights, orders

#: What is looked at, by roles of the held-out pictures; all count alike.
SOURCES: Mapping[str, tuple[str, ...]] = {"other": ("other",), "own": ("own",), "both": ("own", "other")}

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
        losses = {str(lr): self.held_out(make(self.config, lr, self.anchor)) for lr in self.config.lrs}
        return {"losses": losses, "seconds": time.perf_counter() - begin}

    def search(self, looked_at: Sequence[Knobs]) -> dict:
        """Held-out losses at some points, and what they took."""
        begin = time.perf_counter()
        losses = [self.held_out(with_knobs(self.config, self.anchor, knobs)) for knobs in looked_at]
        seconds = time.perf_counter() - begin
        return {"points": [list(knobs) for knobs in looked_at], "losses": losses, "seconds": seconds}

    def bilevel(self, source: str) -> dict:
        """The way of the knobs, and the held-out loss and its hypergradients at each point of it but the last."""
        config, begin = self.config, time.perf_counter()
        start = Knobs(config.lr, config.radius_lr, config.kappa)
        records = hft.bilevel(
            with_knobs(config, self.anchor, start),
            hft.scheduled(hft.adam(lr=config.outer_lr, betas=(0.5, 0.99)), lr=hft.schedules.cosine(config.rounds)),
            Knobs._fields,
            self.trainee.loss,
            lambda weights, parts: torch.stack([self.trainee.loss(weights, rows) for rows in parts]).mean(),
            self.anchor,
            self.batches(tested=False),
            [[self.parts.held_out[role] for role in SOURCES[source]]],
            inner_steps=config.steps,
            outer_steps=config.rounds,
            strategy=hft.Unroll(),
            constrain={"lr": "log", "radius_lr": "log", "kappa": "logit"},
            reset=self.anchor,
            not_finite="skip",
        )
        way, values, slopes = [list(start)], [], []
        with warnings.catch_warnings():
            # Where no radius was asked to shrink, kappa has not acted, and its hypergradient is 0 indeed.
            warnings.filterwarnings("ignore", "the hypergradient of", UserWarning)
            for record in records:
                way.append([rounded(record.tuned[name].item()) for name in Knobs._fields])
                slopes.append([finite(record.hypergradient[name].item()) for name in Knobs._fields])
                values.append(finite(record.value))
        return {"way": way, "values": values, "slopes": slopes, "seconds": time.perf_counter() - begin}


def grid(config: Config) -> list[Knobs]:
    return [Knobs(*point) for point in itertools.product(config.lrs, config.radius_lrs, config.kappas)]


def draws(config: Config, seed: int) -> list[Knobs]:
    """Of the random search: evenly in the logarithm of both rates, and in kappa, between the ends of the grid."""
    generator = torch.Generator().manual_seed(seed)
    even = torch.rand(config.tries, 3, generator=generator, dtype=torch.float64).tolist()

    def between(values: Sequence[float], share: float) -> float:
        return rounded(min(values) + share * (max(values) - min(values)))

    def in_log(values: Sequence[float], share: float) -> float:
        return rounded(min(values) * (max(values) / min(values)) ** share)

    ranges = config.lrs, config.radius_lrs, config.kappas
    return [Knobs(in_log(ranges[0], lr), in_log(ranges[1], radius), between(ranges[2], k)) for lr, radius, k in even]


def of_source(losses: Losses, source: str) -> float:
    """What is to be small; infinite for a training that diverged."""
    chosen = [losses[role] for role in SOURCES[source]]
    return math.inf if None in chosen else sum(x for x in chosen if x is not None) / len(chosen)


def best_rate(losses: Mapping[str, Losses], source: str) -> float:
    """Of equals the first."""
    return float(min(losses, key=lambda lr: of_source(losses[lr], source)))


def best_round(values: Sequence[float | None]) -> int:
    """Of bilevel: the round that began with the best knobs."""
    return min(range(len(values)), key=lambda k: math.inf if (value := values[k]) is None else value)


def best_point(losses: Sequence[Losses], source: str) -> int:
    """The number of a point; of equals the first, which in the grid has the larger kappa, as FTP's default."""
    return min(range(len(losses)), key=lambda number: of_source(losses[number], source))


def finite(x: float) -> float | None:
    return rounded(x) if math.isfinite(x) else None


def rounded(x: float) -> float:
    """As many digits as a report can need."""
    return float(f"{x:.6g}")
