"""PureOptimizer: arguments, writes into groups and checkpoints that are refused."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support.problems import batches, largest_difference
from .bad_inputs import tracked
from .test_pure import parameters, step, tower

F64 = torch.float64


def pure(optimizer: Any, *groups: dict[str, Any], **options: Any) -> Callable[[Any], Any]:
    """Of parameters: in these groups, or all in none."""
    return lambda p: hft.PureOptimizer([{"params": p, **group} for group in groups] or p, optimizer, **options)


WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (pure(torch.optim.Adam), TypeError, "must be a pure optimizer such as hft.adam"),
    (pure(hft.adam), TypeError, "got adam itself: call it"),
    (lambda p: hft.PureOptimizer(hft.adam(), p), TypeError, "optimizer must be a pure optimizer"),
    (pure(hft.adam(), {"lrr": 0.1}), ValueError, "did you mean 'lr'"),
    (pure(hft.adam(), {"lr": "0.1"}), TypeError, "lr must be a number"),
    (pure(hft.adam(), {"lr": -0.1}), ValueError, "lr must lie in"),
    (pure(hft.adam(), {"betas": (0.9, 0.99, 0.5)}), ValueError, "betas must be a pair (beta1, beta2), got (0.9"),
    (pure(hft.sgd(), {"lr": torch.tensor(math.nan)}), ValueError, "lr must lie in"),
    (pure(hft.adam(), compile=3), TypeError, "compile must be True, False or the name of a backend such as"),
    (pure(hft.adam(lr=tracked(0.1))), ValueError, "lr requires a gradient, but a step of"),
    (pure(hft.per_step(hft.sgd(), lr=tracked([0.1, 0.2]))), ValueError, "lr requires a gradient, but a step of"),
    (pure(hft.adam(), {"lr": tracked(0.1)}), ValueError, "a step of PureOptimizer has no derivative"),
    (lambda p: hft.PureOptimizer([p[0], p[0]], hft.adam()), ValueError, "parameter 1 is parameter 0 again"),
    (pure(hft.adam(), {"params": []}), ValueError, "got no parameters in group 0"),
    (pure(hft.adam(), {}, {"params": []}), ValueError, "got no parameters in group 1: leave that out"),
    (lambda p: halves(p, hft.ftp(hft.adam(), {"0": p[0].detach().clone()})), ValueError, "are the parts of a part"),
    (lambda p: halves(p, hft.partition({"a": hft.sgd()}, {"*": "a"})), ValueError, "has parts of its own"),
    (lambda p: hft.PureOptimizer(p, hft.ftp(hft.adam(), {"0": p[0]})), ValueError, "shares memory with a parameter"),
    (lambda p: hft.PureOptimizer(p, hft.ftp(hft.adam(), {"0": p[0].detach()})), ValueError, "shares memory with a"),
]


def halves(p: list[Any], optimizer: Any) -> Any:
    return hft.PureOptimizer([{"params": p[:1]}, {"params": p[1:]}], optimizer)


@pytest.mark.parametrize(("make", "error", "text"), WRONG)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_wrong_arguments(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make(list(parameters().values()))


def test_writes_into_groups_are_checked():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam())
    for value, error, text in (
        ("fast", TypeError, "lr must be a number"), (-1.0, ValueError, "lr must lie in"), (None, TypeError, "got None"),
        (tracked(0.1), ValueError, "lr requires a gradient"),
    ):  # fmt: skip
        opt.param_groups[0]["lr"] = value
        before = {n: p.detach().clone() for n, p in params.items()}
        with pytest.raises(error, match=text):
            step(params, opt, batches(1)[0])
        assert largest_difference(dict(params), before) == 0


RATES = {"w": 0.1, "b": 0.2}


@pytest.mark.parametrize(
    ("optimizer", "name", "text"),
    [
        (hft.adam(), "weight_decya", "'weight_decya', which nothing reads; did you mean 'weight_decay'"),
        (hft.adam(lr=RATES), "lr", r"'lr', which nothing reads; write its entries, \['lr.w', 'lr.b'\]"),
        (tower(), "by", r"'by', which nothing reads; write its entries, \['by.lr', 'by.betas'"),
    ],
)
def test_a_name_in_a_group_that_nothing_reads_is_refused(optimizer, name: str, text: str):
    """At each step until it is gone."""
    params = parameters()
    opt = hft.PureOptimizer(params.items(), optimizer)
    step(params, opt, batches(1)[0])
    opt.param_groups[0][name] = 0.0
    before = {n: p.detach().clone() for n, p in params.items()}
    for _ in range(2):
        with pytest.raises(ValueError, match=text):
            step(params, opt, batches(1)[0])
    assert largest_difference(dict(params), before) == 0
    del opt.param_groups[0][name]
    step(params, copy.deepcopy(opt), batches(1)[0])


def test_names_that_others_keep_in_groups_are_allowed():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), tower())
    names = "initial_lr max_lr min_lr swa_lr base_momentum max_momentum lr_scale name fused foreach k"
    opt.param_groups[0].update(dict.fromkeys(names.split(), 0.0))
    step(params, opt, batches(1)[0])


def test_a_table_that_a_scheduler_has_overwritten_is_refused():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.per_step(hft.adamw(), lr=torch.linspace(0.1, 0.2, 5)))
    torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10)
    with pytest.raises(ValueError, match="a scheduler of torch has written one number over the table of lr"):
        step(params, opt, batches(1)[0])


def test_tensors_in_groups_are_checked_where_that_waits_for_nothing():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam(lr={"w": 0.1, "b": 0.2}))
    group = opt.param_groups[0]
    for value, text in ((group["lr.b"], r"lr\.b must lie in"), (group["betas"][1], "betas must lie in")):
        right = value.clone()
        value.fill_(-1.0)
        with pytest.raises(ValueError, match=text):
            step(params, opt, batches(1)[0])
        value.copy_(right)
    step(params, opt, batches(1)[0])
    hft.PureOptimizer([{"params": list(params.values()), "lr": torch.tensor(-1.0, device="meta")}], hft.sgd())


def test_a_schedule_that_ends_at_zero_but_for_rounding_is_taken():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.sgd(lr=0.1))
    scheduler = torch.optim.lr_scheduler.LinearLR(opt, 0.1, 0.0, 10)
    for _ in range(10):
        step(params, opt, batches(1)[0])
        scheduler.step()
    assert -1e-17 < opt.hparams()["lr"] < 0
    step(params, opt, batches(1)[0])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda p: torch.optim.Adam(p.values()), "state of parameters"),
        (lambda p: hft.PureOptimizer(p.items(), hft.sgd()), "no .*betas"),
        (lambda p: hft.PureOptimizer(p.items(), hft.adam(amsgrad=True)), "entries .*max_exp_avg_sq"),
        (lambda p: hft.PureOptimizer({"w": p["w"]}.items(), hft.adam()), "no 'exp_avg.b'"),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(other, text):
    params, theirs = parameters(), parameters()
    opt, its = hft.PureOptimizer(params.items(), hft.adam()), other(theirs)
    step(theirs, its, batches(1)[0])
    step(params, opt, batches(1)[0])
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=text):
        opt.load_state_dict(its.state_dict())
    assert largest_difference(opt.state_dict()["state"], before["state"]) == 0
