"""Compiled steps against the same steps as they are written. Minutes: run by ``make test-compiled``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import CASES, Case
from ..support.problems import batches, largest_difference, loss, start
from ..support.train_problems import PROBLEMS, Problem
from .strategies import CHEAP, CLOSE, PAIRS, every_strategy

RAN = {"unroll": {"training": 1, "backward": 1}, "forward": {"tangent": 1}}  # once for all steps


@every_strategy
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:the hypergradient of .* is exactly 0")
def test_every_optimizer_has_the_same_hypergradient(case: Case, name: str, programs: list[str]):
    opt, data, (kind, eager) = case.build(), batches(3), PAIRS[name]
    outer = lambda p: loss(p, data[0])  # noqa: E731
    got = hft.hypergradient(opt, loss, outer, start(), data, strategy=kind(compile=CHEAP))
    want = hft.hypergradient(opt, loss, outer, start(), data, strategy=eager)
    assert largest_difference(got, want) <= CLOSE
    assert Counter(programs) == RAN[name]


# Torch's compiler does not take these.
NOT_TAKEN = {"lstm", "checkpoint", "checkpointed attention", "own function"}
# Drawn otherwise than there (dropout: in test_random_numbers).
KNOWN = [p for p in PROBLEMS if "dropout" not in p.name and p.autocast != "around"]


@every_strategy
@pytest.mark.parametrize("problem", KNOWN, ids=str)
def test_every_loss_has_the_same_derivatives_in_everything(problem: Problem, name: str):
    kind, eager = PAIRS[name]

    def slopes(strategy: Any) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in problem.inputs]
        return list(torch.autograd.grad(problem.value(leaves, strategy), leaves, materialize_grads=True))

    if problem.name in NOT_TAKEN:
        with pytest.raises(RuntimeError, match="(?s)cannot be compiled: .*leave out compile=True|saved tensor hooks"):
            slopes(kind(compile=CHEAP))
        return
    got, want = slopes(kind(compile=CHEAP)), slopes(eager)
    slack = 1e-11
    if problem.autocast:  # tangents are rounded to 16 bits in another order, of all that goes into a sum
        eps = torch.finfo(torch.bfloat16 if name == "forward" else torch.float32).eps
        slack = eps * max(x.abs().max().item() for x in want)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_strategy
def test_inductor_in_other_dtypes(name: str, dtype: torch.dtype):
    # With 1 - beta at 0.1 or more no rounding of these grows by more than 10.
    opt, data, (kind, eager) = hft.adamw(lr=0.1, betas=(0.9, 0.9), eps=1e-2), batches(4), PAIRS[name]
    outer = lambda p: loss(p, data[0]).float()  # noqa: E731
    got, want = (
        hft.hypergradient(opt, loss, outer, start(dtype), data, ("lr", "betas"), strategy=s)[1]
        for s in (kind(compile=True), eager)
    )
    # A step's rounding, four times, as far as it shows in a difference of weights of order 1 over a rate of 0.1.
    slack = 40 * torch.finfo(dtype).eps
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        assert (a - b).abs() <= slack * max(1.0, b.abs())


@every_strategy
def test_inductor_with_one_step_whose_tangent_is_zero(name: str):
    kind, eager = PAIRS[name]
    decayed = lambda p, x, h: loss(p, x) + h * p["w"].square().sum()  # noqa: E731
    own = {"loss": torch.tensor(0.1, dtype=torch.float64)}
    got, want = (
        hft.hypergradient(hft.sgd(), decayed, lambda p: p["w"].sum(), start(), batches(1), "loss", own, strategy=s)
        for s in (kind(compile=True), eager)
    )
    assert largest_difference(got, want) <= CLOSE


def test_a_tower_and_its_update():
    tower = hft.hyper(hft.sgd(lr=0.05), by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(lr=1e-6), over="lr"), over="lr")
    data, outer = batches(3), lambda p: loss(p, batches(1)[0])
    got, want = (
        hft.hypergradient(tower, loss, outer, start(), data, "by.by.lr", strategy=hft.Unroll(compile=how))
        for how in (True, False)
    )
    assert largest_difference(got, want) <= CLOSE
    update, params = torch.compile(tower.update, fullgraph=True), start()
    state = tower.init(params)
    for x in data:
        grads = torch.func.grad(loss)(params, x)
        eager = tower.update(grads, state, params, tower.hparams)
        assert largest_difference(update(grads, state, params, tower.hparams), eager) <= CLOSE
        params, state = eager


@every_strategy
def test_twice_back_and_the_derivative_of_the_derivative(name: str):
    opt, lr = hft.sgd(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    rows = []
    for strategy in (PAIRS[name][0](compile=CHEAP), PAIRS[name][1]):
        run = hft.train(opt, loss, start(), batches(3), hparams={**opt.hparams, "lr": lr}, strategy=strategy)
        value = loss(run.params, batches(1)[0])
        first, again = (torch.autograd.grad(value, lr, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, again)
        (slope,) = torch.autograd.grad(value, lr, create_graph=True)
        rows.append([first, torch.autograd.grad(slope, lr)[0]])
    torch.testing.assert_close(*rows, rtol=1e-10, atol=1e-12)


@every_strategy
def test_without_a_derivative_training_runs_by_the_program_too(name: str, programs: list[str]):
    got, want = (
        hft.train(hft.adam(), loss, start(), batches(10), strategy=s) for s in (PAIRS[name][0](compile=CHEAP), None)
    )
    assert largest_difference(tuple(got), tuple(want)) <= CLOSE
    assert Counter(programs) == {"training": 2}  # of 5 steps each: their points are dropped


@every_strategy
def test_buffers_of_a_module_go_from_step_to_step(name: str, programs: list[str]):
    kind, eager = PAIRS[name]
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double()
    train_loss = hft.of_module(net, lambda m, x: m(x).square().mean())
    params, found = dict(net.named_parameters()), []
    for strategy in (kind(compile=CHEAP), eager):
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        run = hft.train(hft.sgd(), train_loss, params, batches(4), hparams={"lr": lr}, strategy=strategy)
        (slope,) = torch.autograd.grad(sum(p.square().sum() for p in run.params.values()), lr)
        found.append((slope, dict(run.buffers)))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-14)
    assert Counter(programs) == RAN[name]
