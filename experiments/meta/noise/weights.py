"""How well what a method has learned tells right labels from wrong ones."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.meta.noise.data import Problem
from experiments.meta.noise.methods import Method, each_weights, net_weights, smallest, weighted_by_net, weighted_each
from experiments.meta.noise.network import logits
from experiments.meta.noise.training import Training

BINS, HIGHEST = 20, 2.5  # of the relative weights; the last bin has all above
LOSSES = [0.25 * n for n in range(25)]  # where the learned function is looked at


def weights(problem: Problem, method: Method, found: Training, noise: float) -> dict[str, Any] | None:
    """Of the noisy examples, by the network and by what weighs them at the end; None where all count the same.

    Weights are relative: 1 is their mean. Since a loss is divided by its weights' sum, nothing else of them counts.
    """
    losses = F.cross_entropy(logits(found.params, problem.noisy.x), problem.noisy.y, reduction="none")
    if method.loss is smallest:
        kept = torch.zeros_like(losses)
        kept[losses.topk(round((1 - noise) * len(losses)), largest=False).indices] = 1
        own, score = kept, -losses
    elif method.loss is weighted_by_net:
        own = score = net_weights(found.own, losses)
    elif method.loss is weighted_each:
        own = score = each_weights(found.own)
    else:
        return None
    scale = own.mean().clamp(min=1e-8)
    told = {
        "auc": round(auc(score[problem.right], score[~problem.right]), 4),
        "right": _shares(own[problem.right] / scale),
        "wrong": _shares(own[~problem.right] / scale),
    }
    if method.loss is weighted_by_net:
        told["function"] = _rounded(net_weights(found.own, torch.tensor(LOSSES)) / scale)
    return told


def auc(right: Tensor, wrong: Tensor) -> float:
    """The chance that of a right and a wrong one the right one has the larger score; equal scores count half."""
    wrong = wrong.sort().values
    below, not_above = (torch.searchsorted(wrong, right, right=side) for side in (False, True))
    return float((below + not_above).double().mean()) / (2 * len(wrong))


def _shares(relative: Tensor) -> dict[str, Any]:
    """The mean, and the share of the examples in each bin."""
    places = (relative * (BINS / HIGHEST)).long().clamp(max=BINS - 1)
    return {
        "mean": round(float(relative.mean()), 4),
        "bins": _rounded(torch.bincount(places, minlength=BINS) / len(places)),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
