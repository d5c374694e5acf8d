"""PureOptimizer: hyperparameters, and what is tuned, in the groups of a torch.optim.Optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.contract import through_a_file
from ..support.problems import batches, largest_difference, loss, start
from .test_pure import Net, descend, parameters, step, tower

F64 = torch.float64


def test_hparams_stand_in_the_groups_and_can_be_written():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam(lr=0.1, betas=(0.8, 0.9)))
    (group,) = opt.param_groups
    assert set(group) == {"params", "param_names", "lr", "betas", "eps", "weight_decay"}
    assert group["lr"].dtype == F64
    assert opt.defaults["betas"][0] == 0.8
    group["lr"], group["betas"] = 0.0, (0.5, 0.6)
    before = {n: p.detach().clone() for n, p in params.items()}
    step(params, opt, batches(1)[0])
    assert largest_difference(dict(params), before) == 0
    assert opt.hparams() == {"lr": 0.0, "betas": (0.5, 0.6), "eps": 1e-8, "weight_decay": 0.0}


def test_numbers_for_each_parameter_stand_in_the_groups():
    rates, firsts, seconds = ({"w": 0.1, "b": 0.2}, {"w": 0.8, "b": 0.7}, {"w": 0.9, "b": 0.6})
    pure = hft.adam(lr=rates, betas=(firsts, seconds))
    opt = hft.PureOptimizer(parameters().items(), pure)
    opt.param_groups[0]["betas"][0]["w"].fill_(0.0)
    values = opt.hparams()
    assert pure.hparams["betas"][0]["w"] == 0.8
    assert (values["lr.b"], values["betas"]) == (0.2, (firsts | {"w": 0.0}, seconds))


def test_what_is_tuned_is_shown_saved_and_guarded():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), tower())
    assert opt.hparams()["lr"] == 1e-3
    opt.param_groups[0]["lr"] = 0.02  # before the first step it may be written
    constant = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1.0)
    for x in batches(6):
        step(params, opt, x)
        constant.step()  # writes the starting value, which changes nothing
    values = opt.hparams()
    assert values["lr"] > 1.2 * 0.02
    assert values["by.lr"] != 0.05
    assert set(values) >= {"lr", "momentum", "by.lr", "by.betas", "by.by.lr"}
    opt.param_groups[0]["lr"] = 0.5
    with pytest.raises(
        RuntimeError, match=r"lr was set to 0\.5, but the optimizer tunes it itself .* constant scheduler"
    ):
        step(params, opt, batches(1)[0])


@pytest.mark.filterwarnings("ignore:'lr' has been tuned to NaN")
def test_a_tuned_number_that_is_not_finite_is_nobodys_write():
    w = torch.nn.Parameter(torch.ones(1))
    opt = hft.PureOptimizer([w], hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.01), over="lr"))
    for gradient in (1.0, math.nan, 1.0, 1.0):
        w.grad = torch.tensor([gradient])
        opt.step()
    assert math.isnan(opt.hparams()["lr"])


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.* before .*optimizer.step:UserWarning")
def test_a_resumed_run_takes_what_a_constant_scheduler_writes():
    def made(values: dict[str, Tensor] | None = None) -> tuple:
        params = parameters(values)
        opt = hft.PureOptimizer(params.items(), tower())
        return params, opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5)

    def go(params: dict[str, nn.Parameter], opt: torch.optim.Optimizer, schedule: Any, data: list[Tensor]) -> None:
        for x in data:
            schedule.step()  # also as the first thing after loading
            step(params, opt, x)

    first = made()
    go(*first, batches(4)[:2])
    again = made({n: p.detach() for n, p in first[0].items()})
    for i in (1, 2):
        again[i].load_state_dict(through_a_file(first[i].state_dict()))
    for run in (first, again):
        go(*run, batches(4)[2:])
    assert largest_difference(dict(first[0]), dict(again[0])) == 0


def test_a_partition_has_a_group_for_each_part_in_the_order_of_its_labels():
    """So a checkpoint does not depend on the order of the parameters."""
    net = Net()
    parts = {"fast": hft.sgd(lr=0.1), "slow": hft.adam(lr=0.01), "still": hft.frozen()}
    rule = hft.clipped(hft.partition(parts, {"head.*": "fast", "body.weight": "slow", "*": "still"}), 1.0)
    turned = hft.PureOptimizer(list(net.named_parameters())[::-1], rule)
    opt = hft.PureOptimizer(net.named_parameters(), rule)
    for found in (opt, turned):
        assert [group["part"] for group in found.param_groups] == ["fast", "slow", "still"]
        names = [sorted(group["param_names"]) for group in found.param_groups]
        assert names == [["head.bias", "head.weight"], ["body.weight"], ["body.bias"]]
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        descend(net, opt)
        schedule.step()
    changed = {n for n, w in net.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {"head.weight", "head.bias", "body.weight"}
    values = opt.hparams()
    assert (values["fast.lr"], values["slow.lr"], values["max_norm"]) == (0.025, 0.0025, 1.0)


def test_a_checkpoint_with_the_parts_in_another_order_is_refused():
    """Its hparams are loaded by the number of the group."""
    rules = {"fast": hft.adam(lr=0.1), "slow": hft.adam(lr=0.01)}
    opt, turned = (
        hft.PureOptimizer(Net().named_parameters(), hft.partition(parts, {"head.*": "fast", "*": "slow"}))
        for parts in (rules, dict(reversed(rules.items())))
    )
    with pytest.raises(ValueError, match=r"groups of the parts \['fast', 'slow'\], here are \['slow', 'fast'\]"):
        turned.load_state_dict(opt.state_dict())
    assert (turned.hparams()["fast.lr"], turned.hparams()["slow.lr"]) == (0.1, 0.01)


def test_a_frozen_part_has_an_lr_for_schedulers_wherever_other_hparams_lie():
    """Those of ftp belong to no part, and are in the first group."""
    net = Net()
    parts = {"still": hft.frozen(), "fast": hft.sgd(lr=0.1)}
    anchor = {n: p.detach().clone() for n, p in net.named_parameters()}
    rule = hft.ftp(hft.partition(parts, {"body": "still", "head": "fast"}), anchor)
    opt = hft.PureOptimizer(net.named_parameters(), rule)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, [0.0, 0.2], total_steps=4, cycle_momentum=False)
    for _ in range(3):
        descend(net, opt)
        schedule.step()
    assert torch.equal(net.body.weight, anchor["body.weight"])
    assert not torch.equal(net.head.weight, anchor["head.weight"])
    assert [name for name in opt.hparams() if name.endswith("lr") and "radius" not in name] == ["fast.lr"]


def test_averages_are_those_of_the_pure_state():
    pure, params = hft.averaged(hft.adam(lr=0.1), decay=0.5), parameters()
    opt = hft.PureOptimizer(params.items(), pure)
    weights, state = start(), pure.init(start())
    for x in batches(3):
        weights, state = pure.update(torch.func.grad(loss)(weights, x), state, weights)
        step(params, opt, x)
    assert largest_difference(opt.averages(), hft.averages(weights, state)) < 1e-14
    assert largest_difference(opt.averages(), weights) > 1e-3
    with pytest.raises(ValueError, match="keeps no average"):
        hft.PureOptimizer(parameters().items(), hft.adam()).averages()


def test_groups_with_numbers_of_their_own_are_parts():
    nets = Net(), Net()
    groups = [[{"params": net.body.parameters(), "lr": 0.05}, {"params": net.head.parameters()}] for net in nets]
    opts = (
        hft.PureOptimizer(groups[0], hft.sgd(lr=0.1, momentum=0.9)),
        torch.optim.SGD(groups[1], lr=0.1, momentum=0.9),
    )
    for _ in range(3):
        for net, opt in zip(nets, opts, strict=True):
            descend(net, opt)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("read", [float, lambda h: h, lambda h: h.detach().item()], ids=["float", "tensor", "detached"])
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_rule_that_takes_the_number_of_what_is_tuned_is_warned_of(read: Callable[..., Any]):
    def update(grads: Any, state: Any, params: Any, hparams: Any) -> Any:
        return tree.map_tree(lambda w, g: w - read(hparams["lr"]) * g, params, grads), state

    base = hft.Optimizer(lambda params, hparams: (), update, hft.sgd(lr=0.1).hparams)
    opt = hft.PureOptimizer((params := parameters()).items(), hft.hyper(base, by=hft.sgd(lr=1e-3), over="lr"))
    for k, x in enumerate(batches(3)):
        warned = read is float and not k
        with pytest.warns(UserWarning, match="makes a number of a tensor") if warned else nullcontext():
            step(params, opt, x)


def test_names_in_a_group_are_one_for_each_hparam():
    tuned = hft.hyper(hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.2), over="lr"), by=hft.sgd(lr=0.3), over="by.lr")
    values = hft.PureOptimizer(parameters().items(), tuned).hparams()
    assert (values["lr"], values["base.by.lr"], values["by.lr"]) == (0.1, 0.2, 0.3)

    inside = hft.scheduled(hft.clipped(hft.sgd(lr=0.1), 1.0), lr=hft.schedules.cosine(10))
    parts = hft.partition({"one": inside, "two": hft.sgd(lr=0.2)}, {"w": "one", "b": "two"})
    around = hft.scheduled(hft.clipped(parts, 2.0), {"two.lr": hft.schedules.cosine(20, floor=0.5)})
    params, pure = parameters(), around
    opt = hft.PureOptimizer(params.items(), pure)
    values = opt.hparams()
    assert (values["one.max_norm"], values["max_norm"]) == (1.0, 2.0)
    assert (values["one.lr_schedule.floor"], values["two.lr_schedule.floor"]) == (0.0, 0.5)
    tower = hft.PureOptimizer(parameters().items(), hft.hyper(around, by=hft.sgd(), over=("one.lr", "max_norm")))
    assert [group["param_names"] for group in tower.param_groups] == [["w"], ["b"]]
    assert [float(group["lr"]) for group in tower.param_groups] == [0.1, 0.2]
    step(params, opt, batches(1)[0])
    weights, _ = pure.update(torch.func.grad(loss)(start(), batches(1)[0]), pure.init(start()), start())
    assert largest_difference(dict(params), weights) == 0
