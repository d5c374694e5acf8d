"""A strategy of one's own: what it returns is checked, and its pullback draws the training's random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Strategy, TrainInputs, TrainOutputs, with_pullback

W = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
LR = torch.tensor(0.1, dtype=torch.float64)


def line(params: Tensor, batch: Tensor) -> Tensor:
    return ((params - batch) ** 2).sum()


def trained(lr: Tensor, strategy: Strategy) -> Tensor:
    return hft.train(hft.sgd(), line, W, [W] * 3, hparams={"lr": lr}, strategy=strategy).params


class Central(Strategy):
    """The derivative in the learning rate by a difference of whole trainings."""

    def __call__(self, problem, inputs):
        return with_pullback(self.pullback, problem, inputs)

    def pullback(self, problem, inputs, end, cotangents):
        def reached(lr):
            ends = problem.loop(inputs._replace(hparams={**inputs.hparams, "lr": lr})).params
            return sum((x * v).sum() for x, v in zip(tree.leaves(ends), tree.leaves(cotangents.params), strict=True))

        lr, e = inputs.hparams["lr"], 1e-5
        nothing = tree.map_tree(lambda _: None, inputs.hparams)
        return TrainInputs({**nothing, "lr": (reached(lr + e) - reached(lr - e)) / (2 * e)}, None, None, None)


def test_a_pullback_of_ones_own_draws_the_numbers_of_the_training():
    def dropped(p, x):
        return ((F.dropout(p, 0.4) - x) ** 2).sum()

    def slope(strategy):
        torch.manual_seed(0)
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        run = hft.train(
            hft.sgd(lr=lr), dropped, torch.ones(20, dtype=torch.float64), [0.1, 0.2, 0.3], strategy=strategy
        )
        drawn = torch.rand(1)
        run.params.square().sum().backward()
        return lr.grad, drawn

    (found, after), (want, plain) = slope(Central()), slope(hft.Unroll())
    torch.testing.assert_close(found, want, rtol=1e-8, atol=0)
    assert torch.equal(after, plain)


class Says(Strategy):
    """A strategy that returns what it is told, itself or from its pullback."""

    def __init__(self, pullback: Any = None, result: Any = None) -> None:
        self._pullback, self._result = pullback, result

    def __call__(self, problem, inputs):
        back = with_pullback(lambda *_: self._pullback, problem, inputs)
        return back if self._result is None else self._result


@pytest.mark.parametrize("transform", [False, True], ids=["eager", "grad"])
@pytest.mark.parametrize(
    ("strategy", "kind", "text"),
    [
        (Says({}), TypeError, r"pullback must return TrainInputs\(.*got a dict"),
        (Says(TrainInputs({}, None, None)), ValueError, "must return hparams in the structure of inputs.hp"),
        (Says(TrainInputs(None, None, ())), ValueError, "must return state in the structure of inputs.state"),
        (Says(TrainInputs(None, {"w": W}, None)), ValueError, "returned dict for a tensor of params"),
        (Says(TrainInputs(None, W[:2], None)), ValueError, r"returned \(2,\) for .* params with shape \(3,\)"),
        (Says(TrainInputs(None, 1.0, None)), ValueError, "returned float for a tensor of params"),
        (Says(result={}), TypeError, r"Says must return TrainOutputs\(params, state, losses\), got a dict"),
        (Says(result=(W, None, W)), TypeError, r"Says must return TrainOutputs\(.*got a tuple"),
        (Says(result=TrainOutputs(W, None, None)), ValueError, "one a step, got a NoneType"),
        (Says(result=TrainOutputs(W, None, W[:1])), ValueError, r"one a step, got shape \(1,\)"),
    ],
)  # fmt: skip
def test_results_of_a_strategy_are_checked(strategy, kind, text, transform):
    def f(lr: Tensor) -> Tensor:
        return trained(lr, strategy).sum()

    with pytest.raises(kind, match=text):
        torch.func.grad(f)(LR) if transform else f(LR.clone().requires_grad_()).backward()


ENDS = {
    "structure": ([W], "params of the structure, shapes and dtypes of "),
    "shape": ({"w": W[:1]}, "params of the structure, shapes and dtypes of "),
    "dtype": ({"w": W.float()}, "params of the structure, shapes and dtypes of "),
    "no state": ({"w": W}, "the state in which training ended, got TrainOutputs with state=None"),
}


@pytest.mark.parametrize(("params", "text"), ENDS.values(), ids=ENDS)
def test_an_end_of_another_form_is_refused(params, text):
    says = Says(result=TrainOutputs(params, None, torch.zeros(3)))
    with pytest.raises(ValueError, match=f"^Says must return (TrainOutputs with )?{text}"):
        hft.train(hft.sgd(), lambda p, x: line(p["w"], x), {"w": W}, [W] * 3, strategy=says)


def test_the_order_of_a_pullbacks_arguments():
    class Swapped(Strategy):
        def __call__(self, problem, inputs):
            return with_pullback(problem, lambda *_: None, inputs)

    with pytest.raises(TypeError, match="the first a function"):
        trained(LR, Swapped())
