"""What Unroll keeps: points by a plan, within its bounds."""

from __future__ import annotations

import math
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Strategy, TrainInputs, with_pullback
from hyperopt_ftp.hyper.unrolling import budget
from hyperopt_ftp.hyper.unrolling.eager import EagerSteps
from hyperopt_ftp.hyper.unrolling.plans import Parts, backward_schedule, every, points_of_every, tree_of
from hyperopt_ftp.hyper.unrolling.points import Checkpoints

eager, plans = sys.modules[EagerSteps.__module__], sys.modules[every.__module__]
F64 = torch.float64
SGD = hft.sgd(lr=0.05, momentum=0.5)
PLAIN = hft.Unroll(checkpoint=1)
LOG = hft.Unroll(checkpoint="log")


# -- how many points, and how many steps are made again ---------------------------------------------------------------


def tree_bounds(steps: int, arity: int = 4) -> tuple[int, float]:
    """Points at once and steps made again, as the docstring has them."""
    depth = 0
    while arity**depth < steps:
        depth += 1
    return 1 + (arity - 1) * depth, steps * ((arity - 1) / arity * depth - 1) + 1


def walked(parts: Parts, steps: int) -> tuple[int, int]:
    rows = [(k, len(live), again) for k, live, again in backward_schedule(parts, 3, 3 + steps)]
    assert [k for k, _, _ in rows] == list(range(3, 3 + steps))[::-1]
    return max(live for _, live, _ in rows), sum(again for _, _, again in rows)


@given(steps=st.integers(1, 1500) | st.sampled_from([4**k for k in range(6)]), n=st.integers(1, 9))
def test_plans_stay_within_their_bounds_and_a_tree_reaches_them(steps, n):
    found, most = walked(tree_of(4), steps), tree_bounds(steps)
    assert all(x <= y for x, y in zip(found, most, strict=True))
    assert found == most or steps not in (4, 16, 64, 256, 1024)
    steps %= 60
    points, again = walked(every(n), steps + 1)
    assert points <= math.ceil((steps + 1) / n) + n - 1
    assert again == 0 if n == 1 or steps < n else 0 < again <= steps


# -- the same hypergradient -------------------------------------------------------------------------------------------


class Counted:
    """A quadratic of three numbers, with or without dropout, that counts its calls."""

    def __init__(self, dropout: float = 0.3) -> None:
        self.dropout, self.calls = dropout, 0

    def __call__(self, p: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return (F.dropout(p, self.dropout) - x).square().sum()


def batches(steps: int) -> list[Tensor]:
    return [torch.full((3,), 1 + k / 10, dtype=F64) for k in range(steps)]


def call(loss: Callable[..., Tensor], steps: int, strategy: hft.Unroll, over: Any = ("lr", "params")) -> Any:
    torch.manual_seed(0)
    data = batches(steps)
    start = torch.zeros(3, dtype=F64)
    found = hft.hypergradient(SGD, loss, lambda p: p.square().sum(), start, data, over, strategy=strategy)
    return found, torch.rand(())  # the random state afterwards


def assert_equal(got: Any, want: Any) -> None:
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points are kept whenever one is used."""
    found, at = [], Checkpoints.at

    def counted(self: Checkpoints, k: int, step: Any) -> Any:
        point = at(self, k, step)
        found.append(len(self._kept) + 1)  # with the one in use
        return point

    monkeypatch.setattr(Checkpoints, "at", counted)
    return found


@given(steps=st.integers(1, 70))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tree_of_points_gives_the_same_hypergradient_bit_for_bit(live: list[int], steps: int):
    plain, logged = Counted(), Counted()
    want = call(plain, steps, PLAIN)
    live.clear()
    assert_equal(call(logged, steps, LOG), want)
    assert (max(live), logged.calls - plain.calls) == walked(tree_of(4), steps)


AUTO = hft.Unroll(memory=2**30)
TIGHT = hft.Unroll(memory=110_000)  # of which random states take most: a few points


WAYS = {
    "log": LOG, "offload": hft.Unroll(checkpoint="log", offload=True), "third": hft.Unroll(checkpoint=3), "auto": AUTO,
    "tight": TIGHT, "disk": hft.Unroll(offload="disk"), "disk, third": hft.Unroll(checkpoint=3, offload="disk"),
}  # fmt: skip


@given(name=st.sampled_from(sorted(WAYS)), steps=st.integers(20, 30), truncate=st.none() | st.integers(1, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_ways_to_keep_points_agree(name: str, steps: int, truncate: int | None, live: list[int]):
    want = call(Counted(), steps, hft.Unroll(truncate, checkpoint=1), over="lr")
    live.clear()
    assert_equal(call(Counted(), steps, replace(WAYS[name], truncate=truncate), over="lr"), want)
    assert truncate or name in ("auto", "disk") or max(live) < steps


def test_small_graphs_are_kept_and_others_made_again(monkeypatch: pytest.MonkeyPatch):
    plain, small, large = Counted(), Counted(), Counted()
    want = call(plain, 9, PLAIN)
    assert_equal(call(small, 9, hft.Unroll()), want)
    monkeypatch.setattr(budget, "SMALL", 0)
    assert_equal(call(large, 9, hft.Unroll()), want)
    assert (plain.calls, small.calls, large.calls) == (18, 9, 18)


@pytest.mark.parametrize("over", ["lr", "params"])
def test_a_first_graph_that_is_too_large_is_dropped_in_16_bits_too(monkeypatch: pytest.MonkeyPatch, over: str):
    data, start, calls = [torch.full((3,), 1 + k / 10) for k in range(5)], torch.zeros(3, dtype=torch.bfloat16), []
    monkeypatch.setattr(budget, "SMALL", 0)
    for strategy in (PLAIN, hft.Unroll()):
        loss = Counted(0.0)
        found = hft.hypergradient(SGD, loss, lambda p: p.float().square().sum(), start, data, over, strategy=strategy)
        calls.append((loss.calls, found[1][over]))
    assert calls[0][0] == calls[1][0] == 10
    assert torch.equal(calls[0][1], calls[1][1])


# -- points on disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_points_on_disk_are_there_as_long_as_they_are_needed(folder: Path):
    """Of params that lie in one larger piece of memory, one of them twice, their own entries alone."""
    large = torch.arange(50_000, dtype=torch.float64)
    lr = torch.tensor(0.05, dtype=F64, requires_grad=True)

    def slopes(strategy: hft.Unroll) -> Any:
        start = {"a": large[1:4], "b": large[1:4], "c": [large[4:10].view(2, 3).T]}
        loss: Any = lambda p, x: (p["a"] * p["b"] * x + p["c"][0].sum(1)).sin().sum()  # noqa: E731
        opt = hft.adam(lr=0.05, eps=1e-2)
        run = hft.train(opt, loss, start, batches(5), hparams={**opt.hparams, "lr": lr}, strategy=strategy)
        value = torch.stack([x.square().sum() for x in tree.leaves(run.params)]).sum()
        sizes = [x.stat().st_size for x in folder.iterdir()]
        found = [torch.autograd.grad(value, lr, retain_graph=keep)[0] for keep in (True, False)]
        return found, sizes

    want, _ = slopes(PLAIN)
    found, sizes = slopes(hft.Unroll(offload="disk"))
    assert_equal(found, want)
    assert len(sizes) == 5
    assert max(sizes) < 50_000
    assert not [*folder.iterdir()]


def test_a_directory_that_cannot_be_written_to(folder: Path):
    folder.rmdir()
    with pytest.raises(RuntimeError, match=rf"cannot be written to {folder}.*TMPDIR"):
        call(Counted(), 3, hft.Unroll(offload="disk"))


# -- links: points as gradients ---------------------------------------------------------------------------------------


def test_of_four_points_in_a_row_three_are_links():
    plan = points_of_every(2, links=True)
    assert sorted(plan.linked([0, 4, 8, 9, 10, 11, 12, 13, 20])) == [9, 10, 11, 13]
    assert not points_of_every(2).linked(range(9))


def noisy_adam() -> hft.Optimizer:
    """Adam whose update draws numbers, which have to be the same when it runs again, and counts its calls."""
    adam = hft.adam(lr=0.05, eps=1e-3)

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> Any:
        params, state = adam.update(grads, state, params, hparams)
        return params + 0.1 * torch.randn_like(params), state

    return hft.Optimizer(adam.init, update, adam.hparams)


@pytest.mark.parametrize("name", ["sqrt", "offload", "disk, third", "tight"])
def test_links_give_the_same_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch):
    """With dropout in the loss and noise in the update; and no gradient is computed more often."""
    linked, link = [], Checkpoints.link
    monkeypatch.setattr(Checkpoints, "link", lambda self, k, *rest: (linked.append(k), link(self, k, *rest))[1])
    strategy = {**WAYS, "sqrt": hft.Unroll(checkpoint="sqrt"), "tight": hft.Unroll(memory=60_000)}[name]
    found, calls = [], []
    for how in (PLAIN, strategy):
        loss, start = Counted(), torch.zeros(3, dtype=F64)
        torch.manual_seed(0)
        grads = hft.hypergradient(
            noisy_adam(), loss, lambda p: p.square().sum(), start, batches(23), ("lr", "params"), strategy=how
        )[1]
        found.append((grads, torch.rand(())))
        calls.append(loss.calls)
        assert bool(linked) == (how is strategy)
    assert_equal(*found)
    with monkeypatch.context() as without:
        without.setattr(plans, "LINKS", 0)
        linked.clear()
        loss = Counted()
        opt = noisy_adam()
        hft.hypergradient(opt, loss, lambda p: p.sum(), torch.zeros(3, dtype=F64), batches(23), "lr", strategy=strategy)
    assert not linked
    assert calls[1] == loss.calls or name == "tight"  # which affords other points


def test_a_state_that_is_small_makes_no_links(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Checkpoints, "link", None)
    data, start = batches(9), torch.zeros(3, dtype=F64)

    def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> Any:
        return params - hparams["lr"] * grads, state

    plain = hft.Optimizer(lambda params, hparams=None: (), update, {"lr": torch.tensor(0.05)})
    hft.hypergradient(plain, Counted(0), lambda p: p.sum(), start, data, "lr", strategy=LOG)


@pytest.mark.parametrize("strategy", [PLAIN, hft.Unroll(checkpoint=2)], ids=["points", "links"])
def test_of_a_point_in_use_only_the_params_live_through_the_product(
    strategy: hft.Unroll, monkeypatch: pytest.MonkeyPatch
):
    """Nor does the state in which training ended, once the caller has dropped it."""
    states: list[Any] = []

    def watched() -> hft.Optimizer:
        adam = hft.adam(lr=0.05, eps=1e-3)

        def update(grads: Any, state: Any, params: Any, hparams: Any = None) -> Any:
            params, state = adam.update(grads, state, params, hparams)
            states.append(weakref.ref(state.exp_avg))
            return params, state

        return hft.Optimizer(adam.init, update, adam.hparams)

    living, pull = [], eager.pull_columns

    def counted(outputs: Any, cotangents: Any, columns: Any, *rest: Any) -> Any:
        if rest:  # the product
            living.append(sum(x() is not None for x in states))
        return pull(outputs, cotangents, columns, *rest)

    monkeypatch.setattr(eager, "pull_columns", counted)
    lr, opt = torch.tensor(0.05, dtype=F64, requires_grad=True), watched()
    data, start, hparams = batches(4), torch.zeros(3, dtype=F64), {**opt.hparams, "lr": lr}
    hft.train(opt, Counted(0), start, data, hparams=hparams, strategy=strategy).params.sum().backward()
    # While step 3 is gone back through PLAIN has points 1 and 2; the other one 2 alone, since 3 is a link.
    assert living == ([2, 1, 0, 0] if strategy is PLAIN else [1, 0, 0, 0])


def test_batches_in_one_piece_of_memory_are_read_again():
    """As a loader's may be."""

    class Reused(list):
        buffer = torch.zeros(3, dtype=F64)

        def __getitem__(self, k: Any) -> Any:
            self.buffer.numpy()[:] = super().__getitem__(k).numpy()
            return self.buffer

    def slope(data: Any) -> Tensor:
        squared: Any = lambda p, x: (p * x - x).square().sum()  # noqa: E731
        start = torch.zeros(3, dtype=F64)
        return hft.hypergradient(SGD, squared, lambda p: p.square().sum(), start, data, "lr")[1]["lr"]

    assert torch.equal(slope(batches(9)), slope(Reused(batches(9))))


def test_what_was_dropped_on_the_way_back_is_there_for_another_one():
    lr = torch.tensor(0.05, dtype=F64, requires_grad=True)
    for strategy in (PLAIN, LOG, AUTO, TIGHT):
        torch.manual_seed(0)
        loss, start = Counted(), torch.zeros(3, dtype=F64)
        run = hft.train(SGD, loss, start, batches(23), hparams=SGD.hparams | {"lr": lr}, strategy=strategy)
        rows = []
        for keep in (True, False):
            calls = loss.calls
            rows.append((torch.autograd.grad(run.params.sum(), lr, retain_graph=keep)[0].item(), loss.calls - calls))
        assert rows[0] == rows[1]


def test_steps_that_are_made_again_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch):
    """What is compared of a thousand steps would take more memory than 32 points."""
    found, refuse = [], eager.refuse_other_steps
    monkeypatch.setattr(
        eager, "refuse_other_steps", lambda pairs, dtype: (found.append(len(pairs)), refuse(pairs, dtype))
    )
    call(Counted(), 150, PLAIN)
    assert found == [64, 64, 22]


def test_what_the_outer_loss_does_not_use_has_a_cotangent_without_memory():
    """Zeros for two moments would be as large as they are."""
    given: list[Tensor] = []

    class Watched(Strategy):
        def __call__(self, problem: Any, inputs: Any) -> Any:
            return with_pullback(self.pullback, problem, inputs)

        def pullback(self, problem: Any, inputs: Any, end: Any, cotangents: Any) -> Any:
            given.extend(tree.leaves(cotangents.state.exp_avg))
            nothing = tree.map_tree(lambda _: None, inputs.hparams)
            return TrainInputs({**nothing, "lr": torch.ones_like(inputs.hparams["lr"])}, None, None)

    lr = torch.tensor(0.1, dtype=F64, requires_grad=True)
    opt, w = hft.adam(), torch.ones(1000, dtype=F64)
    run = hft.train(
        opt, lambda p, x: (p * x).square().sum(), w, [w] * 3, hparams={**opt.hparams, "lr": lr}, strategy=Watched()
    )
    run.params.sum().backward()
    assert [(x.shape, x.untyped_storage().nbytes()) for x in given] == [(w.shape, 8)]
    assert lr.grad is not None


def test_memory_has_no_effect_under_a_transform():
    def value(lr: Tensor, strategy: hft.Unroll) -> Tensor:
        data, hparams = [torch.ones(3, dtype=F64)] * 4, SGD.hparams | {"lr": lr}
        return hft.train(SGD, Counted(0), torch.zeros(3, dtype=F64), data, hparams=hparams, strategy=strategy).params[0]

    lr = torch.tensor(0.05, dtype=F64)
    little = hft.Unroll(memory=1)
    assert_equal(torch.func.grad(value)(lr, little), torch.func.grad(value)(lr, PLAIN))
