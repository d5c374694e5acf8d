"""PureOptimizer: any pure optimizer as a torch.optim.Optimizer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import strategies
from hyperopt_ftp.torch_optim.pure.pure_optimizer import _filled

from ..support.compare import kept, same
from ..support.contract import through_a_file
from ..support.problems import batches, largest_difference, loss, start

F64 = torch.float64


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


@st.composite
def cases(draw: Any, none: bool = True) -> tuple[hft.Optimizer, strategies.Run]:
    """Any optimizer below any combinators; parameters by name, of which one or more have a gradient at each step."""
    found = draw(strategies.runs(none=none))
    names = list(map(str, range(len(tree.leaves(found.params)))))
    rows = [dict(zip(names, tree.leaves(x), strict=True)) for x in (found.params, *found.grads)]
    assume(all(any(g is not None for g in row.values()) for row in rows))
    return draw(strategies.optimizers(rows[0], none=none)), strategies.Run(rows[0], rows[1:])


def walk(params: dict[str, nn.Parameter], opt: torch.optim.Optimizer, grads: list[dict[str, Any]]) -> None:
    for row in grads:
        for name, p in params.items():
            p.grad = None if row[name] is None else row[name].clone()
        opt.step()


@given(none=st.booleans(), data=st.data())
def test_a_step_is_the_pure_update_and_a_resumed_run_goes_on_bit_for_bit(none: bool, data: Any):
    pure, run = data.draw(cases(none))
    at, params = data.draw(st.integers(0, len(run.grads))), parameters(run.params)
    opt = hft.PureOptimizer(params.items(), pure)
    walk(params, opt, run.grads[:at])
    again = parameters(dict(params))
    other = hft.PureOptimizer(again.items(), pure)
    other.load_state_dict(through_a_file(opt.state_dict()))
    for mine, one in ((params, opt), (again, other)):
        walk(mine, one, run.grads[at:])
    weights, state = run.by(pure)
    for mine, one in ((params, opt), (again, other)):
        assert largest_difference(mine, weights) == 0
        assert largest_difference(one.pure_state(), state) == 0
    assert opt.hparams() == other.hparams()


@given(case=cases())
def test_a_state_dict_that_is_loaded_is_given_back(case: tuple[hft.Optimizer, strategies.Run]):
    pure, run = case
    opts = []
    for grads in (run.grads, []):
        params = parameters(run.params)
        opts.append(hft.PureOptimizer(params.items(), pure))
        walk(params, opts[-1], grads)
    opts[1].load_state_dict(through_a_file(opts[0].state_dict()))
    assert same(*(kept(opt.state_dict()) for opt in opts))


@given(case=cases(), later=st.booleans())
def test_a_group_that_comes_later_is_refused_and_changes_nothing(
    case: tuple[hft.Optimizer, strategies.Run], later: bool
):
    pure, run = case
    params = parameters(run.params)
    opt = hft.PureOptimizer(params.items(), pure)
    walk(params, opt, run.grads if later else [])
    before = kept((opt.state_dict(), [*params.values()]))
    with pytest.raises(RuntimeError, match="takes no groups later"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert same(kept((opt.state_dict(), [*params.values()])), before)


@given(run=strategies.runs(none=False), rule=strategies.rules(), data=st.data())
def test_a_rate_that_is_written_at_each_step_is_a_table(run: strategies.Run, rule: hft.Optimizer, data: Any):
    """As a scheduler writes it."""
    params = dict(zip("abcdefgh", map(nn.Parameter, map(torch.clone, tree.leaves(run.params))), strict=False))
    rates = [data.draw(strategies.between(0.01, 0.2)) for _ in run.grads]
    opt = hft.PureOptimizer(params.items(), rule)
    for lr, g in zip(rates, run.grads, strict=True):
        opt.param_groups[0]["lr"] = lr
        walk(params, opt, [dict(zip(params, tree.leaves(g), strict=True))])
    table = hft.per_step(rule, lr=torch.tensor(rates, dtype=F64))
    assert largest_difference([*params.values()], tree.leaves(run.by(table)[0])) == 0


@given(case=cases(), data=st.data(), value=st.sampled_from([-1.0, float("nan"), "fast", None, 1j, [0.1]]))
def test_a_wrong_write_is_refused_and_weights_and_state_stay(case: Any, data: Any, value: Any):
    pure, run = case
    assume(not pure.tunes)  # where a write says that it is tuned
    params = parameters(run.params)
    opt = hft.PureOptimizer(params.items(), pure)
    walk(params, opt, run.grads)
    rates = [(g, name) for g in opt.param_groups for name in g if name.split(".")[-1] == "lr"]
    group, name = data.draw(st.sampled_from(rates))
    before, right = kept((dict(opt.state), [*params.values()])), group[name]
    group[name] = value
    with pytest.raises((TypeError, ValueError), match="lr|structure of the parameters"):
        walk(params, opt, run.grads[:1])
    assert same(kept((dict(opt.state), [*params.values()])), before)
    group[name] = right
    walk(params, opt, run.grads[:1])


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
