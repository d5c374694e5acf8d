"""Games: training by a vector field, equal to loops by hand; what two losses joined by detach lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.problems import central_differences

F64 = torch.float64
OPT = hft.sgd(lr=0.05, momentum=0.5)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


DATA = [numbers(3, seed=k + 1) for k in range(5)]
GAME = numbers(3, 3)
START = {"x": numbers(3, seed=10), "y": numbers(3, seed=11)}


def of_x(x, y, b):
    return x @ GAME @ y.tanh() + (x - b).square().sum() + (x * y).square().sum()


def of_y(y, x, b):
    return -(x.tanh() @ GAME @ y) + 0.5 * (y - b).square().sum() + (x * y).sin().sum()


def by_func(p, b, h=1.0):
    return {"x": h * torch.func.grad(of_x)(p["x"], p["y"], b), "y": torch.func.grad(of_y)(p["y"], p["x"], b)}


def by_autograd(p, b, h=1.0):
    losses = (("x", of_x(p["x"], p["y"], b) * h), ("y", of_y(p["y"], p["x"], b)))
    return {name: torch.autograd.grad(loss, p[name], create_graph=True)[0] for name, loss in losses}


def start():
    return dict(START)


def outer(p):
    return (p["x"] * p["y"]).sin().sum() + p["x"].square().sum()


def by_hand(lr, h, x):
    p = {**start(), "x": x}
    state = OPT.init(p)
    for b in DATA:
        p, state = OPT.update(by_func(p, b, h), state, p, {**OPT.hparams, "lr": lr})
    return p


def leaves():
    lr, h = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.05, 1.1))
    return lr, h, START["x"].clone().requires_grad_()


def trained(lr, h, x, strategy=None, grads=by_func):
    hparams = {"lr": lr, "loss": h}
    return hft.train(OPT, None, {**start(), "x": x}, DATA, hparams=hparams, strategy=strategy, grads=grads)


@pytest.mark.parametrize("grads", [by_func, by_autograd])
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1), hft.Unroll(checkpoint="sqrt")], ids=repr)
def test_derivatives_are_those_of_a_loop_by_hand(strategy, grads):
    want = torch.autograd.grad(outer(by_hand(*(at := leaves()))), at)
    run = trained(*(own := leaves()), strategy, grads)
    torch.testing.assert_close(torch.autograd.grad(outer(run.params), own), want, rtol=1e-12, atol=1e-14)
    first = torch.cat([*by_func({**start(), "x": own[2]}, DATA[0], own[1]).values()])
    assert run.losses[0].item() == pytest.approx(first.norm().item(), rel=1e-15)  # there is no loss
    (slope,) = central_differences(lambda lr: outer(by_hand(lr, *(x.detach() for x in own[1:]))), own[0].detach())
    assert want[0].item() == pytest.approx(slope.item(), rel=1e-7)


def test_second_derivatives_and_transforms():
    lr, h, x = leaves()
    (want,) = torch.autograd.grad(outer(by_hand(lr, h, x)), lr, create_graph=True)
    curvature = torch.autograd.grad(want, x)
    lr, h, x = leaves()
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1)):
        (got,) = torch.autograd.grad(outer(trained(lr, h, x, strategy).params), lr, create_graph=True)
        torch.testing.assert_close(torch.autograd.grad(got, x), curvature, rtol=1e-11, atol=1e-13)
    fixed = h.detach(), x.detach()
    got = torch.func.grad(lambda lr: outer(trained(lr, *fixed).params))(lr.detach())
    torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=0)
    one = (torch.ones((), dtype=F64),)
    for strategy in (hft.Unroll(), hft.Unroll(checkpoint=1)):
        got = torch.func.jvp(lambda lr, how=strategy: outer(trained(lr, *fixed, how).params), (lr.detach(),), one)[1]
        torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=0)
    rates = torch.tensor([0.05, 0.1], dtype=F64)
    got = torch.func.vmap(lambda lr: outer(trained(lr, *fixed).params))(rates)
    torch.testing.assert_close(got, torch.stack([outer(by_hand(r, *fixed)) for r in rates]), rtol=1e-12, atol=0)


def test_first_order_takes_the_field_for_a_constant():
    lr, h, x = leaves()
    plain = hft.train(OPT, None, {**start(), "x": x}, DATA, hparams={"lr": lr, "loss": h}, grads=lambda p, b, h: (
        tree.map_tree(torch.detach, by_func(p, b, h))), strategy=hft.Unroll(first_order=True))  # fmt: skip
    got = torch.autograd.grad(outer(plain.params), (lr, x))
    p, state = {**start(), "x": x}, OPT.init(start())
    for b in DATA:
        constant = tree.map_tree(torch.detach, by_func(p, b, h))
        p, state = OPT.update(constant, state, p, {**OPT.hparams, "lr": lr})
    torch.testing.assert_close(got, torch.autograd.grad(outer(p), (lr, x)), rtol=1e-13, atol=0)


def test_implicit_at_the_equilibrium():
    """Its Jacobian is not symmetric."""

    def grads(p, b, h):
        x, y = p["x"], p["y"]
        return {"x": 2 * (x - h) + 0.3 * y, "y": 2 * (y + h) - 0.7 * x.sin()}

    found = []
    for strategy in (hft.Implicit(iterations=300), hft.Unroll()):
        h = torch.tensor(0.4, dtype=F64, requires_grad=True)
        run = hft.train(hft.sgd(lr=0.1), None, start(), DATA * 30, hparams={"loss": h}, strategy=strategy, grads=grads)
        found += torch.autograd.grad(outer(run.params), h)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)

    def end(h, strategy):
        run = hft.train(hft.sgd(lr=0.4), None, start(), DATA * 5, hparams={"loss": h}, strategy=strategy, grads=grads)
        return outer(run.params)

    h, implicit = h.detach(), lambda h: end(h, hft.Implicit(iterations=60))
    want = torch.func.hessian(lambda h: end(h, hft.Unroll()))(h)
    torch.testing.assert_close(torch.func.hessian(implicit)(h), want, rtol=1e-7, atol=0)
    each = torch.func.vmap(torch.func.grad(implicit))(h.expand(2))
    torch.testing.assert_close(each, found[1].expand(2), rtol=1e-9, atol=0)


def test_an_unrolled_gan_with_dropout():
    """The generator's loss after steps of the discriminator, and through these (arXiv 1611.02163); and both at once."""
    torch.manual_seed(0)
    makes = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    judges = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1)).to(F64)

    def seen(p, z):
        return functional_call(judges, p["judge"], (functional_call(makes, p["make"], (z,)),)).mean()

    def field(p, batch):
        z, real = batch
        fake = seen(p, z)
        told = functional_call(judges, p["judge"], (real,)).mean() - fake
        rows = {"make": -fake, "judge": -told + 0.1 * sum(w.square().sum() for w in p["judge"].values())}
        for name, loss in rows.items():
            found = torch.autograd.grad(loss, [*p[name].values()], create_graph=True)
            rows[name] = dict(zip(p[name], found, strict=True))
        return rows

    players = {"make": {n: p.detach() for n, p in makes.named_parameters()},
               "judge": {n: p.detach() for n, p in judges.named_parameters()}}  # fmt: skip
    batches, opt = [(numbers(8, 2, seed=k), numbers(8, 2, seed=50 + k) + 2) for k in range(4)], hft.adam(eps=1e-3)
    slopes = []
    for strategy in (None, hft.Unroll(checkpoint=1), "by hand"):
        lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
        torch.manual_seed(5)
        if strategy == "by hand":
            p, state = tree.map_tree(lambda x: x.clone().requires_grad_(), players), opt.init(players)
            for batch in batches:
                p, state = opt.update(field(p, batch), state, p, {**opt.hparams, "lr": lr})
        else:
            p = hft.train(opt, None, players, batches, hparams={"lr": lr}, strategy=strategy, grads=field).params
        slopes += torch.autograd.grad(sum(w.square().sum() for w in tree.leaves(p)), lr)
    for slope in slopes[:2]:
        torch.testing.assert_close(slope, slopes[2], rtol=1e-11, atol=0)


def test_losses_joined_by_detach_are_warned_of_and_lose_what_the_field_has():
    lr = leaves()[0]

    def joined(p, b):
        return of_x(p["x"], p["y"].detach(), b) + of_y(p["y"], p["x"].detach(), b)

    with pytest.warns(UserWarning, match=r"detaches a function of its params .*hft.train\(.*grads="):
        run = hft.train(OPT, joined, start(), DATA, hparams={"lr": lr})
    fixed = torch.tensor(1.0, dtype=F64), start()["x"]
    by_field = trained(lr, *fixed)
    for name, p in by_field.params.items():
        torch.testing.assert_close(run.params[name], p, rtol=1e-13, atol=0)  # one training
    (lost,) = torch.autograd.grad(outer(run.params), lr)
    (got,) = torch.autograd.grad(outer(by_field.params), lr)
    (slope,) = central_differences(lambda lr: outer(by_hand(lr, *fixed)), lr.detach())
    assert got.item() == pytest.approx(slope.item(), rel=1e-7)
    assert abs(lost - slope) > 0.01 * slope.abs()


def lacks(p, b):
    return {**by_func(p, b), "x": torch.autograd.grad(of_x(p["x"], p["y"], b), p["x"])[0]}


WRONG = {
    "another name": (lambda p, b: {"x": p["x"], "z": p["y"]}, "must have the structure of the parameters: .*'y'"),
    "one too few": (lambda p, b: {"x": p["x"]}, "must have the structure of the parameters"),
    "a list": (lambda p, b: [p["x"], p["y"]], "must have the structure of the parameters"),
    "another shape": (lambda p, b: {"x": p["x"][:2], "y": p["y"]}, r"for 'x' a tensor of shape \(3,\) .*\[2\]"),
    "a number": (lambda p, b: {"x": p["x"], "y": 0.0}, r"for 'y' a tensor of shape \(3,\) .*, got 0.0"),
    "no graph": (lacks, "for 'x' .*torch.func.grad .*create_graph=True.* got one without a graph"),
    "one argument": (lambda p: p, "grads is called as grads.params, batch., but takes 1"),
}


@pytest.mark.parametrize(("grads", "why"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Unroll(checkpoint=1)], ids=repr)
def test_another_field_than_of_the_params_is_one_clear_error(strategy, grads, why):
    with pytest.raises(ValueError, match=why):
        hft.train(OPT, None, start(), DATA, strategy=strategy, grads=grads)
    if grads is lacks:
        with torch.no_grad():  # values need none
            run = hft.train(OPT, None, start(), DATA, strategy=strategy, grads=lambda p, b: {**p})
        assert run.losses[0].item() == pytest.approx(torch.cat([*start().values()]).norm().item(), rel=1e-14)


@pytest.mark.parametrize("strategy", [hft.Forward(), hft.Implicit("cg"), hft.Unroll(compile=True)], ids=repr)
def test_strategies_that_need_a_loss_are_refused(strategy):
    with pytest.raises(ValueError, match="is for losses alone, .*cannot train by grads: take hft.Unroll"):
        hft.train(OPT, None, start(), DATA, strategy=strategy, grads=by_func)


def test_either_a_loss_or_grads():
    with pytest.raises(TypeError, match="give train_loss=None with them"):
        hft.train(OPT, lambda p, b: p["x"].sum(), start(), DATA, grads=by_func)
    with pytest.raises(TypeError, match="train_loss must be a function"):
        hft.train(OPT, None, start(), DATA)
    with pytest.raises(TypeError, match="grads must be a function"):
        hft.train(OPT, None, start(), DATA, grads=3)
