"""From one training to the next: detached in between, or an error that says so; params that get no derivative."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from tests.support.descent import DATA, W, line, one

SGD = hft.sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
UNROLLED = {
    "graphs": hft.Unroll(),
    "every second": hft.Unroll(checkpoint=2),
    "tree": hft.Unroll(checkpoint="log"),
    "within memory": hft.Unroll(memory=2**30),
}
every_unroll = pytest.mark.parametrize("strategy", UNROLLED.values(), ids=UNROLLED)


def leaf(x):
    return one(x, requires_grad=True)


def run(lr, strategy=None, opt=SGD, train_loss=line, params=W, state=None, own=None):
    hparams = {**opt.hparams, "lr": lr} | ({} if own is None else {"loss": own})
    return hft.train(opt, train_loss, params, DATA, hparams=hparams, state=state, strategy=strategy)


@every_unroll
def test_rounds_with_detached_in_between_are_those_of_a_loop(strategy):
    lr, params, state, got, want = leaf(0.1), W, None, [], []
    for _ in range(3):
        found = run(lr, strategy, params=params, state=state)
        got += torch.autograd.grad(line(found.params, DATA[0]), lr)
        params, state, losses = found = found.detached()
        assert not any(x.requires_grad for x in tree.leaves(found))
        assert losses.shape == (3,)
    w, m = W, torch.zeros_like(W)
    for _ in range(3):
        w, m = w.detach().requires_grad_(), m.detach()
        for x in DATA:
            (g,) = torch.autograd.grad(line(w, x), w, create_graph=True)
            m = 0.9 * m + g + 0.1 * w
            w = w - lr * m
        want += torch.autograd.grad(line(w, DATA[0]), lr)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(params, w.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("opt", "left"),
    [(SGD, "params"), (SGD, "state"), (hft.adam(lr=0.1), "params"), (hft.sgd(lr=0.1), "params")],
    ids=["momentum", "momentum's state", "adam", "sgd"],
)
@every_unroll
def test_a_forgotten_detach_is_named(strategy, opt, left):
    """In a net of several layers too, whose weights are one vector meanwhile."""

    def layered(p, x):
        return sum(line(w, x) for w in p.values())

    net, lr = {n: W + i for i, n in enumerate("abcd")}, leaf(0.1)
    first = run(lr, strategy, opt, layered, net)
    layered(first.params, DATA[0]).backward()
    given = first.detached()._asdict() | {left: getattr(first, left)}
    again = run(lr, strategy, opt, layered, given["params"], given["state"])
    with pytest.raises(RuntimeError, match=r"goes on into what made the params .* training at run.detached\(\)"):
        layered(again.params, DATA[0]).backward()


def test_params_that_the_caller_computed_once_for_two_trainings_are_named():
    made = W * leaf(2.0).exp()
    line(run(leaf(0.1), params=made).params, DATA[0]).backward()
    with pytest.raises(RuntimeError, match=r"what made the params .*, or a computation of yours\), through which one"):
        line(run(leaf(0.1), params=made).params, DATA[0]).backward()


def test_a_graph_that_is_kept_or_not_gone_through_has_no_hint():
    lr = leaf(0.1)
    first = run(lr)
    line(first.params, DATA[0]).backward(retain_graph=True)
    line(run(lr, params=first.params).params, DATA[0]).backward()
    moved = first.params.detach().requires_grad_()
    torch.autograd.grad(line(run(lr, params=first.params).params, DATA[0]), first.params)  # ends there
    (moved * 2).sum().backward()
    views = (moved * 2).view(1, 3).view(3)
    line(run(lr, params=views).params, DATA[0]).backward()


@pytest.mark.filterwarnings("ignore:Implicit")  # has not converged
@pytest.mark.parametrize(
    "strategy", [hft.Unroll(truncate=1), hft.Unroll(truncate=2, checkpoint=1), hft.Implicit("identity")], ids=str
)
def test_params_that_would_get_no_derivative_are_told(strategy):
    """What looks like first-order MAML; and nothing where params merely belong to a module, or nothing is asked."""
    own, lr = W.clone().requires_grad_(), leaf(0.1)
    module = torch.nn.Parameter(W.clone())
    told = r"params require grad, and this .* no derivative .*hft.Unroll\(\), with first_order=True"
    for params, given in ((own, SGD.hparams["lr"]), (own, lr), (module, SGD.hparams["lr"])):
        with pytest.warns(UserWarning, match=told) as seen:
            run(given, strategy, params=params)
        assert seen[0].filename == __file__
    if strategy.stepwise:
        with pytest.warns(UserWarning, match=told):
            hft.steps(SGD, line, own, DATA, strategy=strategy)
    run(lr, strategy, params=module)
    run(lr, strategy, params=own, own=own, train_loss=lambda p, x, center: line(p, x) + line(p, center))
    run(lr, strategy)
    with torch.no_grad():
        run(lr, strategy, params=own)
    run(lr, params=own)
