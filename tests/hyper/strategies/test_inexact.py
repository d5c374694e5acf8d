"""Strategies that are not exact: their derivative under every transform is that of eager mode, of any order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.hyper import Strategy, TrainInputs, with_pullback

from ...support.descent import DATA, W, descent, dot, leaf_gradient, line, one, told, trained
from ...support.hypergradients import drawn
from ...support.problems import central_differences


def derivatives(f: Any, x: list[Tensor], eager: Any, rows: list[list[Tensor]], near_x: Any = None) -> None:
    """f's derivative under every transform: that of eager mode, and the derivative of that by differences.

    The second one wants an f that is linear in what was trained: the derivative of its cotangent is the strategy's own.

    Args:
        eager: the derivative in eager mode, of the same random numbers.
        rows: points for vmap.
        near_x: the derivative whose derivative at x is meant; ``None``: ``eager``.
    """
    generator = torch.Generator().manual_seed(4)
    u, v = ([torch.randn(a.shape, generator=generator, dtype=a.dtype) for a in x] for _ in range(2))
    slope = torch.func.grad(f)
    want = eager(x)
    near = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(slope(x), want, **near)
    torch.testing.assert_close(torch.func.jvp(f, (x,), (v,))[1], dot(want, v), **near)
    stacked = torch.func.vmap(slope)([torch.stack(column) for column in zip(*rows, strict=True)])
    wanted = [torch.stack(column) for column in zip(*(eager(row) for row in rows), strict=True)]
    torch.testing.assert_close(stacked, wanted, **near)
    second = torch.func.grad(lambda x: dot(slope(x), v))(x)
    along = lambda t: dot((near_x or eager)([a + t * b for a, b in zip(x, u, strict=True)]), v)  # noqa: E731
    moved = central_differences(along, one(0.0))[0]
    torch.testing.assert_close(dot(second, u), moved, rtol=1e-6, atol=1e-8)


@told
@pytest.mark.parametrize("last", [1, 2, 3])
def test_truncation(last):
    """The last steps by hand, from where they begin, which is a constant in derivatives of any order."""

    def f(x: list[Tensor]) -> Tensor:
        lr, w, *data = x
        return (trained(w, data, lr, strategy=hft.Unroll(truncate=last)).params * W).sum()

    def by_hand(x: list[Tensor], head: Any = None) -> Tensor:
        lr, w, *data = x
        head = descent(w, data[:-last], lr).detach() if head is None else head
        return (descent(head, data[-last:], lr) * W).sum()

    x = [one(0.1), W, *DATA]
    torch.testing.assert_close(leaf_gradient(f)(x), leaf_gradient(by_hand)(x), rtol=1e-11, atol=1e-13)
    head = descent(W, DATA[:-last], x[0]).detach()
    derivatives(f, x, leaf_gradient(f), [x, [1.1 * a for a in x]], leaf_gradient(lambda x: by_hand(x, head)))


A, Y = torch.eye(3, dtype=torch.float64) + DATA / 10, W + 2


def ridge(params: Tensor, batch: Any, l2: Tensor) -> Tensor:
    return (A @ params - Y).square().sum() / 2 + l2 / 2 * params.square().sum()


@pytest.mark.parametrize("solver", ["neumann", "cg"])
def test_implicit(solver):
    """Ridge regression, whose solution and all derivatives of it are known."""
    strategy = hft.Implicit(solver=solver, iterations=40 if solver == "neumann" else 4)
    opt = hft.sgd(lr=0.4)

    def f(x: list[Tensor]) -> Tensor:
        hparams = {**opt.hparams, "loss": x[0]}
        return line(hft.train(opt, ridge, W, [None] * 40, hparams=hparams, strategy=strategy).params, W)

    def solved(x: list[Tensor]) -> Tensor:
        return line(torch.linalg.solve(A.T @ A + x[0] * torch.eye(3, dtype=torch.float64), A.T @ Y), W)

    x = [one(0.9)]
    torch.testing.assert_close(leaf_gradient(f)(x), leaf_gradient(solved)(x), rtol=1e-8, atol=1e-10)
    derivatives(f, x, leaf_gradient(solved), [x, [one(1.2)]])
    curvature = torch.func.hessian(lambda l2: solved([l2]))(x[0])
    torch.testing.assert_close(torch.func.hessian(lambda l2: f([l2]))(x[0]), curvature, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize(
    ("data", "own"), [([*DATA], False), ([*DATA], True), (DATA, False)], ids=["default generator", "own", "tensor"]
)
def test_zero_order(antithetic, data, own):
    """Under transforms, the estimate of eager mode, and its derivative."""

    def f(x: list[Tensor]) -> Tensor:
        torch.manual_seed(5)
        strategy = hft.ZeroOrder(3, 0.1, antithetic, torch.Generator().manual_seed(5) if own else None)
        return (trained(x[0], data, x[1], strategy=strategy).params * W).sum()

    derivatives(f, [W, one(0.1)], leaf_gradient(f), [[W, one(0.1)], [2 * W, one(0.2)]])


def test_zero_order_of_a_linear_function():
    """The mean of e times the slope along e, whatever the point."""

    def fixed(w: Tensor) -> Tensor:
        torch.manual_seed(5)
        return trained(w, DATA, one(0.1), lambda w, x: (w * x).sum(), strategy=strategy).params.sum()

    strategy = hft.ZeroOrder(3, 0.1)
    slopes = [leaf_gradient(lambda x: fixed(x[0]))([w])[0] for w in (W, 3 * W)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)
    torch.manual_seed(5)
    torch.testing.assert_close(slopes[0], sum(e * e.sum() for e in drawn(3, 3)) / 3, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Implicit")  # has not converged
@pytest.mark.parametrize("strategy", [hft.Unroll(truncate=2), hft.Implicit(tolerance=10.0)], ids=str)
def test_integers_and_none_in_a_batch_reach_the_loss(strategy):
    def masked(p: Tensor, b: Any, h: Any) -> Tensor:
        assert b["none"] is None
        return ((p - b["x"]) ** 2 * b["mask"]).sum() / h["n"] + (p**4).sum()

    data = [{"x": x, "mask": torch.tensor([1, 0, 1]), "none": None, "name": "a"} for x in DATA]

    def f(x: list[Tensor]) -> Tensor:
        hparams = {"lr": x[0], "loss": {"n": torch.tensor(3)}}
        return hft.train(hft.sgd(), masked, W, data, hparams=hparams, strategy=strategy).params.sum()

    torch.testing.assert_close(torch.func.grad(f)([one(0.1)]), leaf_gradient(f)([one(0.1)]), rtol=1e-12, atol=1e-14)


class Pulled(Strategy):
    """Exact in the learning rate, and blind to all else."""

    def __call__(self, problem, inputs):
        return with_pullback(self.pullback, problem, inputs)

    def pullback(self, problem, inputs, end, cotangents):
        def trained(lr):
            return problem.loop(inputs._replace(hparams={**inputs.hparams, "lr": lr})).params

        (of_lr,) = torch.func.vjp(trained, inputs.hparams["lr"])[1](cotangents.params)
        return TrainInputs({**dict.fromkeys(inputs.hparams), "lr": of_lr}, None, None, None)


def test_a_strategy_of_ones_own():
    def f(x: list[Tensor]) -> Tensor:
        return line(trained(W, DATA, x[0], strategy=Pulled()).params, W)

    x = [one(0.1)]
    derivatives(f, x, leaf_gradient(lambda x: line(descent(W, DATA, x[0]), W)), [x, [one(0.2)]])
    derivatives(f, x, leaf_gradient(f), [x, [one(0.2)]])
    w = W.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(line(trained(w, DATA, one(0.1), strategy=Pulled()).params, W), w, create_graph=True)
