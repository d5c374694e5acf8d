"""Losses of modules: buffers go on as in a loop by hand, in each strategy; tied weights; activation checkpointing."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import InnerProblem, Strategy
from hyperopt_ftp.hyper.core.inputs import BufferedState
from hyperopt_ftp.hyper.unrolling import budget

from ..support.hypergradients import drawn, every_way

F64 = torch.float64
OPT = hft.sgd(lr=0.1, momentum=0.9)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2)]
    return nn.Sequential(*layers).to(F64)


def data(count: int = 5):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, dtype=F64, generator=g) * (1 + k), torch.randn(6, 2, dtype=F64, generator=g))
            for k in range(count)]  # fmt: skip


def fit(m, batch, h=1.0):
    return h * F.mse_loss(m(batch[0]), batch[1])


def called(net, values, x):
    return functional_call(net, values, (x,))


def named(net, **options):
    return dict(net.named_parameters(**options))


def by_hand(net, lr, h=1.0, truncate=5, first_order=False):
    """Where the loop ends that everybody writes, params and buffers; its random numbers are those of seed 7."""
    torch.manual_seed(7)
    params = dict(net.named_parameters())
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    state = OPT.init(params)
    for k, batch in enumerate(data()):
        if k == 5 - truncate:
            state = tree.map_tree(torch.detach, state)
            params = {n: p.detach().requires_grad_() for n, p in params.items()}
        loss = fit(partial(called, net, {**params, **buffers}), batch, h)
        grads = torch.autograd.grad(loss, [*params.values()], create_graph=True)
        grads = {n: g.detach() if first_order else g for n, g in zip(params, grads, strict=True)}
        params, state = OPT.update(grads, state, params, {**OPT.hparams, "lr": lr})
    return params, buffers


def held_out(net, params, buffers):
    """The statistics count: the network is in eval mode."""
    net.eval()
    loss = sum(fit(lambda x: functional_call(net, {**params, **buffers}, (x,)), batch) for batch in data(2))
    net.train()
    return loss


def knobs():
    return torch.tensor(0.1, dtype=F64, requires_grad=True), torch.tensor(1.3, dtype=F64, requires_grad=True)


def same(run, buffers):
    assert run.buffers.keys() == buffers.keys()
    for name, x in buffers.items():
        assert run.buffers[name].dtype == x.dtype
        assert torch.equal(run.buffers[name], x), name


class OfOnesOwn(Strategy):
    def __call__(self, problem: InnerProblem, inputs):
        return problem.loop(inputs)


STRATEGIES = {
    "default": hft.Unroll(),
    "points": hft.Unroll(checkpoint=1),
    "sqrt": hft.Unroll(checkpoint="sqrt", offload=True),
    "forward": hft.Forward(),
    "own": OfOnesOwn(),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_derivatives_and_buffers_are_those_of_a_loop_by_hand(strategy):
    net = network()
    want = by_hand(net, *(at := knobs()))
    slopes = torch.autograd.grad(held_out(net, *want), at)
    lr, h = knobs()
    torch.manual_seed(7)
    run = hft.train(OPT, hft.of_module(net, fit), named(net), data(), hparams={"lr": lr, "loss": h}, strategy=strategy)
    same(run, want[1])
    if strategy.stepwise:
        torch.manual_seed(7)
        given = {"hparams": {"lr": lr, "loss": h}, "strategy": strategy}
        same([*hft.steps(OPT, hft.of_module(net, fit), named(net), data(), **given)][-1], want[1])
    assert not run.buffers["1.running_mean"].requires_grad
    got = torch.autograd.grad(held_out(net, run.params, run.buffers), (lr, h))
    torch.testing.assert_close(got, slopes, rtol=1e-12, atol=0)
    assert net[1].num_batches_tracked == 0  # the module itself is as it was


@pytest.mark.parametrize("options", [{"truncate": 2}, {"first_order": True}], ids=str)
def test_what_is_not_differentiated_hands_buffers_on_too(options):
    net, lr, at = network(), knobs()[0], knobs()[0]
    want = by_hand(net, at, **options)
    torch.manual_seed(7)
    strategy = hft.Unroll(**options)
    run = hft.train(OPT, hft.of_module(net, fit), named(net), data(), hparams={"lr": lr}, strategy=strategy)
    same(run, want[1])
    (slope,) = torch.autograd.grad(held_out(net, *want), at)
    (got,) = torch.autograd.grad(held_out(net, run.params, run.buffers), lr)
    torch.testing.assert_close(got, slope, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:ZeroOrder trains its samples one after the other")
def test_zero_order_hands_buffers_on_too():
    """In one number its estimate is the derivative times the mean square of what it draws."""
    net, lr, at = network(), knobs()[0], knobs()[0]
    want = by_hand(net, at)
    torch.manual_seed(7)
    strategy = hft.ZeroOrder(2, 1e-5, generator=torch.Generator().manual_seed(3))
    params = tree.map_tree(torch.detach, named(net))
    run = hft.train(OPT, hft.of_module(net, fit), params, data(), hparams={"lr": lr}, strategy=strategy)
    same(run, want[1])
    (slope,) = torch.autograd.grad(held_out(net, *want), at)
    (got,) = torch.autograd.grad(held_out(net, run.params, run.buffers), lr)
    size = sum(e * e for e in drawn(2, generator=torch.Generator().manual_seed(3))) / 2
    torch.testing.assert_close(got, size * slope, rtol=1e-7, atol=0)


def test_buffers_are_those_of_the_step_where_graphs_turn_out_to_be_too_large(monkeypatch):
    monkeypatch.setattr(budget, "SMALL", 0)
    test_derivatives_and_buffers_are_those_of_a_loop_by_hand(hft.Unroll())


def test_under_a_transform():
    net = network()
    net[3].p = 0.0
    params, (lr, _) = {n: p.detach() for n, p in net.named_parameters()}, knobs()
    want = by_hand(net, lr)

    def end(lr):
        run = hft.train(OPT, hft.of_module(net, fit), params, data(), hparams={"lr": lr})
        return held_out(net, run.params, run.buffers)

    (slope,) = torch.autograd.grad(held_out(net, *want), lr)
    torch.testing.assert_close(torch.func.grad(end)(lr.detach()), slope, rtol=1e-12, atol=0)


def test_implicit_takes_buffers_for_constants():
    """In training mode no step depends on them: with and without, one fixed point."""
    torch.manual_seed(0)
    net, other = (
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=kept), nn.Linear(3, 1)).to(F64) for kept in (1, 0)
    )
    other.load_state_dict(net.state_dict(), strict=False)
    batches, opt = data(1) * 200, hft.sgd(lr=0.3)

    def penalised(m, batch, h):
        return F.mse_loss(m(batch[0])[:, 0], batch[1][:, 0]) + h * sum(p.square().sum() for p in m.parameters())

    found = []
    for m in (net, other):
        h = torch.tensor(0.5, dtype=F64)
        found.append(
            hft.hypergradient(
                opt, hft.of_module(m, penalised), lambda p: sum(x.sum() for x in p.values()), named(m), batches, "loss",
                hparams={"loss": h}, strategy=hft.Implicit(iterations=200, tolerance=1e-4),
            )
        )  # fmt: skip
    torch.testing.assert_close(found[0][1]["loss"], found[1][1]["loss"], rtol=1e-6, atol=0)
    assert found[0][2][1].buffers["0.num_batches_tracked"] == 200


def test_a_count_does_not_hide_that_a_training_has_not_converged():
    net = nn.BatchNorm1d(3).to(F64)
    loss = hft.of_module(net, fit_scaled, buffers={"num_batches_tracked": torch.tensor(10**6)})
    with pytest.warns(UserWarning, match="Implicit: training has not converged"):
        hft.hypergradient(
            hft.sgd(lr=0.01), loss, lambda p: p["bias"].sum(), named(net), data(1) * 20, "loss",
            hparams={"loss": torch.tensor(0.5, dtype=F64)}, strategy=hft.Implicit(iterations=1, tolerance=2.0),
        )  # fmt: skip


def fit_scaled(m, batch, h):
    return (m(batch[0]) - 1).square().mean() + h * m.bias.square().sum()


def test_a_training_goes_on_where_another_ended():
    net = network()
    loss, batches = hft.of_module(net, fit), data(6)
    torch.manual_seed(7)
    whole = hft.train(OPT, loss, named(net), batches)
    torch.manual_seed(7)
    first = hft.train(OPT, loss, named(net), batches[:2])
    second = hft.train(OPT, loss, first.params, batches[2:], state=first.state)
    same(second, whole.buffers)
    assert isinstance(second.state, BufferedState)
    assert tree.structure(second.state.base) == tree.structure(OPT.init(named(net)))
    again = hft.train(OPT, hft.of_module(net, fit, buffers=first.buffers), first.params, batches[2:])
    assert again.buffers["1.num_batches_tracked"] == 6  # a state of one's own, or none: the given first values


def test_bilevel_hands_buffers_from_round_to_round_and_resumes():
    net = network()
    net[3].eval()
    loss = hft.of_module(net, fit)

    def rounds(state=None):
        return hft.bilevel(
            OPT, hft.adam(lr=0.1), "lr", loss, loss, named(net), data(6), data(2), inner_steps=2, outer_steps=3,
            state=state,
        )  # fmt: skip

    records = [*rounds()]
    assert [r.state.inner.buffers["1.num_batches_tracked"].item() for r in records] == [2, 4, 6]
    (last,) = rounds(records[1].state)
    same(last.state.inner, records[2].state.inner.buffers)


def test_an_outer_loss_finds_the_buffers_that_training_has_left():
    """Also where it takes the module itself."""
    net, lr = network(), knobs()[0]
    value = held_out(net, *by_hand(net, lr))
    (want,) = torch.autograd.grad(value, lr)
    loss, outer = hft.of_module(net, fit), lambda params, batch=None: held_out(net, params, {})
    torch.manual_seed(7)
    found = hft.hypergradient(OPT, loss, outer, named(net), data(), "lr")
    torch.manual_seed(7)
    (record,) = hft.bilevel(
        OPT, hft.adam(lr=0.1), "lr", loss, outer, named(net), data(), [None], inner_steps=5, outer_steps=1
    )
    for got, slope in ((found[0], found[1]), (record.value, record.hypergradient)):
        assert float(got) == pytest.approx(value.item(), rel=1e-12)
        torch.testing.assert_close(slope["lr"], want, rtol=1e-12, atol=0)
    assert net[1].num_batches_tracked == 0


def test_a_loss_around_that_of_a_module_is_told_that_buffers_are_lost():
    net, batches = network(), data()
    loss = hft.of_module(net, fit)
    with pytest.warns(UserWarning, match=r"into \['1.running_mean', .*\] is lost after each step") as seen:
        hft.train(OPT, lambda p, batch: loss(p, batch) + p["0.weight"].square().sum(), named(net), batches)
    assert seen[0].filename == __file__
    held = {n: x.clone() for n, x in net.named_buffers()}
    hft.train(OPT, lambda p, batch: loss({**p, **held}, batch), named(net), batches)  # on purpose
    net.eval()
    hft.train(OPT, lambda p, batch: loss(p, batch), named(net), batches)


def test_buffers_are_of_the_dtype_that_the_module_has_when_training_begins():
    net = network().float()
    loss = hft.of_module(net, fit)
    net.double()
    torch.manual_seed(7)
    run = hft.train(OPT, loss, named(net), data())
    assert run.buffers["1.running_mean"].dtype == F64


@pytest.mark.parametrize("normed", [True, False])
def test_steps_keep_the_mode_in_which_training_began(normed):
    """Those that are computed again, too; a call of one's own has the mode of the module."""
    net = network()
    if not normed:
        net[1] = nn.Identity()
    loss, batch, slopes = hft.of_module(net, fit), data(1)[0], []
    for strategy in (hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1)):
        lr = knobs()[0]
        torch.manual_seed(7)
        run = hft.train(OPT, loss, named(net), data(), hparams={"lr": lr}, strategy=strategy)
        net.eval()
        slopes += torch.autograd.grad(loss({**run.params, **run.buffers}, batch), lr)
        assert not any(m.training for m in net.modules())
        net.train()
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)


def test_a_call_changes_nothing_and_takes_buffers_by_name():
    net = network()
    loss, batch = hft.of_module(net, fit), data(1)[0]
    before = tree.map_tree(torch.clone, dict(net.state_dict()))
    params = {n: p.detach() + 0.1 for n, p in net.named_parameters()}
    net.eval()
    moved = {n: b + 1 for n, b in net.named_buffers()}
    want = fit(lambda x: functional_call(net, {**params, **moved}, (x,)), batch)
    assert torch.equal(loss({**params, **moved}, batch), want)
    net.train()
    loss({**params, **moved}, batch)
    for name, x in net.state_dict().items():
        assert torch.equal(x, before[name])
    assert moved["1.num_batches_tracked"] == 1


class Elbow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("held", torch.ones(2), persistent=False)

    def forward(self, batch):
        return fit(self.inner, batch)

    def elbo(self, batch, h):
        return fit(self.inner, batch, h)


def test_a_method_and_the_module_itself():
    net, batch, h = Elbow(), data(1)[0], torch.tensor(2.0, dtype=F64)
    torch.manual_seed(7)
    want = net.elbo(batch, h).item()
    for method, own in ((lambda m, b, h: m.elbo(b, h), (h,)), (None, ())):
        loss = hft.of_module(net, method)
        torch.manual_seed(7)
        assert loss(named(net), batch, *own).item() == pytest.approx(want if own else want / 2, rel=1e-15)
        hparams = {"loss": h} if own else {}
        run = hft.train(OPT, loss, named(net), [batch], hparams=hparams)
        assert run.buffers.keys() == {n for n in net.state_dict() if "running" in n or "tracked" in n}
    with pytest.raises(ValueError, match="hparams has an entry 'loss', and train_loss has no argument for it"):
        hft.train(OPT, hft.of_module(net), named(net), [batch], hparams={"loss": h})


# -- statistics per step ----------------------------------------------------------------------------------------------


# -- tied weights, and back into the module ---------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.to(F64)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


@every_way
def test_a_tied_weight_is_one_under_all_its_names(strategy):
    net, opt = Tied(), hft.adamw(lr=0.1, eps=1e-3)
    loss = hft.of_module(net, lambda m, b: F.cross_entropy(m(b), b.flip(0)))
    words = [torch.arange(5), torch.tensor([0, 2, 2, 4])] * 2
    found = []
    for params in (named(net), named(net, remove_duplicate=False)):
        lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
        run = hft.train(opt, loss, params, words, hparams={"lr": lr}, strategy=strategy)
        assert run.params.keys() == params.keys()
        found.append((run, torch.autograd.grad(run.params["embed.weight"].sin().sum(), lr)[0]))
    (once, slope), (both, other) = found
    torch.testing.assert_close(slope, other, rtol=1e-14, atol=0)
    assert both.params["head.weight"] is both.params["embed.weight"]
    assert torch.equal(once.params["embed.weight"], both.params["embed.weight"])
    net.load_state_dict({**both.params, **both.buffers})  # strictly: every name is there
    assert torch.equal(net.head.weight, once.params["embed.weight"])

    fresh = Tied()
    hft.load(fresh, once)
    assert fresh.head.weight is fresh.embed.weight
    for name, x in net.state_dict().items():
        assert torch.equal(x, fresh.state_dict()[name])
    both, once = (
        hft.hypergradient(opt, loss, lambda p: loss(p, words[0]), named(net, remove_duplicate=r), words, "params")[:2]
        for r in (False, True)
    )
    assert both[0] == once[0]
    assert torch.equal(both[1]["params"]["embed.weight"], once[1]["params"]["embed.weight"])


# -- activation checkpointing -----------------------------------------------------------------------------------------


def test_a_checkpoint_inside_the_module_is_refused_with_what_to_write():
    """What is computed again would have the module's own weights, after a call outside of a training too."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).to(F64)
    loss = hft.of_module(net, lambda m, b: checkpoint(m, b[0], use_reentrant=False).square().mean())
    for call in (
        lambda: hft.train(OPT, loss, named(net), data(), hparams={"lr": knobs()[0]}),
        lambda: loss(named(net), data()[0]),
    ):
        with pytest.raises(RuntimeError, match=r"checkpoints its activations .* take hft.remat_layers\(net, pattern\)"):
            call()


# -- many processes ---------------------------------------------------------------------------------------------------


def test_data_parallel_averages_buffers():
    """In one process they are those of the loop; counts stay whole."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = network()
        for strategy in (hft.Unroll(), hft.Forward()):
            torch.manual_seed(7)
            run = hft.train(
                OPT, hft.data_parallel(hft.of_module(net, fit)), named(net), data(), hparams={"lr": knobs()[0]},
                strategy=strategy,
            )  # fmt: skip
            same(run, by_hand(net, 0.1)[1])
        with pytest.raises(ValueError, match="buffers are averaged over processes"):
            hft.train(OPT, hft.data_parallel(hft.of_module(net, fit), reduction="sum"), named(net), data())
    finally:
        dist.destroy_process_group()


# -- errors -----------------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=F64))
        self.register_buffer("mean", torch.zeros(3, dtype=F64))
        self.how = how

    def forward(self, batch):
        y = batch[0] * self.weight
        self.how(self, y)
        return (y - self.mean).square().mean()


def remembers(m, y):
    m.mean = 0.9 * m.mean + 0.1 * y.mean(0)


def grows(m, y):
    m.mean = torch.zeros(1, 3, dtype=F64)


@every_way
def test_a_buffer_that_would_lose_a_derivative_or_its_shape_is_refused(strategy):
    for how, why in ((remembers, "requires_grad=True.*no_grad"), (grows, r"made it \(1, 3\)")):
        with pytest.raises(ValueError, match=rf"the buffer 'mean' goes to the next step .* \(3,\), .*{why}"):
            hft.train(OPT, hft.of_module(net := Writes(how)), named(net), data(), hparams={"lr": knobs()[0]},
                      strategy=strategy)  # fmt: skip


def test_a_buffer_made_of_an_hparam_is_refused_under_a_transform():
    def remembers_it(m, batch, own):
        m.mean = 0.9 * m.mean + own["s"]
        return (batch[0] * m.weight - m.mean).square().mean()

    loss = hft.of_module(net := Writes(grows), remembers_it)

    def end(s):
        run = hft.train(OPT, loss, named(net), data(), hparams={"loss": {"s": s}})
        return sum(p.sum() for p in run.params.values())

    with pytest.raises(ValueError, match="the buffer 'mean' goes to the next step .*requires_grad=True"):
        torch.func.grad(end)(torch.tensor(0.3, dtype=F64))


@torch.no_grad()
def averages(m, y):
    m.mean = 0.9 * m.mean + 0.1 * y.mean(0)  # another tensor in its place, and not written into


@torch.no_grad()
def averages_by_index(m, y):
    m.mean[:] = 0.9 * m.mean + 0.1 * y.mean(0)


@pytest.mark.parametrize("how", [averages, averages_by_index])
def test_a_buffer_in_whose_place_another_tensor_is_put_or_that_is_written_into_by_index(how):
    net = Writes(how)
    run = hft.train(hft.sgd(lr=0.0), hft.of_module(net), named(net), data(2))
    x, y = (batch[0].mean(0) for batch in data(2))
    torch.testing.assert_close(run.buffers["mean"], 0.9 * 0.1 * x + 0.1 * y, rtol=1e-12, atol=1e-15)


class Twice(nn.Module):
    """Layers that lie in two places; one puts another tensor in that of its buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = self.again = nn.BatchNorm1d(3)
        self.mean = self.same = Writes(averages)
        self.to(F64)

    def forward(self, x):
        return self.same([self.again(torch.tanh(self.norm(x))) + x])


def test_a_module_that_lies_in_two_places_gets_its_own_tensors_back():
    """torch's functional_call leaves what it has put in."""
    net, other = Twice(), Twice()
    own = {**named(net, remove_duplicate=False), **dict(net.named_buffers(remove_duplicate=False))}
    loss = hft.of_module(net, lambda m, b: m(b[0]))
    run = hft.train(OPT, loss, named(net), data())
    now = {**named(net, remove_duplicate=False), **dict(net.named_buffers(remove_duplicate=False))}
    assert now.keys() == own.keys()
    assert all(now[name] is x for name, x in own.items())
    assert {name for name, x in own.items() if not x.equal(other.state_dict()[name])} == set()

    by_torch = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for x, _ in data():
        by_torch.zero_grad()
        other(x).backward()
        by_torch.step()
    for name, x in {**run.params, **run.buffers}.items():
        torch.testing.assert_close(x, other.state_dict()[name], rtol=1e-12, atol=1e-15)


def test_what_the_module_lacks_is_an_error_before_anything_runs():
    net = network()
    loss = hft.of_module(net, fit)
    with pytest.raises(ValueError, match=r"buffers has '1.runing_mean', .*did you mean '1.running_mean'"):
        hft.of_module(net, fit, buffers={"1.runing_mean": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"buffers: '1.running_mean' must be a tensor of shape \(4,\), got \(3,\)"):
        hft.of_module(net, fit, buffers={"1.running_mean": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"params has 'fc', and the module no such tensor"):
        hft.train(OPT, loss, {"fc": torch.zeros(2)}, data())
    with pytest.raises(TypeError, match="takes a dict of its params by name, got a list"):
        hft.train(OPT, loss, [*net.parameters()], data())
    with pytest.raises(TypeError, match=r"give dict\(net.named_parameters\(\)\), with a loss by hft.of_module"):
        hft.train(OPT, loss, net, data())
    for given in ((fit,), (net, "forward")):
        with pytest.raises(TypeError, match=r"of_module takes a torch.nn.Module, and a function of it, got"):
            hft.of_module(*given)
    with pytest.raises(ValueError, match="train_loss must return a scalar tensor"):
        hft.train(OPT, hft.of_module(net, lambda m, b: m(b[0])), named(net), data())
    with pytest.raises(ValueError, match="train_loss must return a scalar tensor"):
        hft.train(OPT, hft.of_module(net, lambda m, b: 3.0), named(net), data())
    with pytest.raises(ValueError, match="loss without a graph"):
        hft.train(OPT, hft.of_module(net, lambda m, b: fit(m, b).detach()), named(net), data())
    other = network()  # with buffers in the first, the loss has a graph that leads to these
    with pytest.raises(ValueError, match="loss without a graph: it does not depend on the params"):
        hft.train(OPT, hft.of_module(net, lambda m, b: fit(other, b)), named(net), data())


def test_load_is_refused_before_anything_is_changed():
    net = network()
    before = tree.map_tree(torch.clone, dict(net.state_dict()))
    with pytest.raises(ValueError, match=r"run has '0.weigth', .*did you mean '0.weight'"):
        hft.load(net, {"0.bias": torch.ones(4), "0.weigth": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match=r"run: '0.weight' must be a tensor of shape \(4, 3\)"):
        hft.load(net, {"0.bias": torch.ones(4), "0.weight": torch.zeros(3)})
    for name, x in net.state_dict().items():
        assert torch.equal(x, before[name])


def test_without_buffers_a_run_has_none():
    net = nn.Linear(3, 2).to(F64)
    run = hft.train(OPT, hft.of_module(net, fit), named(net), data())
    assert run.buffers == {}
    assert not isinstance(run.state, BufferedState)
    net.load_state_dict({**run.params, **run.buffers})


class Lowest(nn.Module):
    """A mask with infinite entries, a minimum that has seen nothing, and integers that float64 does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=F64))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("wide", torch.tensor([0.0, -torch.inf], dtype=F64))
        self.register_buffer("lowest", torch.tensor([torch.inf, torch.inf], dtype=F64))
        self.register_buffer("seed", torch.tensor([-(2**62) - 1, 2**53, -1]))

    def forward(self, x):
        self.lowest = torch.minimum(self.lowest, x.detach())
        self.seed += 2**54 + 1
        return (self.w * x).square().sum() + self.mask[0] + (self.lowest * self.w).sum()


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)], ids=str)
def test_infinite_and_long_entries_of_buffers_go_on(strategy):
    net, xs = Lowest(), [torch.tensor([2.0, 3.0], dtype=F64), torch.tensor([1.0, 5.0], dtype=F64)]
    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    run = hft.train(hft.sgd(), hft.of_module(net), {"w": net.w.detach()}, xs, hparams={"lr": lr}, strategy=strategy)
    w, low = torch.ones(2, dtype=F64), torch.full((2,), torch.inf, dtype=F64)
    for x in xs:
        low = torch.minimum(low, x)
        w = w - lr * (2 * w * x.square() + low)
    torch.testing.assert_close(run.params["w"], w, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), lr)[0] for v in (run.params["w"], w)), rtol=1e-12, atol=0)
    assert torch.equal(run.buffers["mask"], net.mask)
    assert torch.equal(run.buffers["wide"], net.wide)
    assert torch.equal(run.buffers["lowest"], low)
    assert torch.equal(run.buffers["seed"], net.seed + 2 * (2**54 + 1))


def test_buffers_among_params_or_of_another_module_are_refused():
    net, loss = network(), hft.of_module(network(), fit)
    with pytest.raises(ValueError, match=r"params has the buffers \['1.running_mean'\], which are not trained"):
        hft.train(OPT, loss, {**dict(net.named_parameters()), "1.running_mean": torch.zeros(4, dtype=F64)}, data())
    params = dict(net.named_parameters())
    run = hft.train(OPT, loss, params, data())
    other = run.state._replace(buffers={"e": torch.zeros(1)})
    with pytest.raises(ValueError, match="state has the buffers of another module: only one of them has"):
        hft.train(OPT, loss, params, data(), state=other)


class Phases(nn.Module):
    """A complex buffer, which a forward pass may change."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.weight, self.change = nn.Parameter(torch.ones(2, dtype=F64)), change
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex128))

    def forward(self, x):
        if self.change == "rebinds":
            self.phase = 0.9 * self.phase
        elif self.change == "writes":
            self.phase.mul_(0.9)
        return ((x * self.weight * self.phase.real).sum() - 1) ** 2


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", ["no", "rebinds", "writes"])
def test_a_complex_buffer_is_a_constant(change, mode):
    net = Phases(change)
    was = net.phase
    given = hft.sgd(lr=0.1), hft.of_module(net), dict(net.named_parameters()), [torch.ones(2, dtype=F64)] * 3
    with mode():
        if change == "no":  # the sum of weights goes to 1 by 0.6 of the way
            assert hft.train(*given).losses.tolist() == pytest.approx([1, 0.6**2, 0.6**4], rel=1e-12)
        else:
            text = r"changes the buffer 'phase', which is complex, .*hold torch.view_as_real"
            with pytest.raises(ValueError, match=text):
                hft.train(*given)
    assert net.phase is was
    assert was.equal(torch.ones_like(was))


def test_a_lazy_module_may_come_before_its_first_batch():
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()).double()
    loss = hft.of_module(net, lambda m, batch: m(batch).square().mean())
    net(torch.randn(5, 3, dtype=F64))
    run = hft.train(hft.sgd(lr=0.1), loss, dict(net.named_parameters()), [torch.randn(5, 3, dtype=F64)] * 2)
    assert run.buffers["1.num_batches_tracked"] == net[1].num_batches_tracked + 2


def test_a_buffer_in_the_memory_of_a_param_is_refused():
    net = nn.Linear(2, 1)
    net.register_buffer("again", net.weight.detach())
    with pytest.raises(ValueError, match="'again' is in the memory of the parameter 'weight', and training would take"):
        hft.of_module(net)
