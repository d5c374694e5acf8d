"""The problems, as NumPy arrays: every contender starts from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Arrays = dict[str, np.ndarray]
Batch = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Problem:
    """K steps of training, an outer loss, and what its gradient is asked in."""

    what: str  # for people
    net: str  # a key of the losses
    rule: Literal["adam", "sgd"]
    over: Literal["lr", "params", "l2"]
    lr: float
    steps: int
    threads: int
    params: Arrays
    batches: list[Batch]  # one for each step, or one for all of them
    held_out: Batch
    eps: float = 1e-4
    l2: np.ndarray | None = None  # one coefficient for each weight
    tasks: int | None = None  # the first dimension of all data, where there are many trainings
    long: bool = False  # the graphs of all steps take gigabytes: of those that keep them, TorchOpt alone takes part

    def batch(self, step: int) -> Batch:
        return self.batches[step % len(self.batches)]


class _Draws:
    """Random arrays in float32."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def linear(self, name: str, into: int, out: int, bias: bool = True) -> Arrays:
        """Weight (out, into), and a bias."""
        found = {f"{name}_w": self.normal(out, into) / np.float32(into**0.5)}
        return found | ({f"{name}_b": self.normal(out) * np.float32(0.1)} if bias else {})

    def classes(self, count: int, *shape: int) -> np.ndarray:
        return self.rng.integers(count, size=shape)


def mlp(steps: int | None) -> Problem:
    draws, steps = _Draws(), steps or 64
    widths = (20, 64, 64, 5)
    params: Arrays = {}
    for k, (a, b) in enumerate(pairwise(widths)):
        params |= draws.linear(f"l{k}", a, b)
    data = [(draws.normal(32, 20), draws.classes(5, 32)) for _ in range(steps + 1)]
    what = f"MLP 20-64-64-5 (tanh), batch 32, {steps} steps of Adam, d/d lr"
    return Problem(what, "mlp", "adam", "lr", 1e-3, steps, 1, params, data[:-1], data[-1])


def _conv(steps: int) -> Problem:
    draws, widths = _Draws(), (3, 32, 64, 128)
    params: Arrays = {}
    for k, (a, b) in enumerate(pairwise(widths)):
        params[f"c{k}_w"] = draws.normal(b, a, 3, 3) / np.float32((9 * a) ** 0.5)
        params[f"c{k}_b"] = draws.normal(b) * np.float32(0.1)
    params |= draws.linear("out", 128 * 16, 10)
    data = [(draws.normal(64, 3, 32, 32), draws.classes(10, 64)) for _ in range(steps + 1)]
    what = f"conv net 32-64-128 (tanh), 64 pictures of 32 x 32, {steps} steps of Adam, d/d lr"
    return Problem(what, "conv", "adam", "lr", 1e-3, steps, 2, params, data[:-1], data[-1], long=steps > 32)


def transformer(steps: int | None) -> Problem:
    draws, steps, width, length = _Draws(), steps or 16, 128, 64
    params = draws.linear("in", 16, width) | {"place": draws.normal(length, width) * np.float32(0.1)}
    for k in range(2):
        for norm in ("n1", "n2"):
            params[f"b{k}_{norm}_w"], params[f"b{k}_{norm}_b"] = np.ones(width, np.float32), draws.normal(width) * 0
        params |= draws.linear(f"b{k}_qkv", width, 3 * width, bias=False)
        params |= draws.linear(f"b{k}_mix", width, width)
        params |= draws.linear(f"b{k}_up", width, 4 * width) | draws.linear(f"b{k}_down", 4 * width, width)
    params |= draws.linear("out", width, 10)
    data = [(draws.normal(16, length, 16), draws.classes(10, 16)) for _ in range(steps + 1)]
    what = f"transformer, 2 layers, d 128, 4 heads, sequence 64, batch 16, {steps} steps of Adam, d/d lr"
    return Problem(what, "transformer", "adam", "lr", 1e-3, steps, 2, params, data[:-1], data[-1])


def maml(steps: int | None) -> Problem:
    """Sines of other amplitudes and phases (arXiv 1703.03400, section 5.1), 10 points to learn from and 10 to test."""
    draws, steps, tasks = _Draws(), steps or 5, 16
    params = draws.linear("l0", 1, 40) | draws.linear("l1", 40, 40) | draws.linear("l2", 40, 1)
    height = draws.rng.uniform(0.1, 5, (tasks, 1, 1)).astype(np.float32)
    phase = draws.rng.uniform(0, np.pi, (tasks, 1, 1)).astype(np.float32)
    data = []
    for _ in range(2):
        x = draws.rng.uniform(-5, 5, (tasks, 10, 1)).astype(np.float32)
        data.append((x, height * np.sin(x - phase)))
    what = f"MAML: 16 sines, MLP 1-40-40-1 (relu), {steps} steps of SGD each, d/d initial params"
    return Problem(what, "sine", "sgd", "params", 0.01, steps, 1, params, data[:1], data[1], tasks=tasks)


def l2(steps: int | None) -> Problem:
    draws, steps, width, count = _Draws(), steps or 100, 10_000, 500
    truth = draws.normal(width)
    data = []
    for _ in range(2):
        x = draws.normal(count, width) / np.float32(30**0.5)  # the largest eigenvalue of x^T x / count is about 1
        data.append((x, (x @ truth > 0).astype(np.float32)))
    coefficients = draws.rng.uniform(0.05, 0.15, width).astype(np.float32)
    params = {"w": draws.normal(width) * np.float32(0.01)}
    what = f"logistic regression, 10,000 L2 coefficients, {steps} steps of SGD, d/d all of them"
    return Problem(what, "logistic", "sgd", "l2", 1.0, steps, 1, params, data[:1], data[1], l2=coefficients)


#: By name; each takes a number of steps, or None for its own.
PROBLEMS: dict[str, Callable[[Any], Problem]] = {
    "mlp": mlp,
    "conv16": lambda steps: _conv(steps or 16),
    "conv64": lambda steps: _conv(steps or 64),
    "transformer": transformer,
    "maml": maml,
    "l2": l2,
}
