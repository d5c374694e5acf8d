"""The hypergradient in float64, and how far off rounding to float32 may put it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hyperopt_ftp as hft

from .by_autograd import BETAS
from .ours import optimizer_of, ours
from .problems import Problem

EPS = float(np.finfo(np.float32).eps)


def distance(found: np.ndarray, right: np.ndarray) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


def reference(problem: Problem) -> tuple[np.ndarray, float]:
    """The hypergradient in float64, and the relative distance within which one in float32 has to be.

    Measured is the change that rounding makes to first order: of the params, by half an ulp in each step (put on the
    initial ones, K times), and of Adam's bias corrections (``1 - 0.999`` has but four digits in float32). It counts
    fourfold, because there are other roundings of the same size in each step: of the gradient, the moments, and of the
    adjoints on the way back.
    """
    strategy = hft.Forward() if problem.over == "lr" else hft.Unroll()

    def of(which: Problem, opt: hft.Optimizer[Any]) -> np.ndarray:
        return ours(which, strategy, torch.float64, opt)().numpy()

    rng, size = np.random.default_rng(1), problem.steps * EPS / 2
    moved = {
        name: x.astype(np.float64) * (1 + size * rng.choice([-1.0, 1.0], x.shape)) for name, x in problem.params.items()
    }
    right = of(problem, optimizer_of(problem))
    rounded = of(replace(problem, params=moved), _rounded(problem))
    return right, 4 * max(distance(rounded, right), problem.steps * EPS)


def _rounded(problem: Problem) -> hft.Optimizer[Any]:
    """Adam whose bias corrections are float32: the same rule with another lr and eps in each step. SGD has none."""
    opt = optimizer_of(problem)
    if problem.rule == "sgd":
        return opt

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> Any:
        t = int(state.step) + 1
        first, second = ((1 - Tensor([b]) ** t).item() / (1 - b**t) for b in BETAS)
        changed = {**hparams, "lr": hparams["lr"] * second**0.5 / first, "eps": hparams["eps"] * second**0.5}
        return opt.update(grads, state, params, changed)

    return hft.Optimizer(opt.init, update, opt.hparams)
