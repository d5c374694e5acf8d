"""Five small networks with a training to differentiate: what an estimate is compared on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import hyperopt_ftp as hft


class Problem(NamedTuple):
    """The arguments of a hypergradient."""

    optimizer: hft.Optimizer
    loss: Callable[..., Tensor]
    params: dict[str, Tensor]
    batches: list[Any]
    over: Any = "lr"
    hparams: dict[str, Any] | None = None

    def hypergradient(self, strategy: Any, state: Any) -> Any:
        """With an outer loss that costs nothing."""
        return hft.hypergradient(
            self.optimizer, self.loss, _outer, self.params, self.batches, self.over, self.hparams, state, strategy
        )

    def estimate(self, strategy: Any, state: Any) -> hft.Estimate:
        return hft.estimate(
            self.optimizer, self.loss, self.params, self.batches, over=self.over, hparams=self.hparams, state=state,
            strategy=strategy,
        )  # fmt: skip


def _outer(params: dict[str, Tensor]) -> Tensor:
    return torch.stack([x.sum() for x in params.values()]).sum()


def _params(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def _classify(net: nn.Module, p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(net, p, (batch[0],)).flatten(0, -2), batch[1].flatten())


def _of(net: nn.Module, opt: hft.Optimizer, xs: list[Tensor], classes: int, over: Any = "lr") -> Problem:
    with torch.no_grad():
        shape = net(xs[0]).shape[:-1]
    batches = [(x, torch.randint(classes, shape)) for x in xs]
    return Problem(opt, partial(_classify, net), _params(net), batches, over)


def mlp(steps: int, size: int = 1) -> Problem:
    """Learning rate and decay of AdamW."""
    layers = [nn.Linear(20, 64 * size), nn.Tanh(), nn.Linear(64 * size, 64 * size), nn.Tanh(), nn.Linear(64 * size, 5)]
    xs = [torch.randn(32 * size, 20) for _ in range(steps)]
    return _of(nn.Sequential(*layers), hft.adamw(eps=1e-4), xs, 5, ("lr", "weight_decay"))


def conv(steps: int, size: int = 1) -> Problem:
    """Convolutions with GroupNorm; learning rate of SGD."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8 * size, 3, padding=1), nn.GroupNorm(4, 8 * size), nn.ReLU()]
    layers += [nn.Conv2d(8 * size, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 5))
    xs = [torch.randn(8, 3, 16, 16) for _ in range(steps)]
    return _of(net, hft.sgd(lr=0.05, momentum=0.9), xs, 5)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        heads = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.mix(self.norms[0](x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + F.dropout(self.out(mixed), 0.1)
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norms[1](x)))), 0.1)


def transformer(steps: int, size: int = 1) -> Problem:
    """A decoder with dropout."""
    width = 32 * size
    net = nn.Sequential(nn.Embedding(50, width), Block(width, 4), Block(width, 4), nn.Linear(width, 50))
    return _of(net, hft.adam(), [torch.randint(50, (8, 32)) for _ in range(steps)], 50)


class Recurrent(nn.Module):
    """Characters through a gated recurrence, one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(30, width), nn.Linear(width, 30)
        self.gates, self.new = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h, found = torch.zeros(len(x), self.out.in_features, device=x.device), []
        for e in self.embed(x).unbind(1):
            z, r = self.gates(torch.cat([e, h], -1)).sigmoid().chunk(2, -1)
            h = (1 - z) * h + z * self.new(torch.cat([e, r * h], -1)).tanh()
            found.append(h)
        return self.out(torch.stack(found, 1))


def recurrent(steps: int, size: int = 1) -> Problem:
    """A character model."""
    xs = [torch.randint(30, (16, 12)) for _ in range(steps)]
    return _of(Recurrent(32 * size), hft.rmsprop(lr=1e-3, eps=1e-4), xs, 30)


def weighted(steps: int, size: int = 1) -> Problem:
    """Logistic regression with a learning rate for each layer and an L2 coefficient for each of its weights."""
    features = 1000 * size
    params = {"w": torch.randn(10, features) / 100, "b": torch.zeros(10)}
    batches = [(torch.randn(16, features), torch.randint(10, (16,))) for _ in range(steps)]
    opt = hft.sgd(lr=0.1, momentum=0.5)
    lr = {name: torch.tensor(0.1) for name in params}
    hparams = {**opt.hparams, "lr": lr, "loss": {"l2": torch.full((10, features), 1e-3)}}
    return Problem(opt, _weighted, params, batches, ("lr", "loss.l2"), hparams)


def _weighted(p: dict[str, Tensor], batch: tuple[Tensor, Tensor], h: dict[str, Tensor]) -> Tensor:
    logits = batch[0] @ p["w"].T + p["b"]
    return F.cross_entropy(logits, batch[1]) + (h["l2"] * p["w"].square()).sum()


NETS: dict[str, Callable[..., Problem]] = {
    make.__name__: make for make in (mlp, conv, transformer, recurrent, weighted)
}
