"""A problem of 30 steps with given gradients, and the ways of a transcription and of an optimizer through it."""

from __future__ import annotations

import numpy as np
import torch

import hyperopt_ftp as hft

from .family import LR, MOMENTUM, Adam, Method, Sgd

BASES = {
    "sgd": (lambda: hft.sgd(lr=LR, momentum=MOMENTUM), lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM), Sgd),
    "adam": (lambda: hft.adam(lr=LR), lambda p: torch.optim.Adam(p, lr=LR), Adam),
}

SHAPES = {"weight": (3, 4), "bias": (4,), "conv": (2, 2, 3, 3)}


def problem(seed: int = 0, steps: int = 30) -> tuple[dict, dict, list[dict]]:
    """Anchors, first weights off them, and gradients that turn around, slowly and then at each step."""
    random = np.random.default_rng(seed)
    anchor = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    first = {name: w + 0.1 * random.normal(size=w.shape) for name, w in anchor.items()}
    drift = {name: random.normal(size=w.shape) for name, w in anchor.items()}
    grads = [
        {n: np.cos(t / 4 if t < 10 else 2.4 * t) * drift[n] + 0.5 * random.normal(size=drift[n].shape) for n in drift}
        for t in range(steps)
    ]
    return anchor, first, grads


def trajectory(method: Method, base: str, seed: int = 0) -> list[dict]:
    """Weights after each step, by the transcription."""
    anchor, weights, grads = problem(seed)
    steps = {name: (method.transcribed(), BASES[base][2]()) for name in anchor}
    found = []
    for g in grads:
        weights = {n: steps[n][0](w, anchor[n], g[n], steps[n][1]) for n, w in weights.items()}
        found.append(weights)
    return found


def tensors(arrays: dict) -> dict:
    """In the dtype of the arrays, by the same names."""
    return {name: torch.tensor(x) for name, x in arrays.items()}


def parameters(arrays: dict, dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Parameter]:
    """In that dtype, by the same names."""
    return {name: torch.nn.Parameter(torch.tensor(x).to(dtype)) for name, x in arrays.items()}


def play(params: dict, opt, grads: list[dict]):
    """A step for each of the gradients, of which some may be ``None``; gives its number after each."""
    for t, g in enumerate(grads):
        for name, p in params.items():
            p.grad = None if g[name] is None else torch.tensor(g[name]).to(p.dtype)
        opt.step()
        yield t
