"""Random numbers of compiled steps: drawn again on the way back, others in each step and run, or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import hyperopt_ftp as hft

from ..support.problems import batches, central_differences, loss
from .strategies import PAIRS, every_strategy, slope

F64 = torch.float64


class Net(nn.Module):
    """Attention, dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3).eval()
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 2)).transpose(1, 2) for y in self.qkv(x * self.scale).chunk(3, -1))
        x = F.dropout(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), 0.2)
        return self.norm(self.out(torch.tanh(x)).mean(1))


@every_strategy
def test_dropout_and_attention_by_central_differences(name: str):
    torch.manual_seed(1)
    net, opt, strategy = Net().to(F64), hft.adam(eps=1e-2), PAIRS[name][0](compile=True)
    params = {k: p.detach() for k, p in net.named_parameters()}
    data = [{"x": torch.randn(6, 5, 4, dtype=F64), "y": torch.randint(3, (6,))} for _ in range(4)]

    def train_loss(p: Any, batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(net, p, (batch["x"],)), batch["y"])

    def value(lr: Tensor) -> Tensor:
        torch.manual_seed(3)
        run = hft.train(opt, train_loss, params, data, hparams={**opt.hparams, "lr": lr}, strategy=strategy)
        return sum(p.square().sum() for p in run.params.values())

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(value(lr), lr)
    random = torch.rand(())
    # With a derivative asked for: without one the steps run as they are written, with other random numbers.
    (want,) = central_differences(lambda x: value(x.detach().requires_grad_()).detach(), lr.detach())
    torch.testing.assert_close(got, want, rtol=1e-7, atol=0)
    value(lr)
    assert torch.equal(random, torch.rand(()))  # the way back has left them as they were


@pytest.mark.parametrize("how", ["dropout", "bernoulli", "rand", "randn"])
def test_random_numbers_come_again_and_are_others_in_each_step_and_run(how: str):
    def noisy(p: Any, x: Tensor) -> Tensor:
        w = p["w"]
        noise = {
            "dropout": lambda: F.dropout(torch.ones_like(w)),
            "bernoulli": lambda: torch.bernoulli(torch.full_like(w, 0.4)),
            "rand": lambda: torch.rand(w.shape, dtype=w.dtype),
            "randn": lambda: torch.randn_like(w),
        }[how]()
        return (noise * w).sum()  # one step of SGD leaves w as -lr noise

    def ends(strategy: Any) -> list[Tensor]:
        lr = torch.tensor(1.0, dtype=F64, requires_grad=True)
        zero = {"w": torch.zeros(50, 40, dtype=F64)}
        hparams = {**hft.sgd().hparams, "lr": lr}
        steps = [hft.train(hft.sgd(), noisy, zero, [None] * n, hparams=hparams, strategy=strategy) for n in (2, 3, 3)]
        state = torch.get_rng_state()
        got = torch.autograd.grad(steps[1].params["w"].sum(), lr)[0]
        assert torch.equal(torch.get_rng_state(), state)  # the way back takes what its run has drawn
        torch.testing.assert_close(got, steps[1].params["w"].sum())  # linear in lr: by the numbers of the run
        return [x.params["w"].detach() for x in steps]

    torch.manual_seed(0)
    two, three, again = ends(hft.Unroll(compile=True))
    assert not torch.equal(three, again)  # another run draws others
    mean, std = {"dropout": (1, 1), "bernoulli": (0.4, 0.49), "rand": (0.5, 0.289), "randn": (0, 1)}[how]
    for end, n in ((two, 2), (three, 3), (again, 3)):  # independent steps: a sum of n; 2,000 entries, five sigma
        assert abs(end.mean() + n * mean) <= 5 * std * math.sqrt(n / 2000)
        assert abs(end.std() / (std * math.sqrt(n)) - 1) <= 0.1
    torch.manual_seed(0)
    for x, y in zip((two, three, again), ends(hft.Unroll(compile=True)), strict=True):
        assert torch.equal(x, y)


def test_those_that_cannot_be_drawn_again_are_refused():
    def counts(p: Any, x: Tensor) -> Tensor:
        return loss(p, torch.poisson(x.abs()))

    with pytest.raises(RuntimeError, match="aten.poisson.* draws random numbers that cannot be drawn again"):
        slope(counts, batches(3), hft.Unroll(compile=True))
