"""The same hypergradient by each library: Adam, K steps on a small conv net, d validation loss / d lr."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperopt_ftp as hft

LR = 1e-3
EPS = 1e-4


class Problem:
    """A smooth conv net of 3 layers (32, 64, 128 channels), batches of 64 pictures of 32 x 32, 10 classes."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        widths = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))
        self.params = {n: p.detach() for n, p in self.net.named_parameters()}
        self.data = [(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(steps + 1)]
        self.batches, self.held_out = self.data[:-1], self.data[-1]

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(torch.func.functional_call(self.net, params, (x,)), y)

    def outer(self, params: dict[str, Tensor]) -> Tensor:
        return self.loss(params, self.held_out)


def ours(strategy: Any, problem: Problem) -> float:
    opt = hft.adam(lr=LR, eps=EPS)
    grads = hft.hypergradient(
        opt, problem.loss, problem.outer, problem.params, problem.batches, "lr", strategy=strategy
    )[1]
    return grads["lr"].item()


def torchopt(problem: Problem) -> float:
    import torchopt

    lr = torch.tensor(LR, requires_grad=True)
    opt = torchopt.adam(lr, eps=EPS)  # pyright: ignore[reportArgumentType]  # a tensor works
    params = {n: p.clone().requires_grad_() for n, p in problem.params.items()}
    state = opt.init(params)
    for batch in problem.batches:
        grads = torch.autograd.grad(problem.loss(params, batch), list(params.values()), create_graph=True)
        updates, state = opt.update(dict(zip(params, grads, strict=True)), state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return torch.autograd.grad(problem.outer(params), lr)[0].item()


def higher(problem: Problem) -> float:
    import higher

    lr = torch.tensor(LR, requires_grad=True)
    problem.net.load_state_dict(problem.params)
    base = torch.optim.Adam(problem.net.parameters(), lr=LR, eps=EPS)
    with higher.innerloop_ctx(problem.net, base, override={"lr": [lr]}, copy_initial_weights=True) as (net, opt):
        for x, y in problem.batches:
            opt.step(F.cross_entropy(net(x), y))
        x, y = problem.held_out
        return torch.autograd.grad(F.cross_entropy(net(x), y), lr)[0].item()


CANDIDATES: dict[str, Callable[[Problem], float]] = {
    "Unroll()": partial(ours, hft.Unroll()),
    "Unroll(checkpoint=False)": partial(ours, hft.Unroll(checkpoint=False)),
    "Unroll(checkpoint='sqrt')": partial(ours, hft.Unroll(checkpoint="sqrt")),
    "Forward()": partial(ours, hft.Forward()),
    "torchopt": torchopt,
    "higher": higher,
}
