"""Optimizers once more, each from its paper, as classes of torch.optim: what the pure ones are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Make = Callable[..., torch.optim.Optimizer]


def by_hand(rule: Callable[..., None]) -> Make:
    """The optimizer of ``rule(p, g, s, t, **options)``, which changes ``p`` in place; ``s`` is its to use."""

    def make(params: Any, **options: Any) -> torch.optim.Optimizer:
        class ByHand(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:
                for p in self.param_groups[0]["params"]:
                    if p.grad is not None:
                        s = self.state[p]
                        s["t"] = s.get("t", 0) + 1
                        rule(p, p.grad, s, s["t"], **options)

        return ByHand(params, {})

    return make


@by_hand
def schedule_free_sgd(
    y: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0,
    weight_lr_power=2.0,
) -> None:  # fmt: skip
    """arXiv 2405.15682: the sequences x, y, z, each as it is defined."""
    rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    _average(y, g + weight_decay * y, s, rate, momentum, t**r * rate**weight_lr_power)


@by_hand
def schedule_free_adamw(
    y: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
    warmup_steps=0, r=0.0, weight_lr_power=2.0,
) -> None:  # fmt: skip
    """Algorithm 1 of arXiv 2405.15682, with Adam's corrected second moment for the factor of the rate."""
    rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g**2
    direction = g / ((s["v"] / (1 - betas[1] ** t)) ** 0.5 + eps) + weight_decay * y
    _average(y, direction, s, rate, betas[0], t**r * rate**weight_lr_power)


def _average(y: Tensor, direction: Tensor, s: dict[str, Any], rate: float, beta: float, weight: float) -> None:
    """All that came before is averaged anew, with its weights."""
    passed = s.setdefault("passed", [])
    z = (passed[-1][1] if passed else y) - rate * direction
    passed.append((weight, z.clone()))
    x = sum(p * old for p, old in passed) / sum(p for p, _ in passed)
    y.copy_((1 - beta) * z + beta * x)


@by_hand
def adan(
    p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0
) -> None:
    """Algorithm 1 of arXiv 2208.06677, whose betas are one minus these, from averages of 0 that are corrected."""
    b1, b2, b3 = (1 - beta for beta in betas)
    d = g - s.get("before", g)
    s["m"] = (1 - b1) * s.get("m", 0.0) + b1 * g
    s["v"] = (1 - b2) * s.get("v", 0.0) + b2 * d
    s["n"] = (1 - b3) * s.get("n", 0.0) + b3 * (g + (1 - b2) * d) ** 2
    m, v, n = (s[key] / (1 - beta**t) for key, beta in zip("mvn", betas, strict=True))
    p.copy_((p - lr / (n**0.5 + eps) * (m + (1 - b2) * v)) / (1 + weight_decay * lr))
    s["before"] = g.clone()


@by_hand
def adopt(
    p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.0,
    clip_power=0.25, decoupled=False,
) -> None:  # fmt: skip
    """Algorithm 2 of arXiv 2411.02853 (with clipping; Algorithm 1 without): its g_0 is the gradient at t = 1 here."""
    if not decoupled:
        g = g + weight_decay * p
    if t == 1:
        s["v"], s["m"] = g**2, torch.zeros_like(p)
        return
    if decoupled:
        p.mul_(1 - lr * weight_decay)
    u = g / torch.maximum(s["v"] ** 0.5, torch.tensor(eps, dtype=p.dtype))
    if clip_power is not None:
        most = (t - 1) ** clip_power
        u = torch.where(u.abs() > most, most * u.sign(), u)
    s["m"] = betas[0] * s["m"] + (1 - betas[0]) * u
    p.sub_(lr * s["m"])
    s["v"] = betas[1] * s["v"] + (1 - betas[1]) * g**2


@by_hand
def signum(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, momentum=0.9, weight_decay=0.0) -> None:
    """Algorithm 2 of arXiv 1802.04434, with the decay of Algorithm 1 of arXiv 1810.05291."""
    s["m"] = momentum * s.get("m", 0.0) + (1 - momentum) * g
    p.sub_(lr * (s["m"].sign() + weight_decay * p))


@by_hand
def lion(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.99), weight_decay=0.0) -> None:
    """Algorithm 2 of arXiv 2302.06675."""
    m = s.get("m", torch.zeros_like(p))
    p.sub_(lr * ((betas[0] * m + (1 - betas[0]) * g).sign() + weight_decay * p))
    s["m"] = betas[1] * m + (1 - betas[1]) * g


@by_hand
def lamb(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0) -> None:
    """Algorithm 2 of arXiv 1904.00962, with phi(z) = z."""
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g**2
    u = s["m"] / (1 - betas[0] ** t) / ((s["v"] / (1 - betas[1] ** t)) ** 0.5 + eps) + weight_decay * p
    trust = p.norm() / u.norm() if p.norm() > 0 and u.norm() > 0 else 1.0
    p.sub_(lr * trust * u)


@by_hand
def lars(
    p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr=1.0, momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3,
    eps=0.0, nesterov=False,
) -> None:  # fmt: skip
    """Algorithm 1 of arXiv 1708.03888; with Nesterov momentum as in torch."""
    whole = g.norm() + weight_decay * p.norm()
    trust = trust_coefficient * p.norm() / (whole + eps) if p.norm() > 0 and whole > 0 else 1.0
    step = lr * trust * (g + weight_decay * p)
    s["v"] = momentum * s.get("v", 0.0) + step
    p.sub_(step + momentum * s["v"] if nesterov else s["v"])


@by_hand
def adabelief(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.999), eps=1e-16) -> None:
    """Algorithm 2 of arXiv 2010.07468."""
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["s"] = betas[1] * s.get("s", 0.0) + (1 - betas[1]) * (g - s["m"]) ** 2 + eps
    p.sub_(lr * s["m"] / (1 - betas[0] ** t) / ((s["s"] / (1 - betas[1] ** t)) ** 0.5 + eps))


@by_hand
def yogi(
    p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr, betas=(0.9, 0.999), eps=1e-3, initial_accumulator_value=1e-6
) -> None:
    """Algorithm 2 of Zaheer et al. (2018), from other first averages, which are corrected as Adam's are."""
    s["m"] = betas[0] * s.get("m", initial_accumulator_value) + (1 - betas[0]) * g
    v = s.get("v", torch.full_like(p, initial_accumulator_value))
    s["v"] = v - (1 - betas[1]) * (v - g**2).sign() * g**2
    p.sub_(lr * s["m"] / (1 - betas[0] ** t) / ((s["v"] / (1 - betas[1] ** t)) ** 0.5 + eps))
