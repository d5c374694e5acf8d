"""A step and the plain loop of a problem, as a strategy of one's own calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.hyper import Strategy, TrainInputs, TrainOutputs

from ...support.descent import DATA, W, line, one


class Given(Strategy):
    """The plain loop, by whatever inputs are made of those of the training."""

    def __init__(self, change: Callable[[TrainInputs], dict[str, Any]], by_steps: bool) -> None:
        self.change, self.by_steps = change, by_steps
        self.losses: list[Tensor] = []

    def __call__(self, problem, inputs):
        inputs = inputs._replace(**self.change(inputs))
        if not self.by_steps:
            return problem.loop(inputs)
        params, state, self.losses = inputs.params, problem.begun(inputs).state, []
        for batch in inputs.batches:
            params, state, loss = problem.step(params, state, batch, inputs.hparams)
            self.losses.append(loss)
        return TrainOutputs(params, state, torch.stack(self.losses))


def as_it_is(inputs: TrainInputs) -> dict[str, Any]:
    return {}


def turned(inputs: TrainInputs) -> dict[str, Any]:
    return {"hparams": dict(reversed(inputs.hparams.items()))}


def partly(inputs: TrainInputs) -> dict[str, Any]:
    return {"hparams": {"lr": inputs.hparams["lr"]}}


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("opt", [hft.sgd(lr=0.1, momentum=0.5), hft.adam(lr=0.1)], ids=["sgd", "adam"])
def test_hparams_are_known_by_their_names(opt, by_steps):
    def through(strategy: Strategy) -> Tensor:
        given = opt, line, lambda p: p.square().sum(), W, DATA, "lr"
        return hft.hypergradient(*given, strategy=strategy)[1]["lr"]

    want = through(hft.Unroll())
    for change in (as_it_is, turned, partly):
        torch.testing.assert_close(through(Given(change, by_steps)), want, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match=r"hparams must be a dict with names among .* did you mean 'lr'"):
        through(Given(lambda inputs: {"hparams": {**inputs.hparams, "lrr": inputs.hparams["lr"]}}, by_steps))


def test_losses_of_steps_have_graphs_that_no_step_frees():
    steps, lr = Given(as_it_is, by_steps=True), one(0.1, requires_grad=True)
    w, x = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    run = hft.train(hft.sgd(lr=lr), lambda p, b: ((p - b) ** 2).sum() / 2, w, [x] * 3, strategy=steps)
    # the first loss is one of the first params alone
    assert [loss.requires_grad for loss in steps.losses] == [False, True, True]
    (run.params.sum() + run.losses.sum()).backward()
    a = 1 - 0.1  # w_k = a^k, the losses a^2k: 2 (-3 a^2) + (-2 a - 4 a^3), where they have a graph
    assert lr.grad.item() == pytest.approx(-6 * a**2 - 2 * a - 4 * a**3, rel=1e-12)
    with torch.no_grad():
        hft.train(hft.sgd(lr=lr), line, w, [x], strategy=steps)
    assert not steps.losses[0].requires_grad


def test_there_is_a_step_at_least():
    with pytest.raises(ValueError, match="a strategy asks for a training without steps"):
        hft.train(hft.sgd(), line, W, DATA, strategy=Given(lambda inputs: {"batches": []}, by_steps=False))
