"""PureOptimizer: any pure optimizer as a torch.optim.Optimizer."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.torch_optim.pure.pure_optimizer import _filled

from ..support.cases import CASES, Case
from ..support.contract import through_a_file
from ..support.problems import batches, largest_difference, loss, start
from .bad_inputs import tracked

F64 = torch.float64

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def parameters(values: dict[str, Tensor] | None = None) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(w.clone()) for name, w in (values or start()).items()}


def step(params: dict[str, nn.Parameter], opt: torch.optim.Optimizer, x: Tensor, absent: str | None = None) -> None:
    opt.zero_grad()
    loss(params, x).backward()
    if absent:
        params[absent].grad = None
    opt.step()


def tower() -> hft.Optimizer:
    level = hft.hyper(hft.adam(lr=0.05), by=hft.sgd(lr=1e-3), over="lr")
    return hft.hyper(hft.sgd(lr=1e-3), by=level, over="lr", constrain={"lr": "log"})


# -- the same as the pure update ---------------------------------------------------------------------------------------


@every_case
def test_a_step_is_the_pure_update_and_a_resumed_run_goes_on_bit_for_bit(case: Case):
    pure, params = case.build(), parameters()
    opt = hft.PureOptimizer(params.items(), pure)
    weights, state = start(), pure.init(start())
    for t, x in enumerate(batches(6)):
        absent = "b" if t == 2 and case.gaps else None
        if t == 3:
            again = parameters(weights)
            other = hft.PureOptimizer(again.items(), case.build())
            other.load_state_dict(through_a_file(opt.state_dict()))
        grads: dict = torch.func.grad(loss)(weights, x)
        weights, state = pure.update(grads | ({absent: None} if absent else {}), state, weights)
        step(params, opt, x, absent)
        assert largest_difference(dict(params), weights) == 0
        if t >= 3:
            step(again, other, x)  # pyright: ignore[reportPossiblyUnboundVariable]
            assert largest_difference(dict(again), weights) == 0  # pyright: ignore[reportPossiblyUnboundVariable]
    assert opt.hparams() == other.hparams()  # pyright: ignore[reportPossiblyUnboundVariable]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Linear(3, 8, dtype=F64), nn.Linear(8, 1, dtype=F64)
        for p in self.parameters():
            nn.init.normal_(p, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def descend(net: Net, opt: torch.optim.Optimizer) -> None:
    opt.zero_grad()
    net(torch.ones(4, 3, dtype=F64)).square().mean().backward()
    opt.step()


def test_a_state_is_loaded_in_the_precision_of_the_parameters():
    params, narrow = parameters(), parameters({n: w.float() for n, w in start().items()})
    opt, other = (hft.PureOptimizer(p.items(), hft.averaged(hft.adam())) for p in (params, narrow))
    step(params, opt, batches(1)[0], absent="b")
    other.load_state_dict(through_a_file(opt.state_dict()))
    step(narrow, other, batches(1)[0].float())
    dtypes = {name: x.dtype for name, x in other.state["pure"].items()}
    counts = {"base.step.w", "base.step.b"}
    assert dtypes == {name: torch.int64 if name in counts else torch.float32 for name in dtypes}
    assert counts < dtypes.keys()


def test_adam_under_a_scheduler_clipping_and_scaling_equals_torchs():
    """And resumed."""
    nets, options = [Net(), Net()], {"lr": 0.02, "weight_decay": 0.01, "eps": 1e-6}

    def ours() -> Any:
        return hft.PureOptimizer(nets[1].named_parameters(), hft.adam(**options))

    opts = [torch.optim.Adam(nets[0].parameters(), **options), ours()]
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=16) for opt in opts]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in opts]
    g = torch.Generator().manual_seed(1)
    for t in range(12):
        x = torch.randn(16, 3, dtype=F64, generator=g)
        for net, opt, schedule, scaler in zip(nets, opts, schedulers, scalers, strict=True):
            opt.zero_grad()
            value = net(x).square().mean()
            scaler.scale(value * (float("inf") if t == 5 else 1.0)).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(opt)
            scaler.update()
            schedule.step()
        if t == 7:
            saved = through_a_file((opts[1].state_dict(), schedulers[1].state_dict()))
            opts[1] = ours()
            schedulers[1] = torch.optim.lr_scheduler.OneCycleLR(opts[1], max_lr=0.1, total_steps=16)
            opts[1].load_state_dict(saved[0])
            schedulers[1].load_state_dict(saved[1])
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        # Rounding of a dozen operations a step over 12 steps of values of order 1; eps bounds what a root divides.
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_compiled_equals_eager():
    torch._dynamo.reset()
    runs = []
    for compiled in (False, "aot_eager"):
        params = parameters()
        opt = hft.PureOptimizer(params.items(), tower(), compile=compiled)
        for x in batches(4):
            step(params, opt, x)
        runs.append((dict(params), {name: torch.tensor(x) for name, x in opt.hparams().items()}))
    assert largest_difference(*runs) < 1e-13


# -- hyperparameters in groups -----------------------------------------------------------------------------------------


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


# -- torch.optim's manners ---------------------------------------------------------------------------------------------


def test_writes_into_groups_change_no_state():
    """A scheduler fills the tensor in its group."""
    tuned = hft.hyper(hft.sgd(lr=0.1, momentum=0.5), by=hft.sgd(lr=0.1), over=("weight_decay", "dampening"))
    weights, state, params = start(), tuned.init(start()), parameters()
    opt = hft.PureOptimizer(params.items(), tuned)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    for t, x in enumerate(batches(5)):
        h = {**tuned.hparams, "base": {**tuned.hparams["base"], "lr": torch.tensor(0.1 * 0.5**t, dtype=F64)}}
        weights, state = tuned.update(torch.func.grad(loss)(weights, x), state, weights, h)
        step(params, opt, x)
        schedule.step()
        assert largest_difference(dict(params), weights) == 0


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("make", [tower, lambda: hft.adan(lr=0.1), lambda: hft.rprop()], ids=["tower", "adan", "rprop"])
def test_gradients_that_are_zeroed_in_place_leave_the_state_alone(make, to_none: bool):
    """A state may keep the gradient of the step before; one tensor is computed by itself, so that nothing is copied."""
    p = nn.Parameter(start()["w"].clone())
    pure, opt = make(), hft.PureOptimizer([p], make())
    w = {"0": p.detach().clone()}
    state = pure.init(w)
    for _ in range(4):
        opt.zero_grad(set_to_none=to_none)
        (p**4).sum().backward()
        opt.step()
        w, state = pure.update({"0": 4 * w["0"] ** 3}, state, w)
        torch.testing.assert_close(p.detach(), w["0"], rtol=1e-13, atol=1e-13)


def test_closures_hooks_and_copies():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), tower())
    opt.step()  # without any gradient
    assert not opt.state
    called = []
    opt.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> Tensor:
        opt.zero_grad()
        value = loss(params, batches(1)[0])
        value.backward()
        return value

    assert opt.step(closure).item() > 0
    assert called == ["after"]
    twin = copy.deepcopy(opt)
    twin_params = dict(zip(params, (p for g in twin.param_groups for p in g["params"]), strict=True))
    for x in batches(2):
        step(params, opt, x)
        step(twin_params, twin, x)
    assert largest_difference(dict(params), twin_params) == 0


def test_a_look_at_the_state_changes_nothing():
    """It is a defaultdict, where a look makes an entry."""
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam())
    state: Any = opt.state
    assert state["pure"] == state[params["w"]] == {}
    step(params, opt, batches(1)[0])
    assert state["pure"]["step"] == 1


def test_hooks_see_a_checkpoint_before_it_is_checked():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam())
    step(params, opt, batches(1)[0])
    opt.register_load_state_dict_pre_hook(lambda _, found: found["inside"])
    opt.load_state_dict({"inside": opt.state_dict()})
    wrong: Any
    for wrong in (None, "file.pt", {"inside": {}}):
        with pytest.raises(ValueError, match="load_state_dict needs what an optimizer's state_dict"):
            opt.load_state_dict(wrong)


def test_a_loaded_state_comes_to_the_device_of_its_parameters():
    """As torch's does, after ``torch.load(..., map_location="cpu")``."""
    with FakeTensorMode():
        weights = {"w": torch.ones(3, device="cuda")}
        state = hft.adam().init(weights)
        found = _filled(state, {path: x.cpu() for path, x in tree.named(state)}, weights)
        assert [x.device.type for x in tree.leaves(found)] == ["cpu", "cuda", "cuda"]


# -- what is refused ---------------------------------------------------------------------------------------------------


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


def test_later_groups_are_refused():
    opt = hft.PureOptimizer(parameters().items(), hft.adam())
    with pytest.raises(RuntimeError, match="takes no groups later"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


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


# -- held near an anchor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon", [True, False], ids=["muon and adamw", "adam and sgd"])
def test_ftp_around_a_partition_is_the_pure_rule_and_resumes(muon: bool):
    """The class around the class, and the function around the function."""
    rules = (hft.muon(lr=0.05), hft.adamw(lr=0.05)) if muon else (hft.adam(lr=0.05), hft.sgd(lr=0.1))
    parts = hft.partition(dict(zip(("matrices", "rest"), rules, strict=True)), {"*weight": "matrices", "*": "rest"})
    net = Net()
    start_at = {n: p.detach().clone() for n, p in net.named_parameters()}
    pure, weights = hft.ftp(parts, start_at, radius_lr=0.03), dict(start_at)
    opt, state = hft.FTP(hft.PureOptimizer(net.named_parameters(), parts), radius_lr=0.03), pure.init(weights)
    x = torch.randn(8, 3, dtype=F64, generator=torch.Generator().manual_seed(3))

    def value(w: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(net, w, (x,)) - 2).square().mean()

    for t in range(12):
        opt.zero_grad()
        value(dict(net.named_parameters())).backward()
        opt.step()
        weights, state = pure.update(torch.func.grad(value)(weights), state, weights)
        if t == 5:
            kept = through_a_file(opt.state_dict())
            opt = hft.FTP(hft.PureOptimizer(net.named_parameters(), parts), radius_lr=0.03)
            opt.load_state_dict(kept)
    # Rounding of two executions of the projection, over 12 steps of values of order 1.
    assert largest_difference(dict(net.named_parameters()), weights) < 1e-12
    assert opt.radii() == pytest.approx({n: r.item() for n, r in state.radius.items()}, rel=1e-9)
    assert any(r > 0.05 for r in opt.radii().values())


# -- checkpoints that are not its own, and other processes -------------------------------------------------------------


def test_a_count_that_is_a_number_is_loaded_and_other_names_are_said():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam(lr=0.1))
    step(params, opt, batches(1)[0])
    saved = copy.deepcopy(opt.state_dict())
    saved["state"]["pure"]["step"] = 1
    again = parameters({n: p.detach() for n, p in params.items()})
    other = hft.PureOptimizer(again.items(), hft.adam(lr=0.1))
    other.load_state_dict(saved)
    for mine, one in ((params, opt), (again, other)):
        step(mine, one, batches(2)[1])
    assert largest_difference(dict(params), dict(again)) == 0
    unnamed = hft.PureOptimizer(parameters().values(), hft.adam(lr=0.1))
    with pytest.raises(ValueError, match=r"has no 'exp_avg.0'.* other names of them, as in 'exp_avg\.\w'"):
        unnamed.load_state_dict(opt.state_dict())


def test_a_state_is_loaded_by_name_into_another_order():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam(lr=0.1))
    step(params, opt, batches(1)[0])
    turned = dict(reversed(parameters({n: p.detach() for n, p in params.items()}).items()))
    other = hft.PureOptimizer(turned.items(), hft.adam(lr=0.1))
    other.load_state_dict(opt.state_dict())
    for mine, one in ((params, opt), (turned, other)):
        step(mine, one, batches(2)[1])
    assert largest_difference(dict(params), {name: turned[name] for name in params}) == 0
    (group,) = other.param_groups
    assert all(turned[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))


def test_pickle_says_what_to_send_and_copies_still_work():
    params = parameters()
    opt = hft.PureOptimizer(params.items(), hft.adam(lr=0.1))
    with pytest.raises(TypeError, match=r"cannot be pickled, or sent to a process, .* send its state_dict\(\)"):
        pickle.dumps(opt)
    step(params, opt, batches(1)[0])
    with pytest.raises(TypeError, match="cannot be pickled"):
        torch.multiprocessing.get_context("spawn").Process(target=print, args=(opt,)).start()
    for other in (copy.deepcopy(opt), copy.copy(opt), copy.deepcopy(copy.deepcopy(opt))):
        assert other.hparams() == opt.hparams()
        assert largest_difference(other.pure_state(), opt.pure_state()) == 0
