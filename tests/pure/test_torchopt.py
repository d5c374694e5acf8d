"""TorchOpt both ways, against our own optimizers and inside TorchOpt's wrappers."""

from __future__ import annotations

import pytest
import torch
import torchopt

import hyperopt_ftp as hft

from ..support.problems import batches, loss, start, train

PAIRS = [
    (torchopt.sgd, hft.sgd, {"lr": 0.1, "momentum": 0.9}),
    (torchopt.sgd, hft.sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    (torchopt.adam, hft.adam, {"lr": 0.1, "eps": 1e-3}),
    (torchopt.adamw, hft.adamw, {"lr": 0.1, "weight_decay": 0.05}),
    (torchopt.rmsprop, hft.rmsprop, {"lr": 0.05, "eps": 1e-3, "alpha": 0.9}),
]


@pytest.mark.parametrize(("theirs", "ours", "kwargs"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_from_torchopt_trains_as_ours_do(theirs, ours, kwargs):
    a, _ = train(hft.from_torchopt(theirs, **kwargs), None, start(), batches(5))
    b, _ = train(ours(**kwargs), None, start(), batches(5))
    # Their bias corrections are float32: 1 - 0.999^t is off by 6e-8 / 1e-3.
    tolerance = 1e-4 if theirs in (torchopt.adam, torchopt.adamw) else 1e-12
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Forward()], ids=["unroll", "forward"])
def test_hypergradients_through_torchopt_equal_ours(strategy):
    data = batches(6)
    grads = [
        hft.hypergradient(opt, loss, lambda p: loss(p, data[0]), start(), data, over="lr", strategy=strategy)[1]
        for opt in (hft.from_torchopt(torchopt.sgd, lr=0.1, momentum=0.9), hft.sgd(lr=0.1, momentum=0.9))
    ]
    assert grads[0]["lr"].item() == pytest.approx(grads[1]["lr"].item(), rel=1e-8)


def test_torchopt_can_be_tuned_and_can_tune():
    params, data = start(), batches(6)
    for opt in (
        hft.hyper(hft.from_torchopt(torchopt.adam, lr=1e-3), by=hft.sgd(lr=1e-3), over="lr"),
        hft.hyper(hft.sgd(lr=1e-3), by=hft.from_torchopt(torchopt.adam, lr=1e-3), over="lr"),
    ):
        p, state = params, opt.init(params)
        for x in data:
            p, state = opt.update(torch.func.grad(loss)(p, x), state, p)
        assert state.tuned["lr"].item() > 1e-3


@pytest.mark.parametrize(
    ("factory", "kwargs", "name"),
    [
        (torchopt.adam, {"lr": 0.1}, "betas"),
        (torchopt.rmsprop, {"lr": 0.1}, "alpha"),
        (torchopt.sgd, {"lr": 0.1, "weight_decay": 0.1}, "weight_decay"),
        (torchopt.sgd, {"lr": 0.1, "momentum": 0.9}, "dampening"),
    ],
)
def test_what_torchopt_cannot_differentiate_is_named(factory, kwargs, name):
    opt = hft.from_torchopt(factory, **kwargs)
    with pytest.raises(
        TypeError, match=rf"takes {name} as a plain number: it cannot be differentiated in.*open are .*lr"
    ):
        hft.hypergradient(opt, loss, lambda p: loss(p, batches(1)[0]), start(), batches(2), over=name)
    tuned = hft.hyper(opt, by=hft.sgd(lr=0.1), over=name)
    with pytest.raises(TypeError, match=f"takes {name} as a plain number"):
        tuned.update(start(), tuned.init(start()), start())


def test_vmap_over_torchopt_is_refused_by_name():
    opt, data, w = hft.from_torchopt(torchopt.adam, lr=0.1), batches(2), start()
    lrs = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with pytest.raises(TypeError, match=r"cannot be vmapped over \['lr'\]; loop instead"):
        torch.func.vmap(lambda lr: train(opt, opt.hparams | {"lr": lr}, w, data)[0])(lrs)


@pytest.mark.parametrize(
    "make", [lambda w0: hft.adamw(lr=0.1), lambda w0: hft.ftp(hft.sgd(lr=0.1), w0)], ids=["adamw", "ftp"]
)
def test_to_torchopt_works_in_chain_and_funcoptimizer(make):
    opt, data = make(start()), batches(4)
    want, _ = train(opt, None, start(), data)
    chained = torchopt.chain(hft.to_torchopt(opt))
    params, state = start(), chained.init(start())
    for x in data:
        updates, state = chained.update(torch.func.grad(loss)(params, x), state, params=params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    torch.testing.assert_close(params, want, rtol=1e-12, atol=1e-13)

    wrapped = torchopt.FuncOptimizer(hft.to_torchopt(make(tuple(start().values()))))  # torch 2.10 takes no dict there
    values = tuple(v.clone().requires_grad_() for v in start().values())
    for x in data:
        values = wrapped.step(loss(dict(zip(want, values, strict=True)), x), values)
    torch.testing.assert_close(tuple(v.detach() for v in values), tuple(want.values()), rtol=1e-12, atol=1e-13)


def test_to_torchopt_needs_params():
    made = hft.to_torchopt(hft.sgd(lr=0.1))
    with pytest.raises(ValueError, match=r"needs params: update\(grads, state, params=params\)"):
        made.update(start(), made.init(start()))
