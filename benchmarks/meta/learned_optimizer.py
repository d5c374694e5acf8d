"""A learned optimizer: a small network gives each weight's step; meta-trained through 20 steps on 16 quadratics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from examples.recipes.learned_optimizer import loss, reached, tasks

from .module import Module

STEPS, OUTER_LR, ORIGIN = 20, 0.01, torch.zeros(16, 10, 1, dtype=torch.float64)
KEPT = hft.Unroll(checkpoint=False)  # the graphs of all steps

Weights = dict[str, Tensor]


def rule(weights: Weights, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The step of a weight, and the mean of its gradients."""
    m = 0.8 * m + 0.2 * g
    seen = torch.stack([g, m], -1)
    return -0.05 * m + torch.tanh(seen @ weights["w0"] + weights["b0"]) @ weights["w1"], m


def start() -> tuple[Weights, Any]:
    g = torch.Generator().manual_seed(0)
    w0, b0 = (torch.randn(shape, generator=g, dtype=torch.float64) / 2 for shape in ((2, 16), (16,)))
    weights = {"w0": w0, "b0": b0, "w1": torch.zeros(16, dtype=torch.float64)}
    return {name: w.requires_grad_() for name, w in weights.items()}, [tasks(16, k) for k in range(20)]


def score(weights: Weights) -> float:
    """log10 of the loss on new quadratics after the steps."""
    task, x, m = tasks(200, 10_000), ORIGIN.new_zeros(200, 10, 1), torch.zeros(())
    for _ in range(STEPS):
        step, m = rule(weights, torch.func.grad(loss)(x, task), m)
        x = x + step
    return reached(x, task).item()


def ours(weights: Weights, data: Any, how: Any = KEPT) -> Iterator[Weights]:
    def init(params: Tensor, hparams: Any = None) -> Tensor:
        return torch.zeros_like(params)

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
        step, state = rule((hparams or inner.hparams)["net"], grads, state)
        return params + step, state

    inner = hft.Optimizer(init, update, {"net": weights})
    outer = torch.optim.Adam(weights.values(), lr=OUTER_LR)
    for task in data:
        outer.zero_grad()
        reached(hft.train(inner, loss, ORIGIN, [task] * STEPS, strategy=how).params, task).backward()
        outer.step()
        yield weights


def compiled(weights: Weights, data: Any) -> Iterator[Weights]:
    return ours(weights, data, hft.Unroll(compile=True))


def with_torchopt(weights: Weights, data: Any) -> Iterator[Weights]:
    import torchopt

    def init(params: Any) -> Tensor:
        return torch.zeros_like(params[0])

    def update(updates: Any, state: Tensor, *, params: Any = None, inplace: bool = True) -> tuple[Any, Tensor]:
        step, state = rule(weights, updates[0], state)
        return (step,), state

    outer = torch.optim.Adam(weights.values(), lr=OUTER_LR)
    for task in data:
        module = Module(loss, ORIGIN)
        inner = torchopt.MetaOptimizer(module, torchopt.base.GradientTransformation(init, update))
        for _ in range(STEPS):
            inner.step(module(task))
        outer.zero_grad()
        reached(module.params(), task).backward()
        outer.step()
        yield weights


def with_higher(weights: Weights, data: Any) -> Iterator[Weights]:
    import higher

    class Learned(higher.optim.DifferentiableOptimizer):
        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            state, params = self.state[0][0], self.param_groups[0]["params"]
            g = grouped_grads[0][0]
            step, state["m"] = rule(weights, g, state.get("m", torch.zeros_like(g)))
            params[0] = params[0] + step

    outer = torch.optim.Adam(weights.values(), lr=OUTER_LR)
    for task in data:
        module = Module(loss, ORIGIN)
        moving: Any = higher.monkeypatch(module)
        inner = Learned(torch.optim.SGD(module.parameters(), lr=1.0), module.parameters(), moving)
        for _ in range(STEPS):
            inner.step(moving(task))
        outer.zero_grad()
        reached(moving.params(), task).backward()
        outer.step()
        yield weights
