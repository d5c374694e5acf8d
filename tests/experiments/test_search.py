"""Hypergradients against searches: the problems, the contenders on a tiny one, and the command."""

import dataclasses
import json
import math
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import hyperopt_ftp as hft
from experiments.common.examples import Examples
from experiments.common.small_networks import cross_entropy, mlp
from experiments.tuning.search import on_digits, on_emoji, on_tweets, race, report
from experiments.tuning.search.contenders import CONTENDERS
from experiments.tuning.search.descents import path
from experiments.tuning.search.problem import Problem, as_it_is, one
from experiments.tuning.search.race import Clock
from experiments.tuning.search.study import STUDY
from tests.experiments.running import ran
from tests.experiments.running import results as results_in

STEPS = 4


class Work:
    """The loss of a tiny problem, whose evaluations are the seconds of a clock that a test holds in its hands."""

    def __init__(self):
        self.seconds = 0

    def loss(self, params, batch):
        self.seconds += 1
        return cross_entropy(mlp)(params, batch)

    def penalised(self, params, batch, h):
        return self.loss(params, batch) + (h["l2"] * params["0.weight"] ** 2).sum() / 2


def tiny(work, space=None, few=None, optimizer=None, **changes):
    """A logistic regression of two inputs and four steps."""
    generator = torch.Generator().manual_seed(0)

    def some(count):
        x = torch.randn(count, 2, generator=generator)
        return Examples(x, (x.sum(1) > 0).long())

    space = {"lr": one(0.1, 1e-3, 10.0)} if space is None else space
    start = {"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)}
    batches = [tuple(some(8)) for _ in range(STEPS)]
    return Problem(
        optimizer or hft.sgd(momentum=0.9), work.loss, mlp, start, batches, some(40), some(40), space,
        few or as_it_is(space), **changes,
    )  # fmt: skip


def test_a_clock_stands_still_while_paused():
    now = [3.0]
    clock = Clock(2.0, lambda: now[0])
    now[0] = 4.5
    assert clock.seconds == 1.5
    assert not clock.over
    with clock.paused():
        now[0] = 100.0
    assert clock.seconds == 1.5
    now[0] = 101.0
    assert clock.seconds == 2.5
    assert clock.over


def test_problems_with_many_numbers_by_hand():
    table = on_digits.warm_up_and_cosine(torch.tensor(2.0), torch.tensor(0.25), 4)  # at 1/8, 3/8, 5/8, 7/8
    by_hand = [1.0, *(1 + math.cos(math.pi * x) for x in (1 / 6, 1 / 2, 5 / 6))]
    torch.testing.assert_close(table, torch.tensor(by_hand))
    params = {"0.weight": torch.randn(10, 3), "0.bias": torch.zeros(10)}
    x, y, index = torch.randn(2, 3), torch.tensor([1, 2]), torch.tensor([5, 0])
    weight = torch.tensor([0.2, 0, 0, 0, 0, 0.6])
    each = F.cross_entropy(x @ params["0.weight"].T, y, reduction="none")
    expected = (0.6 * each[0] + 0.2 * each[1]) / 0.8
    torch.testing.assert_close(on_digits.weighted(params, (x, y, index), {"weight": weight}), expected)
    params = {"0.weight": torch.tensor([[1.0, 2.0]]), "0.bias": torch.zeros(1)}
    batch, l2 = (torch.zeros(1, 2), torch.tensor([0])), torch.tensor([0.5, 0.25])
    assert on_tweets.penalised(params, batch, {"l2": l2}).item() == pytest.approx((0.5 + 0.25 * 4) / 2)


def test_emoji_of_one_group_are_one_example_and_depths_count_from_the_head():
    features: Any = SimpleNamespace(
        images=torch.arange(6.0), labels=torch.arange(6), domains=torch.tensor([1, 0, 0, 0, 1, 0]),
        groups=("a", "a", "a", "b", "b", "c"), domain_names=("Twemoji", "OpenMoji"),
    )  # fmt: skip
    assert on_emoji.one_of_each(features).y.tolist() == [1, 3, 5]


@pytest.mark.parametrize("name", ["random", "tpe", "hyperband", "unroll", "truncated", "search-unroll", "tower"])
def test_every_contender_keeps_to_the_budget_and_is_no_worse_than_the_default(name, monkeypatch):
    work = Work()
    problem = tiny(work)
    monkeypatch.setattr(race, "Clock", lambda budget: Clock(budget, lambda: work.seconds))
    monkeypatch.setattr(race.gc, "collect", lambda: 0)
    result = race.race(problem, CONTENDERS[name].run, budget=40)
    times = [point[0] for point in result["curve"]]
    validation = [point[report.VALIDATION] for point in result["curve"]]
    assert result["trials"] > 1
    assert times == sorted(times)
    assert times[-1] <= 40
    assert validation == sorted(validation, reverse=True)
    default = problem.train(problem.default)
    assert validation[-1] < default.loss or name == "truncated"
    if name in ("random", "tpe"):
        assert result["trials"] == 40 // STEPS


def test_two_outer_steps_are_those_of_torch_by_hand():
    """A learning rate for each of four steps: autograd through a loop, Adam of torch on the logarithms."""
    space = {"lr": dataclasses.replace(one(0.1, 1e-3, 10.0), default=torch.tensor([0.3, 0.2, 0.1, 0.4]))}
    problem = tiny(Work(), space, optimizer=hft.per_step(hft.sgd(momentum=0.9), lr=space["lr"].default))
    trials = list(islice(path(problem, problem.default, 0.3, hft.Unroll()), 3))
    free = space["lr"].default.log().requires_grad_()
    outer = torch.optim.Adam([free], lr=0.3)
    for trial in trials:
        torch.testing.assert_close(trial.values["lr"], free.detach().exp(), rtol=1e-4, atol=1e-6)
        w, b = (x.clone().requires_grad_() for x in problem.params.values())
        velocity = [torch.zeros_like(w), torch.zeros_like(b)]
        for lr, (x, y) in zip(free.exp(), problem.batches, strict=True):
            slopes = torch.autograd.grad(F.cross_entropy(x @ w.T + b, y), (w, b), create_graph=True)
            velocity = [0.9 * v + g for v, g in zip(velocity, slopes, strict=True)]
            w, b = w - lr * velocity[0], b - lr * velocity[1]
        value = F.cross_entropy(problem.validation.x @ w.T + b, problem.validation.y)
        assert trial.loss == pytest.approx(value.item(), rel=1e-5)
        outer.zero_grad()
        value.backward()
        outer.step()


def test_a_stopped_run_goes_on_and_ends_with_the_report_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "Clock", lambda budget: Clock(budget, count().__next__))  # by readings, not by seconds
    monkeypatch.setattr(race.gc, "collect", lambda: 0)
    options = ["--problems", "digits-lr", "--contenders", "default", "random", "unroll", "--seconds", "1"]

    def run(folder, stop_before=None):
        found = ran(STUDY, *options, "--seeds", "0", "--out", str(tmp_path / folder), stop_before=stop_before)
        return found, json.loads((tmp_path / folder / "metrics.json").read_text())

    assert run("stopped", "digits-lr-unroll-seed0")[0].status == 130
    found, resumed = run("stopped")
    assert found.status == 0
    assert "digits" in found.text
    whole = run("whole")[1]
    timed = "share_of_processor"
    assert results_in(tmp_path / "stopped", timed) == results_in(tmp_path / "whole", timed)
    assert resumed["summary"] == whole["summary"]
    assert all(result[timed] > 0 for result in whole["results"].values())
    assert len(whole["results"]) == 3
    written = (tmp_path / "whole" / "report.md").read_text()
    assert "digits, learning rate (1)" in written
    assert "bilevel, Unroll" in written
    assert "(gain.png)" in written
    assert (tmp_path / "whole/gain.png").exists()
    whole["config"]["contenders"] = ["default", "random"]
    assert report.summarise(whole)["problems"]["digits-lr"]["apart"] is None  # no hypergradients to compare with
