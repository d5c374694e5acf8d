"""Layers for the kernels, and the same problem for the pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.kernels.layers import SGD, AdamW, Amp, Ball, Layers

LR, RADIUS_LR = 1e-2, 2e-2

# Every shape of tile: by number of columns, aligned or not, pieces of long rows, and tensors without elements.
SHAPES = [(), (7,), (5, 123), (3, 1023), (1, 50), (5, 4, 16), (20, 128), (3, 512), (2, 1040), (3, 1500), (9, 4096)]
SHAPES += [(2, 4095), (2, 5008), (2, 4999), (5, 3, 3, 3), (130, 1), (0, 4), (3, 0), (2, 70000), (70000,)]
ADAMW = AdamW(LR, 0.9, 0.99, 1e-8, 0.0)
MARS = Ball(RADIUS_LR, 1.0, "mars", False)
PLAIN = Amp()
FEW = [(), (7,), (5, 123), (3, 16), (2, 2051), (0, 4)]


@dataclass
class Case:
    """Layers for the kernels, and the same problem for the pure functions."""

    shapes: list[tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    base: AdamW | SGD = ADAMW
    ball: Ball = MARS
    amp: Amp = PLAIN
    amsgrad: bool = False
    free: tuple[int, ...] = ()  # unconstrained layers
    zero: tuple[int, ...] = ()  # zero anchors
    anchor_dtypes: tuple[torch.dtype, ...] = ()  # in turns; none: that of the weights
    lean: bool = False
    layout: Callable[[int, Tensor], Tensor] | None = None  # of the tensors of layer i
    layers: Layers = field(init=False)
    sizes: dict[tuple[str, str], float] = field(init=False, default_factory=dict)  # the largest moments so far

    def __post_init__(self) -> None:
        real = torch.float64 if self.dtype == torch.float64 else torch.float32
        # 16-bit storage rounds at each step, so the reference has to as well; else it is float64.
        self.wide = torch.float64 if self.dtype in (torch.float32, torch.float64) else self.dtype
        self.real = torch.float64 if self.dtype in (torch.float32, torch.float64) else torch.float32
        count = len(self.shapes)
        kinds = self.anchor_dtypes or (self.dtype,)
        near = [
            torch.randn(s).to(kinds[i % len(kinds)]) * (0 if i in self.zero else 1) for i, s in enumerate(self.shapes)
        ]
        # Every other layer starts off its anchor, where a radius is large and some rows stay inside.
        far = [w0.float() + (0.05 * torch.randn(w0.shape) if i % 2 else 0) for i, w0 in enumerate(near)]
        place = self.layout or (lambda i, x: x)
        weights = [place(i, w.to(self.dtype)) for i, w in enumerate(far)]
        held = [i not in self.free for i in range(count)]
        self.params = {str(i): w.to(self.wide).clone() for i, w in enumerate(weights)}
        fixed = {str(i): w0.to(self.real) for i, w0 in enumerate(near) if held[i]}
        self.optimizer = hft.ftp(
            self.pure_base(), fixed, self.ball.norm, self.ball.kappa, self.ball.radius_lr,
            "exact" if self.ball.exact else "paper",
        )  # fmt: skip
        self.state = self.optimizer.init(self.params)

        def each(make: Any) -> list[Tensor]:
            return [make(i, str(i)) if held[i] else torch.empty(0, dtype=real) for i in range(count)]

        def zeros(dtype: torch.dtype) -> list[Tensor]:
            return [place(i, torch.zeros(s, dtype=dtype)) for i, s in enumerate(self.shapes)]

        moments = [zeros(real) for _ in range(2 + self.amsgrad if isinstance(self.base, AdamW) else 1)]
        if isinstance(self.base, SGD):
            moments = moments if self.base.momentum else []
        c = zeros(torch.bfloat16 if self.lean else real)
        self.layers = Layers(
            weights,
            zeros(self.dtype),
            [torch.tensor(0.0) for _ in weights],
            each(lambda i, k: torch.empty(0) if i in self.zero else place(i, near[i])),
            each(lambda i, k: c[i]),
            each(lambda i, k: self.state.norms[k].to(real)),
            each(lambda i, k: self.state.radius[k].to(real)),
            each(lambda i, k: torch.zeros((), dtype=real)),
            each(lambda i, k: torch.zeros((), dtype=real)),
            each(lambda i, k: torch.tensor(0.0)),
            moments,
        )

    def pure_base(self) -> hft.Optimizer:
        b = self.base
        lr = b.lr.double() if isinstance(b.lr, Tensor) else b.lr
        if isinstance(b, AdamW):
            return hft.adamw(lr, (b.beta1, b.beta2), b.eps, b.weight_decay, self.amsgrad)
        return hft.sgd(lr, b.momentum, weight_decay=b.weight_decay, nesterov=b.nesterov)

    def draw(self, spoil: Mapping[int, float] = MappingProxyType({})) -> dict[str, Tensor]:
        """New gradients for the kernels; returns those of the reference."""
        drift = 0.3  # with a trend, or else the radii never grow
        for i, g in enumerate(self.layers.grads):
            g.copy_(torch.randn(g.shape) + drift)
            if i in spoil:
                g.view(-1)[g.numel() // 2] = spoil[i]
        scale = (-1 if self.amp.maximize else 1) / (1 if self.amp.grad_scale is None else self.amp.grad_scale.item())
        return {str(i): g.clone() * scale for i, g in enumerate(self.layers.grads)}

    def pure_step(self, grads: dict[str, Tensor]) -> None:
        if self.real == torch.float64:
            grads = {k: g.double() for k, g in grads.items()}
        self.params, self.state = self.optimizer.update(grads, self.state, self.params)

    def follow(self) -> None:
        """Take over what is stored rounded, once it is compared: what lies between two numbers may go either way."""
        if self.wide == self.dtype != self.real:
            self.params = {str(i): w.clone() for i, w in enumerate(self.layers.weights)}
        if self.lean:
            c = {k: self.layers.deviations[int(k)].to(self.real) for k in self.state.deviation}
            self.state = self.state._replace(deviation=c)

    def compare(self, steps: int) -> None:
        """Tolerances, with e the unit of the working dtype (2^-24 or 2^-53).

        W and c: a step rounds W', c, s c and W, each by e max |W| at most. A row's norm adds up its errors, which are
        of both signs (4 standard deviations), and rounds by a few e. Moments are off by a few e of the largest
        that they were, each time a gradient was added.
        A radius moves by radius_lr a step at most; its direction, m / sqrt(v) of the hypergradients, is off by twice
        their relative error, which is that of c, where a step is lr (the gradients drift: no sum cancels). It rounds by
        e a step, and where the clip acts it is a norm.
        """
        L = self.layers
        e = torch.finfo(torch.float64 if self.dtype == torch.float64 else torch.float32).eps / 2
        stored = torch.finfo(self.dtype).eps if self.wide == self.dtype != self.real else 0
        for k, expected in self.params.items():
            i = int(k)
            top = max(1.0, expected.float().nan_to_num(0, 0, 0).abs().max().item()) if expected.numel() else 1.0
            small = 4 * e * top * steps
            # 16-bit weights: to the next number at most, and seldom.
            close(f"W of {i}", L.weights[i], expected, small + stored * top, 0)
            if stored:
                assert (L.weights[i] != expected.view_as(L.weights[i])).sum() <= 0.002 * expected.numel() + 1
            for column, name in zip(L.moments, self.moment_names(), strict=False):
                truth = getattr(self.state.base, name)[k]
                now = truth.double().nan_to_num(0, 0, 0).abs().max().item() if truth.numel() else 0.0
                size = self.sizes[name, k] = max(now, self.sizes.get((name, k), 0.0))
                # Coupled decay brings W's error into the momentum.
                slack = small if isinstance(self.base, SGD) else 0
                close(f"{name} of {i}", column[i], truth, 8 * e * steps * size + slack, 0)
            if k in self.state.radius:
                n = self.state.norms[k]
                cols = max(1, expected.numel() // max(1, n.numel()))
                lean = torch.finfo(torch.bfloat16).eps if self.lean else 0
                close(f"c of {i}", L.deviations[i], self.state.deviation[k], small, lean)
                summed = 4 * cols**0.5 * small
                close(f"n of {i}", L.norms[i], n, summed, 8 * e)
                turned = RADIUS_LR * steps * 2 * small / LR
                close(f"radius of {i}", L.radii[i], self.state.radius[k], turned + summed, 8 * e)
                assert L.radius_steps[i] == self.state.radius_opt.step
            assert L.steps[i] == self.state.base.step

    def moment_names(self) -> list[str]:
        if isinstance(self.base, SGD):
            return ["momentum_buffer"]
        return ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def close(what: str, actual: Tensor, expected: Tensor, atol: float, rtol: float) -> None:
    a, b = actual.double(), expected.double().reshape(actual.shape)
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol, equal_nan=True, msg=lambda m: f"{what}: {m}")


def run(execution: Any, case: Case, steps: int = 3) -> None:
    for t in range(1, steps + 1):
        grads = case.draw()
        execution.step_(case.layers, case.base, case.ball, case.amp)
        case.pure_step(grads)
        case.compare(t)
        case.follow()


def tensors(layers: Layers) -> list[Tensor]:
    return [x for column in layers for part in column for x in (part if isinstance(part, list) else [part])]
