"""Hyperparameters with their usual values and ranges."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.tuning.search.problem import Box, Knob, Values


def one(default: float, low: float, high: float, scale: str = "log") -> Knob:
    return Knob(torch.tensor(default), low, high, "logit" if scale == "logit" else "log")


LR = {"lr": one(0.1, 1e-4, 10.0)}  # of SGD with momentum 0.9

ADAM = {
    "lr": one(1e-3, 1e-5, 1.0),
    "betas.0": one(0.9, 0.5, 0.99, "logit"),
    "betas.1": one(0.999, 0.8, 0.9999, "logit"),
    "eps": one(1e-8, 1e-10, 1e-2),
    "weight_decay": one(1e-2, 1e-4, 1.0),
}


def warm_up_and_cosine(peak: Tensor, share: Tensor, steps: int) -> Tensor:
    """A learning rate for each step, above 0 throughout: linear to `peak` over a share of the steps, then a cosine."""
    at = (torch.arange(steps) + 0.5) / steps
    falling = (1 + torch.cos(math.pi * (at - share) / (1 - share))) / 2
    return peak * torch.where(at < share, at / share, falling)


def schedule(steps: int) -> tuple[dict[str, Knob], Box]:
    """A table of learning rates; as few numbers, warm-up and cosine."""

    def expand(numbers: Mapping[str, Tensor]) -> Values:
        return {"lr": warm_up_and_cosine(numbers["peak"], numbers["warm-up"], steps)}

    few = {"peak": one(0.1, 1e-3, 10.0), "warm-up": one(0.1, 0.02, 0.6, "logit")}
    default = expand({name: knob.default for name, knob in few.items()})["lr"]
    about = "the peak of a cosine and the share of warm-up before it"
    return {"lr": Knob(default, 1e-4, 10.0)}, Box(few, expand, about)
