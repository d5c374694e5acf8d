"""Back through an update tensor by tensor is back through it at once."""

from __future__ import annotations

import sys

import pytest
import torch

import hyperopt_ftp as hft

by_tensor = sys.modules["hyperopt_ftp.hyper.unrolling.by_tensor"]

f64 = torch.float64
torch.manual_seed(0)
PARAMS = {"a": torch.randn(5, 5, dtype=f64), "b": [torch.randn(5, dtype=f64), torch.randn((), dtype=f64)]}
DATA = [torch.randn(3, 5, dtype=f64) for _ in range(5)]
OWN = hft.tree.map_tree(lambda x: torch.tensor(x, dtype=f64), {"a": 0.01, "b": [0.02, 0.03]})
OPTIMIZERS = {
    "adamw": hft.adamw(eps_root=1e-8), "amsgrad": hft.adam(amsgrad=True, eps_root=1e-8, maximize=True),
    "sgd": hft.sgd(momentum=0.9, lr=0.1), "rmsprop": hft.rmsprop(), "adamax": hft.adamax(),
}  # fmt: skip


def loss(p, x, own):
    return (own * (torch.tanh(x @ p["a"] + p["b"][0]) * p["b"][1]).square()).mean()


def hypergradient(optimizer, lr, over=("lr", "loss"), dtype=f64, **options):
    params, data = hft.tree.map_tree(lambda x: x.to(dtype), (PARAMS, DATA))
    value, grads, _ = hft.hypergradient(
        optimizer, loss, lambda p: p["a"].square().sum() + p["b"][1], params, data, over=list(over),
        hparams={"lr": lr, "loss": torch.tensor(0.5, dtype=dtype)}, strategy=hft.Unroll(**options),
    )  # fmt: skip
    return [value, *hft.tree.leaves(grads)]


@pytest.fixture
def counted(monkeypatch):
    """How often it goes so, from now on for so few weights."""
    calls, back = [], by_tensor.back_by_tensor
    monkeypatch.setattr(by_tensor, "MOST", 7)  # also of entries at once
    eager = sys.modules["hyperopt_ftp.hyper.unrolling.eager"]
    monkeypatch.setattr(eager, "back_by_tensor", lambda *args: (calls.append(0), back(*args))[1])
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("lr", [0.01, OWN], ids=["one", "each"])
def test_it_is_the_same(name, lr, counted, monkeypatch):
    found = hypergradient(OPTIMIZERS[name], lr, checkpoint=2)
    assert len(counted) == len(DATA)
    monkeypatch.setattr(by_tensor, "MOST", 2**20)
    for x, y in zip(found, hypergradient(OPTIMIZERS[name], lr, checkpoint=2), strict=True):
        assert (x - y).abs() <= 1e-13 * y.abs()
    assert len(counted) == len(DATA)


def test_in_all_inputs_and_in_16_bits(counted, monkeypatch):
    """float16 params have adjoints in float32: the derivative of the start is that of sums in another order."""
    for dtype in (f64, torch.float16):
        monkeypatch.setattr(by_tensor, "MOST", 7)
        found = hypergradient(OPTIMIZERS["adamw"], OWN, ["lr", "params", "batches"], dtype, checkpoint=2)
        assert counted
        monkeypatch.setattr(by_tensor, "MOST", 2**20)
        plain = hypergradient(OPTIMIZERS["adamw"], OWN, ["lr", "params", "batches"], dtype, checkpoint=2)
        for x, y in zip(found, plain, strict=True):
            assert (x - y).abs().max() <= 16 * torch.finfo(dtype).eps * y.abs().max()


def test_who_acts_by_tensor(counted):
    acts = lambda opt, state=None: by_tensor.acts_by_tensor(opt, PARAMS, state or opt.init(PARAMS))  # noqa: E731
    assert acts(hft.adam())
    tower = hft.hyper(hft.sgd(), by=hft.sgd(lr=0.1), over="lr")
    for optimizer in (hft.adafactor(), hft.clipped(hft.adam(), 1.0), tower):
        assert not acts(optimizer)
    adam = hft.adam()
    grads = {"a": torch.ones(5, 5, dtype=f64), "b": [None, torch.ones((), dtype=f64)]}
    assert not acts(adam, adam.update(grads, adam.init(PARAMS), PARAMS)[1])  # a count for each


def test_adjoints_are_dropped_on_the_way(counted, monkeypatch):
    left = []

    def watched(*args):
        found = by_tensor.back_by_tensor(*args)
        left.extend(args[-1])
        return found

    monkeypatch.setattr(sys.modules["hyperopt_ftp.hyper.unrolling.eager"], "back_by_tensor", watched)
    hypergradient(OPTIMIZERS["adamw"], 0.01, checkpoint=1)
    assert len(left) > 0
    assert all(x is None for x in left)
