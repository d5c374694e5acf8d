"""What estimate says is what happens: bytes of the allocator, gradients and products counted."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._subclasses import FakeTensorMode

import hyperopt_ftp as hft
from benchmarks.measure import allocated
from benchmarks.nets import NETS, Problem
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Costs, Strategy

F64 = torch.float64


# -- memory -----------------------------------------------------------------------------------------------------------

STRATEGIES = {
    "all graphs": hft.Unroll(checkpoint=False),
    "every point": hft.Unroll(checkpoint=1),
    "sqrt": hft.Unroll(checkpoint="sqrt"),
    "truncated": hft.Unroll(truncate=5),
    "forward": hft.Forward(),
    "implicit": hft.Implicit(iterations=5, tolerance=1e9),
    "identity": hft.Implicit("identity"),
    "zero order": hft.ZeroOrder(3, 1e-6),
    "disk": hft.Unroll(offload="disk"),
}


#: Every strategy with one of the networks.
PAIRS = [([*NETS][j % len(NETS)], how) for j, how in enumerate(STRATEGIES)]


@pytest.mark.filterwarnings("ignore:Implicit")  # nothing has converged
@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_memory_is_that_of_the_allocator(name: str, how: str):
    torch.manual_seed(0)
    problem, strategy = NETS[name](12), STRATEGIES[how]
    if name == "weighted" and how == "forward":
        problem = problem._replace(over="lr")  # not 10,000 tangents
    if how == "implicit":
        strategy = replace(strategy, tolerance=0.0)
    state = problem.optimizer.init(problem.params)
    found = problem.estimate(strategy, state)
    peak, _ = allocated(lambda: problem.hypergradient(strategy, state))
    assert found.memory == pytest.approx(peak, rel=0.15)


def test_a_chunk_of_tangents_goes_before_the_next_one_comes():
    torch.manual_seed(0)
    problem, strategy = NETS["mlp"](6)._replace(over=("lr", "eps", "weight_decay", "betas")), hft.Forward(chunk=2)
    state = problem.optimizer.init(problem.params)
    found = problem.estimate(strategy, state)
    peak, _ = allocated(lambda: problem.hypergradient(strategy, state))
    assert found.memory == pytest.approx(peak, rel=0.15)


TUNED = {"optimizer": hft.hyper(hft.adam(eps=1e-4), by=hft.sgd(lr=1e-6), over="lr"), "over": "by.lr"}
#: A network, steps, what is tuned, bytes, and what auto keeps within them. With batches the peak is at the end.
BUDGETS = [
    ("mlp", 64, {}, 9_000_000, "the last"),
    ("mlp", 64, {}, 1_250_000, "tree"),
    ("transformer", 12, {}, 8_500_000, "n = "),
    ("weighted", 12, {"over": tuple(f"batches.{i}.0" for i in range(12))}, 1_400_000, "n = "),
    ("mlp", 8, TUNED, 1_470_000, "n = "),
    ("mlp", 8, TUNED, 2**40, "all graphs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "steps", "changes", "memory", "plan"), BUDGETS)
def test_what_auto_says_and_logs_happens(name: str, steps: int, changes: Any, memory: int, plan: str, caplog: Any):
    problem, strategy = NETS[name](steps)._replace(**changes), hft.Unroll(memory=memory)
    state = problem.optimizer.init(problem.params)
    said = problem.estimate(strategy, state)
    caplog.set_level(logging.INFO, logger="hyperopt_ftp")
    found = []
    for how in (strategy, hft.Unroll(checkpoint=1)):
        torch.manual_seed(0)
        found.append(allocated(lambda how=how: problem.hypergradient(how, state)))
    for x, y in zip(*(tree.leaves(result) for _, result in found), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=0)  # one graph adds up the steps in another order
    assert caplog.messages[0].endswith(f"steps: {said.plan}; predicted peak: {said.memory} bytes")
    assert plan in said.plan
    assert said.memory <= memory
    assert said.memory == pytest.approx(found[0][0], rel=0.15)


# -- without values ---------------------------------------------------------------------------------------------------


def on_meta(problem: Problem) -> Problem:
    params, batches = tree.map_tree(
        lambda x: x.to("meta") if isinstance(x, Tensor) else x, (problem.params, problem.batches)
    )
    return problem._replace(params=params, batches=batches)


@pytest.mark.parametrize(("name", "how"), [("conv", "implicit"), ("transformer", "sqrt"), ("recurrent", "forward")])
def test_on_paper_all_is_as_with_values(name: str, how: str):
    """But that points hold a random state of the CPU, 5 kB each."""
    torch.manual_seed(0)
    problem, strategy = NETS[name](5), STRATEGIES[how]
    state = problem.optimizer.init(problem.params)
    real, paper = problem.estimate(strategy, state), on_meta(problem).estimate(strategy, None)
    assert paper[1:] == real[1:]
    assert abs(paper.memory - real.memory) < 8 * 5056 + 0.06 * real.memory


def test_offload_takes_points_off_a_device_without_values():
    problem = on_meta(NETS["mlp"](9))
    here, gone = (problem.estimate(hft.Unroll(checkpoint=1, offload=x), None).memory for x in (False, True))
    point = 3 * sum(x.nbytes for x in problem.params.values())
    assert 5 * point < here - gone < 8 * point  # eight that were kept, and the one in use that comes back


def test_within_fake_tensors_of_ones_own():
    with FakeTensorMode():
        found = NETS["transformer"](5).estimate(hft.Unroll(checkpoint=1), None)
    real = NETS["transformer"](5).estimate(hft.Unroll(checkpoint=1), None)
    assert found.memory == pytest.approx(real.memory, rel=0.03)
    assert (found.gradients, found.products, found.time) == (10, 4, 18)


class Own(Strategy):
    """The plain loop, of which nothing is known."""

    def __call__(self, problem, inputs):
        return problem.loop(inputs)

    def costs(self, problem, inputs):
        return Costs(len(inputs.batches), len(inputs.batches), "all graphs")


@pytest.mark.parametrize("steps", [2, 12])
def test_memory_of_a_strategy_of_ones_own_grows_with_the_steps(steps: int):
    problem = NETS["transformer"](steps)
    state = problem.optimizer.init(problem.params)
    found = problem.estimate(Own(), state)
    peak, _ = allocated(lambda: problem.hypergradient(Own(), state))
    assert found.memory == pytest.approx(peak, rel=0.15)
    with pytest.raises(TypeError, match=r"Own.costs must return hyperopt_ftp.hyper.Costs, got a tuple"):
        problem.estimate(type("Own", (Own,), {"costs": lambda *_: (1, 1, "")})(), state)


# -- counts -----------------------------------------------------------------------------------------------------------


class Counts:
    """A quadratic loss that counts backward passes to its arguments: a gradient is the first one after a call."""

    def __init__(self) -> None:
        self.gradients = self.products = 0
        self.called = False

    def __call__(self, p: dict[str, Tensor], x: Tensor, h: Tensor | None = None) -> Tensor:
        self.called = True
        w, b, *more = _Tap.apply(self, p["w"], p["b"], *(() if h is None else (h,)))
        decay = sum(y * w.square().sum() for y in more)
        return (w * x - 1).square().sum() + b.square().sum() + decay

    def went_back(self, gs: tuple[Tensor, ...]) -> None:
        if self.called:
            self.gradients, self.called = self.gradients + 1, False
        elif not torch.is_grad_enabled():  # no second gradient with a graph
            batched = [g for g in gs if functorch.is_batchedtensor(g)]
            rows = functorch.get_unwrapped(batched[0]).shape[functorch.maybe_get_bdim(batched[0])] if batched else 1
            self.products += rows


class _Tap(torch.autograd.Function):
    """In one piece, so that its backward pass counts once."""

    @staticmethod
    def forward(ctx: Any, counts: Counts, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.counts = counts
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> Any:
        ctx.counts.went_back(gs)
        return None, *gs


UNROLLS = {
    "small": hft.Unroll(),
    "all": hft.Unroll(checkpoint=False),
    "1": hft.Unroll(checkpoint=1),
    "3": hft.Unroll(checkpoint=3),
    "sqrt": hft.Unroll(checkpoint="sqrt"),
    "log": hft.Unroll(checkpoint="log"),
    "offload": hft.Unroll(offload=True),
    "truncated": hft.Unroll(truncate=4, checkpoint=3),
    "auto": hft.Unroll(memory=2**30),
    "little": hft.Unroll(memory=90_000),
}
OTHERS = {
    "forward": hft.Forward(),
    "forward, 1": hft.Forward(chunk=1),
    "forward, 2": hft.Forward(chunk=2),
    "neumann": hft.Implicit(iterations=4, tolerance=0.0),
    "cg": hft.Implicit("cg", iterations=3, tolerance=0.0, batches=2),
    "dense": hft.Implicit("dense"),
    "identity": hft.Implicit("identity", batches=3),
}


def counted(strategy: Any, over: Any, steps: int, opt: hft.Optimizer, size: int = 3) -> tuple[Counts, hft.Estimate]:
    params = {"w": torch.linspace(0.1, 0.3, size, dtype=F64), "b": torch.ones(2, dtype=F64)}
    batches = [torch.full((size,), 1 + k / 10, dtype=F64) for k in range(steps)]
    hparams = {**opt.hparams, "loss": torch.tensor(0.1, dtype=F64)} if "loss" in over else dict(opt.hparams)
    found = hft.estimate(opt, Counts(), params, batches, over=over, hparams=hparams, strategy=strategy)
    counts = Counts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing has converged
        hft.hypergradient(
            opt, counts, lambda p: p["w"].square().sum(), params, batches, over, hparams, strategy=strategy
        )
    return counts, found


@pytest.mark.parametrize("over", ["lr", ("lr", "params", "loss"), "batches.0", ("momentum", "batches.2")])
@pytest.mark.parametrize("strategy", [*UNROLLS.values(), *OTHERS.values()], ids=[*UNROLLS, *OTHERS])
def test_gradients_and_products_are_those_that_are_evaluated(strategy: Any, over: Any):
    counts, found = counted(strategy, over, 11, hft.sgd(lr=0.05, momentum=0.5))
    assert found.gradients == counts.gradients
    if isinstance(strategy, hft.Forward):  # a tangent of one batch begins with that batch
        assert counts.products <= found.products <= counts.products * 11 / 8
    elif over == "batches.0" and strategy in (hft.Unroll(), hft.Unroll(checkpoint=False)):
        assert found.products == counts.products + 1  # the first one goes to the batch alone, which is not counted
    else:
        assert found.products == counts.products


def test_graphs_that_are_too_large_are_made_again():
    for over in ("lr", "params"):
        counts, found = counted(hft.Unroll(), over, 7, hft.adam(eps=1e-3), 2**20)
        assert found.gradients == counts.gradients == 14
        assert found.plan == "every point"


@pytest.mark.filterwarnings("ignore:ZeroOrder trains its samples one after the other")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("antithetic", [True, False])
def test_trainings_of_samples(antithetic: bool, together: bool):
    calls = []

    def loss(p: Tensor, x: Tensor) -> Tensor:
        calls.append(0)
        return (p - x).square().sum() * (1.0 if together else p.detach().sum().isfinite().item())

    data, strategy = [torch.ones(3, dtype=F64)] * 5, hft.ZeroOrder(4, 1e-3, antithetic)
    found = hft.estimate(hft.sgd(), loss, 0 * data[0], data, over="lr", strategy=strategy)
    calls.clear()
    hft.hypergradient(hft.sgd(), loss, torch.sum, 0 * data[0], data, "lr", strategy=strategy)
    points = 8 if antithetic else 5
    trainings = 1 + points if together else 2 + points  # one more, as a check
    assert found[1:3] == (5 * trainings, 0)
    # Those of the samples together; or a vain attempt, up to the step whose params are not the same for all.
    assert len(calls) == (10 if together else 2 + 5 * trainings)


# -- and beside -------------------------------------------------------------------------------------------------------


def test_nothing_changes():
    problem = NETS["transformer"](5)
    before = tree.map_tree(torch.clone, problem.params)
    rng = torch.get_rng_state()
    for how in ("every point", "forward", "implicit", "zero order"):
        problem.estimate(STRATEGIES[how], None)
        assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(x, y) for x, y in zip(tree.leaves(before), tree.leaves(problem.params), strict=True))
