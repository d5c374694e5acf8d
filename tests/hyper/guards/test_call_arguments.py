"""What is said of arguments: parameters that are frozen beside some that are not, and complex tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft

from ...support.hypergradients import DATA, F64, HELD_OUT, SGD, module_loss
from ...support.problems import central_differences


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
PARAMS_MEANT = {
    "those that are not frozen": lambda net: {n: p for n, p in net.named_parameters() if p.requires_grad},
    "tensors": lambda net: {n: p.detach() for n, p in net.named_parameters()},
    "the frozen ones as tensors": lambda net: {n: p if n[0] == "2" else p.detach() for n, p in net.named_parameters()},
    "all of a frozen network": lambda net: dict(net.requires_grad_(False).named_parameters()),
}
FROZEN = r"params has '0.weight', a parameter with requires_grad=False.* if p.requires_grad}.*hft.partition with hft.fr"


@pytest.mark.parametrize(("update", "takes"), [(lambda g, s=0: g, "2 arguments"), (lambda g, *, s: g, "1 argument$")])
def test_an_update_that_cannot_be_called_is_an_error_with_its_count(update, takes):
    with pytest.raises(TypeError, match=f"optimizer.update is called as update.*, but takes {takes}"):
        hft.train(SGD._replace(update=update), module_loss(half_frozen()), {}, DATA)


def test_a_number_that_was_put_among_the_defaults_is_tuned_as_one_that_is_given():
    def slope(opt, hparams):
        return hft.hypergradient(opt, lambda w, x: (w * x).square().sum(), torch.sum, one, [one], "lr", hparams)[1][
            "lr"
        ]

    opt, one = hft.sgd(lr=0.1), torch.ones(2, dtype=F64)
    opt.hparams["lr"] = 0.3
    assert torch.equal(slope(opt, opt.hparams), slope(hft.sgd(), {"lr": 0.3}))


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_frozen_parameters_are_not_trained_without_a_word(training):
    net = half_frozen()
    with pytest.warns(UserWarning, match=FROZEN) as seen:
        training(SGD, module_loss(net), dict(net.named_parameters()))
    first = training.__code__.co_firstlineno
    assert [(w.filename, w.lineno - first in (0, 1)) for w in seen] == [(__file__, True)]
    for meant in PARAMS_MEANT.values():
        net = half_frozen()
        training(SGD, module_loss(net), meant(net))  # a warning is an error here


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


def test_complex_tensors_are_refused_where_a_derivative_would_be_lost():
    w, x = torch.linspace(0.1, 0.3, 3, dtype=F64), torch.arange(1.0, 4.0, dtype=F64)
    own = {"loss": {"z": torch.ones(3, dtype=torch.complex128, requires_grad=True)}}
    with pytest.raises(ValueError, match=r"complex tensor of .* requires grad: .*view_as_real"):
        hft.train(SGD, lambda p, x, h: ((p - x * h["z"].real) ** 2).sum(), w, [x], hparams=own)

    def rotating(g, state, p, h):
        state = 0.5 * state + torch.fft.fft(g)
        return p - h["lr"] * torch.fft.ifft(state).real, state

    def end(lr, strategy=None):
        start = torch.zeros(3, dtype=torch.complex128)
        opt = hft.Optimizer(lambda params, hparams=None: start, rotating, {"lr": lr})
        return hft.train(opt, lambda p, x: ((p - x) ** 2).sum(), w, [x] * 4, strategy=strategy).params.sum()

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="optimizer's state has a complex tensor"):
        end(lr, hft.Unroll(checkpoint=1))
    (got,) = torch.autograd.grad(end(lr), lr)  # autograd knows complex tensors
    torch.testing.assert_close(got, central_differences(end, lr.detach())[0], rtol=1e-7, atol=1e-9)
