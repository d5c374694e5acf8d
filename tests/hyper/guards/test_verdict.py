"""What was found of a loss counts in a later call only while all that it depends on is the same; and it is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper.core.inputs import TrainInputs
from hyperopt_ftp.hyper.guarded import problem_of
from hyperopt_ftp.hyper.guards import verdict

AGAIN = hft.Unroll(checkpoint=1)


@pytest.fixture(autouse=True)
def _nothing_known():
    verdict._known.cache_clear()


# -- what is remembered ----------------------------------------------------------------------------------------------


def size(key: Any) -> int:
    return 1 + sum(map(size, key)) if isinstance(key, tuple) else 1


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found, known = [], verdict._known

    def kept(*key):
        found.append(key)
        return known(*key)

    monkeypatch.setattr(verdict, "_known", kept)
    return found


def test_what_a_loss_with_a_log_in_its_closure_leaves_is_bounded(keys: list[Any]):
    log: list[float] = []

    def loss(p, x):
        log.extend([0.5] * 1000)
        return ((p - x) ** 2).sum()

    for _ in range(30):  # 30,000 numbers in the end
        lr = torch.tensor(0.1, requires_grad=True)
        hft.train(hft.sgd(lr=lr), loss, torch.ones(2), [0.0], strategy=AGAIN).params.sum().backward()
    assert log
    assert keys
    assert max(map(size, keys)) < 20_000  # of each number a kind and the number
    assert len(keys) < 10  # none where the closure is larger than is worth to be looked at


def test_what_a_run_without_a_derivative_finds_stays_with_it():
    inputs = TrainInputs({}, torch.ones(2), None, [torch.ones(2)])
    problem = problem_of(hft.sgd(lr=0.1), lambda p, x: (p * x).sum())
    with torch.no_grad():
        first, second = (problem.guarded(inputs, derived=False).guards for _ in range(2))
    assert first is not None
    assert second is not None
    first.verdict.makes_leaves = True
    assert not second.verdict.makes_leaves


# -- what a loss gets ----------------------------------------------------------------------------------------------


HALF = torch.tensor(0.5, dtype=torch.float64)


def slope(params: Any, batches: list[Any] | None = None, loss: Any = None) -> Tensor:
    """The derivative of what two steps end in, in the learning rate."""
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    run = hft.train(hft.sgd(lr=lr), loss or quartic, params, batches or [HALF, HALF / 2])
    return torch.autograd.grad(torch.stack([p.sum() for p in tree.leaves(run.params)]).sum(), lr)[0]


def quartic(p: Any, x: Any) -> Tensor:
    return sum(((w - x) ** 4).sum() for w in tree.leaves(p))


def weights() -> dict[str, Tensor]:
    return {"a": torch.linspace(-1, 1, 5, dtype=torch.float64), "b": torch.linspace(0, 1, 3, dtype=torch.float64)}


def reads(p: Any, x: Any) -> Tensor:
    """What is warned of."""
    return quartic(p, 0.5) * next(iter(tree.leaves(p))).sum().item()


def test_the_names_of_a_batch_are_seen():
    def loss(p, x):
        return reads(p, x) if "y" in x else quartic(p, x["x"])

    slope(weights(), [{"x": HALF}] * 2, loss)
    with pytest.warns(UserWarning, match="number"):
        slope(weights(), [{"y": HALF}] * 2, loss)


def test_of_nested_tensors_nothing_is_known(keys: list[Any]):
    def loss(p, x):
        return quartic(p, x.values().mean())

    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], dtype=torch.float64, layout=torch.jagged)
    slope(weights(), [nested] * 2, loss)
    assert not keys


# -- what a gradient is taken in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["batch", "hparams"])
def test_the_gradient_is_partial_where_a_param_is_in_the_batch_or_the_losss_hparams_too(place: str):
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    batch, own = (w, 1.0) if place == "batch" else (torch.ones_like(w), w)
    for _ in range(2):  # the second call is known
        end = hft.train(hft.sgd(lr=0.1), lambda p, x, h: p * x * h, w, [batch], hparams={"loss": own}).params
        assert end.item() == pytest.approx(1.8)
        assert torch.autograd.grad(end, w)[0].item() == pytest.approx(0.9)


def test_a_hook_of_a_leaf_sees_no_training_gradient():
    p, seen = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True), []
    p.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    for _ in range(2):
        end = hft.train(hft.sgd(lr=0.1), quartic, p, [0.5]).params
        assert not seen
    (got,) = torch.autograd.grad(end.sum(), p)
    torch.testing.assert_close(got, 2 * (1 - 1.2 * (p.detach() - 0.5) ** 2), rtol=1e-14, atol=0)
    assert len(seen) == 1


def test_a_leaf_that_stands_twice_has_a_gradient_in_each_place():
    p = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        run = hft.train(hft.sgd(lr=1.0), lambda p, x: (3 * p["a"] + 5 * p["b"]).sum(), {"a": p, "b": p}, [0.5])
        assert run.params["a"].item() == -2
        assert run.params["b"].item() == -4
