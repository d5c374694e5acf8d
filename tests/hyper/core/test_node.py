"""Training as a node of the graph: what was changed before the backward pass is seen; threads may walk it at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import hyperopt_ftp as hft
from tests.support.descent import DATA, W, one

SGD = hft.sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
GRAPHS = {"small graphs": hft.Unroll(), "graphs": hft.Unroll(checkpoint=False)}
NODES = {
    "every second": hft.Unroll(checkpoint=2),
    "tree": hft.Unroll(checkpoint="log"),
    "within memory": hft.Unroll(memory=2**30),
    "forward": hft.Forward(),
    "implicit": hft.Implicit(tolerance=10.0),
    "zero order": hft.ZeroOrder(3, 1e-3),
}


def loss(p, x):
    return ((p - x) ** 2).sum() + 0.01 * (p**4).sum()


@pytest.mark.filterwarnings("ignore:Implicit")  # has not converged
@pytest.mark.parametrize("strategy", [*GRAPHS.values(), *NODES.values()], ids=[*GRAPHS, *NODES])
@pytest.mark.parametrize("what", ["params", "state", "weight_decay", "batch", "result"])
def test_what_was_changed_in_place_before_backward_is_an_error_or_does_not_matter(what, strategy):
    """Autograd's own graph does not need all of it; a node says so of each."""
    params, state, data = W.clone(), SGD.init(W), [x.clone() for x in DATA]
    lr, decay = one(0.1, requires_grad=True), one(0.1)
    hparams = {**SGD.hparams, "lr": lr, "weight_decay": decay}
    end = hft.train(SGD, loss, params, data, hparams=hparams, state=state, strategy=strategy)
    value = loss(end.params, DATA[0])
    places = {"params": params, "state": state.momentum_buffer, "weight_decay": decay, "batch": data[-1]}
    matters = strategy in NODES.values() or what == "result"
    want = None if matters else torch.autograd.grad(value, lr, retain_graph=True)[0]
    places.get(what, end.params.detach()).add_(1)
    if matters:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()
    else:
        assert torch.equal(torch.autograd.grad(value, lr)[0], want)


@pytest.mark.parametrize("checkpoint", ["sqrt", "log"])
def test_one_node_may_be_walked_back_by_several_threads(checkpoint):
    lr = one(0.1, requires_grad=True)
    run = hft.train(SGD, loss, W, [*DATA] * 4, hparams={"lr": lr}, strategy=hft.Unroll(checkpoint=checkpoint))
    value = run.params.sum()
    want = torch.autograd.grad(value, lr, retain_graph=True)[0]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: torch.autograd.grad(value, lr, retain_graph=True)[0], range(12)))
    assert all(torch.equal(x, want) for x in found)
