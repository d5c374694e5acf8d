"""What is refused or warned of in a training: losses that write or have no graph, frozen parameters of a module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hyperopt_ftp as hft

from ..support.hypergradients import (
    DATA,
    F64,
    HELD_OUT,
    SGD,
    call,
    differences,
    every_exact,
    every_strategy,
    f64,
    module_loss,
    not_converged,
    slope,
)
from ..support.problems import central_differences, largest_difference, loss, start

# -- writes into what the loss has not made ---------------------------------------------------------------------------


def hidden(p, x):
    return x @ p["w"] + p["b"]


def batch_norm_with_statistics(held, p, x):
    return F.batch_norm(hidden(p, x), held["mean"], held["var"], training=True)


def foreach_lerp(held, p, x):
    y = hidden(p, x)
    torch._foreach_lerp_([held["mean"]], [y.detach().mean(0)], 0.1)
    return y + held["mean"]


def lerp_of_an_alias(held, p, x):
    y = hidden(p, x)
    held["mean"].view(2, 2).lerp_(y.detach().mean(0).view(2, 2), 0.1)
    return y


def item_of_a_view(held, p, x):
    held["mean"][1] = 3.0
    return hidden(p, x) + held["mean"]


def add_to_data(held, p, x):
    held["mean"].data.add_(1.0)
    return hidden(p, x) + held["mean"]


def out_argument(held, p, x):
    torch.add(held["mean"], 1.0, out=held["mean"])
    return hidden(p, x) + held["mean"]


def from_the_second_step(held, p, x):
    if held["calls"]:
        held["mean"] += 1.0
    held["calls"].append(0)
    return hidden(p, x) + held["mean"]


def embedding_with_max_norm(held, p, x):
    return F.embedding(torch.tensor([0, 2]), p["w"], max_norm=0.5)


def through_numpy(held, p, x):
    held["mean"].numpy()[...] += 1.0
    return hidden(p, x) + held["mean"]


WRITERS = [
    batch_norm_with_statistics, foreach_lerp, lerp_of_an_alias, item_of_a_view, add_to_data, out_argument,
    from_the_second_step, through_numpy, embedding_with_max_norm,
]  # fmt: skip
MODULES = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "InstanceNorm1d": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
}
REFUSED = r"writes in place .*eval\(\).*torch.func.replace_all_batch_norm_modules_\(net\)"


@not_converged
@pytest.mark.parametrize("writer", WRITERS)
@every_strategy
def test_a_write_is_refused(strategy, writer):
    held = {"mean": torch.zeros(4, dtype=F64), "var": torch.ones(4, dtype=F64), "calls": []}
    params, before = start(), copy.deepcopy(held)
    with pytest.raises(RuntimeError, match=REFUSED):
        call(lambda p, x: torch.tanh(writer(held, p, x)).square().mean(), strategy, params=params)
    if writer in (from_the_second_step, through_numpy):  # seen once it is done
        before["mean"] += 1.0
    assert largest_difference((held["mean"], held["var"], params), (before["mean"], before["var"], start())) == 0


def number_of_a_knob(p, h):
    return p["w"].mean() * h.item()


def write_into_what_no_step_has_used(p, h):
    NEVER_USED.add_(1.0)
    return p["w"].mean().exp()


NEVER_USED = torch.zeros(4, dtype=F64)


@pytest.mark.parametrize("later", [number_of_a_knob, write_into_what_no_step_has_used])
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=False), hft.Forward()], ids=repr)
def test_a_loss_with_another_graph_is_looked_at_again(later, strategy):
    def loss(p, x, h):
        value = hidden(p, x).square().mean() * h
        return value + later(p, h) if x.mean() == 2 else value

    data = [torch.full((2, 3), x, dtype=F64) for x in (0.0, 1.0, 2.0, 1.0)]
    opt = hft.sgd(lr=0.1)
    hparams = {**opt.hparams, "loss": torch.tensor(0.5, dtype=F64)}
    with pytest.raises(RuntimeError, match="takes the number of an hparam|writes in place"):
        hft.hypergradient(opt, loss, lambda p: p["w"].sum(), start(), data, "loss", hparams, strategy=strategy)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's own, once
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Forward()], ids=repr)
def test_the_number_of_an_hparam_is_seen_in_a_later_step_of_the_same_graph(strategy):
    def loss(p, batch, h):
        x, warm = batch
        return hidden(p, x).square().sum() * (1.0 if warm else float(h)) + p["w"].square().sum() * h

    data = [(torch.ones(2, 3, dtype=F64), k == 0) for k in range(3)]
    opt = hft.sgd(lr=0.01)
    hparams = {**opt.hparams, "loss": torch.tensor(0.5, dtype=F64)}
    with pytest.raises(RuntimeError, match="takes the number of an hparam"):
        hft.hypergradient(opt, loss, lambda p: p["w"].sum(), start(), data, "loss", hparams, strategy=strategy)


@pytest.mark.parametrize("writer", WRITERS[:2])
def test_zero_order_writes_nothing_either(writer):
    held = {"mean": torch.zeros(4, dtype=F64), "var": torch.ones(4, dtype=F64)}
    with pytest.raises(RuntimeError, match=REFUSED):
        call(lambda p, x: torch.tanh(writer(held, p, x)).square().mean(), hft.ZeroOrder(2, 1e-3))
    assert held["mean"].abs().sum() == 0


def normed(name):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), MODULES[name](), nn.Tanh()).double()


def of_module(net, strategy=None, lr=0.2):
    train_loss, opt = module_loss(net), hft.sgd(lr=0.2, momentum=0.5)
    return call(
        train_loss, strategy, params={n: p.detach() for n, p in net.named_parameters()}, opt=opt, hparams={"lr": lr},
        outer_loss=lambda p: train_loss(p, HELD_OUT),
    )  # fmt: skip


@not_converged
@pytest.mark.parametrize("name", MODULES)
@every_strategy
def test_statistics_of_a_module_are_refused_and_unchanged(strategy, name):
    net = normed(name)
    before = {n: x.clone() for n, x in net.named_buffers()}
    with pytest.raises(RuntimeError, match=REFUSED):
        of_module(net, strategy)
    assert largest_difference(dict(net.named_buffers()), before) == 0


@pytest.mark.parametrize("remedy", [nn.Module.eval, torch.func.replace_all_batch_norm_modules_])
@every_exact
def test_both_remedies_that_the_error_names_are_right(strategy, remedy):
    net = normed("BatchNorm1d")
    remedy(net)
    want = central_differences(lambda lr: of_module(net, lr=lr)[0], f64(0.2))[0].item()
    assert of_module(net, strategy)[1]["lr"].item() == pytest.approx(want, rel=1e-6)


@every_exact
def test_writes_into_what_the_loss_made_itself(strategy):
    def busy(p, x):
        y = hidden(p, x)
        y += 1.0
        mean = torch.zeros(4, dtype=F64)
        mean.view(2, 2).lerp_(y.mean(0).view(2, 2), 0.1)
        y = F.batch_norm(y, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), training=True)
        rows = [torch.empty(4, dtype=F64) for _ in range(2)]
        torch.mul(torch.ones(4, dtype=F64), x.mean(), out=rows[0])
        rows[1][:] = x.mean()
        return torch.tanh(F.elu(y, inplace=True) + mean + rows[0] + rows[1]).square().mean()

    assert slope(busy, strategy).item() == pytest.approx(differences(busy), rel=1e-6)


def test_a_write_that_torch_does_not_see_shows_in_the_loss():
    held = torch.zeros(4, dtype=F64)
    view = held.numpy()  # one that is made inside is seen

    def hidden_counter(p, x):
        view[:] += 1.0
        return torch.tanh(hidden(p, x) + held).square().mean()

    with pytest.raises(RuntimeError, match="the training loss of step 3 was .* when the step is computed again"):
        slope(hidden_counter, strategy=hft.Unroll(checkpoint=1))


# -- losses without a graph, and no gradients at all ------------------------------------------------------------------


def detached(p, x):
    return loss(p, x).detach()


def without_grad(p, x):
    with torch.no_grad():
        return loss(p, x)


def through_a_number(p, x):
    return torch.tensor(loss(p, x).item())


@torch.inference_mode()
def in_inference(p, x):
    return loss({k: v.clone() for k, v in p.items()}, x)


@pytest.mark.filterwarnings("ignore:train_loss makes a number:UserWarning")
@pytest.mark.parametrize("train_loss", [detached, without_grad, through_a_number, in_inference])
@every_strategy
def test_a_loss_without_a_graph_is_an_error(strategy, train_loss):
    text = r"train_loss returned a loss without a graph: .*\(detach, no_grad, item, inference mode\)"
    with pytest.raises(ValueError, match=text):
        call(train_loss, strategy)
    with pytest.raises(ValueError, match=text):
        hft.train(SGD, train_loss, start(), DATA, strategy=strategy)


@every_strategy
def test_inference_mode_is_an_error(strategy):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no gradients under torch.inference_mode"):
        call(strategy=strategy)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no gradients under torch.inference_mode"):
        hft.train(SGD, loss, start(), DATA, strategy=strategy)
    with torch.inference_mode():
        params = start()
    with pytest.raises(ValueError, match=r"a tensor of shape \(\d, .*was made under torch.inference_mode\(\).*clone"):
        call(strategy=strategy, params=params)


@every_exact
def test_no_grad_outside_changes_nothing(strategy):
    with torch.no_grad():
        got = slope(strategy=strategy)
    assert torch.equal(got, slope(strategy=strategy))


def test_a_loss_of_ones_own_may_inherit_from_torch_s():
    class Own(nn.modules.loss._Loss):
        def forward(self, params, batch):
            return loss(params, batch)

    assert torch.equal(slope(train_loss=Own()), slope())


# -- frozen parameters of a module ------------------------------------------------------------------------------------


def half_frozen():
    """A network whose first layer is frozen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    net[0].requires_grad_(False)
    return net


def in_rounds(opt, one, p):
    return list(hft.bilevel(opt, hft.sgd(), "momentum", one, one, p, DATA, DATA, inner_steps=2, outer_steps=1))


TRAININGS = {
    "train": lambda opt, one, p: hft.train(opt, one, p, DATA),
    "hypergradient": lambda opt, one, p: hft.hypergradient(opt, one, lambda p: one(p, HELD_OUT), p, DATA, "momentum"),
    "bilevel": in_rounds,
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_frozen_parameters_are_not_trained_without_a_word(training):
    net = half_frozen()
    with pytest.warns(UserWarning, match="params has '0.weight'") as seen:
        training(SGD, module_loss(net), dict(net.named_parameters()))
    first = training.__code__.co_firstlineno
    assert [(w.filename, w.lineno - first in (0, 1)) for w in seen] == [(__file__, True)]
    text = str(seen[0].message)
    assert "a parameter with requires_grad=False, beside some that require grad, and training moves all params" in text
    assert "give {n: p for n, p in net.named_parameters() if p.requires_grad}" in text
    assert "hft.partition with hft.frozen()" in text


def test_they_are_seen_where_a_transform_differentiates_in_the_params():
    net = half_frozen()
    one = module_loss(net)

    def value(x):
        return hft.hypergradient(SGD, one, lambda p: one(p, x), dict(net.named_parameters()), DATA, "params")[0]

    with pytest.warns(UserWarning, match="params has '0.weight'"):
        torch.func.grad(value)(HELD_OUT)


def test_of_a_partition_the_frozen_part_is_left_alone():
    net = half_frozen()
    parts = hft.partition({"still": hft.frozen(), "moves": SGD}, {"0": "still", "2": "moves"})
    params = dict(net.named_parameters())
    for opt in (parts, hft.averaged(parts), hft.hyper(hft.clipped(parts, 1.0), by=hft.sgd(), over="moves.lr")):
        run = hft.train(opt, module_loss(net), params, DATA)  # a warning is an error here
        assert [n for n, p in params.items() if torch.equal(p, run.params[n])] == ["0.weight", "0.bias"]
    other = hft.partition({"still": hft.frozen(), "moves": SGD}, {"0.weight": "still", "*": "moves"})
    with pytest.warns(UserWarning, match="params has '0.bias', a parameter with requires_grad=False"):
        hft.train(other, module_loss(net), params, DATA)


PARAMS_MEANT = {
    "those that are not frozen": lambda net: {n: p for n, p in net.named_parameters() if p.requires_grad},
    "tensors": lambda net: {n: p.detach() for n, p in net.named_parameters()},
    "the frozen ones as tensors": lambda net: {n: p if n[0] == "2" else p.detach() for n, p in net.named_parameters()},
    "all of a frozen network": lambda net: dict(net.requires_grad_(False).named_parameters()),
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("meant", PARAMS_MEANT.values(), ids=PARAMS_MEANT)
def test_params_that_are_meant_are_trained_without_a_warning(meant, training):
    net = half_frozen()
    training(SGD, module_loss(net), meant(net))  # a warning is an error here
