"""Laws of hypergradients, whatever optimizer, steps and batches: ways agree, cotangents are linear, runs chain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import BASES
from ..support.compare import same
from ..support.contract import through_a_file
from ..support.draws import normal, seeds, tenths
from ..support.problems import central_differences, loop

F64 = torch.float64
SMOOTH = [case for case in BASES if case.smooth]
#: An update is two dozen operations on values of order 1, a step's derivative doubles them, and a root that is divided
#: by is at least eps = 1e-2, of which its derivative is the square: 48 * 1e-16 * 1e4, for each of up to six steps.
CLOSE = {"rtol": 1e-9, "atol": 3e-10}
pytestmark = pytest.mark.filterwarnings(
    "ignore:the hypergradient of .* is exactly 0", "ignore:params require grad, and"
)


class Training(NamedTuple):
    """Of two small tensors, by a loss that joins them and has a number of its own."""

    opt: hft.Optimizer
    params: dict[str, Tensor]
    data: list[Tensor]

    @property
    def hparams(self) -> dict[str, Any]:
        return {**self.opt.hparams, "loss": torch.tensor(0.3, dtype=F64)}

    @staticmethod
    def loss(p: dict[str, Tensor], x: Tensor, h: Any = 0.3) -> Tensor:
        return torch.tanh(x @ p["w"] + p["b"]).square().mean() * 3 + h * p["w"].square().sum()

    def end(self, hparams: Any, strategy: Any = None, state: Any = None, **given: Any) -> Any:
        params, data = given.get("params", self.params), given.get("data", self.data)
        return hft.train(self.opt, self.loss, params, data, hparams=hparams, state=state, strategy=strategy)

    def slopes(self, outer: Any, strategy: Any = None, by_hand: bool = False, last: int | None = None) -> list[Tensor]:
        """Derivatives of outer(params) in all that training is given, but the batches."""
        leaves, rebuild = tree.flatten((self.hparams, self.params))
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        hparams, params = rebuild(leaves)
        if by_hand:
            own = {name: x for name, x in hparams.items() if name != "loss"}
            loss = lambda p, x: self.loss(p, x, hparams["loss"])  # noqa: E731
            end = loop(self.opt, loss, params, self.data, hparams=own, last=last)[0]
        else:
            end = self.end(hparams, strategy, params=params).params
        return list(torch.autograd.grad(outer(end), leaves, allow_unused=True, materialize_grads=True))


@st.composite
def trainings(draw: st.DrawFn, most: int = 6, least: int = 1) -> Training:
    case, seed = draw(st.sampled_from(SMOOTH)), draw(seeds)
    columns = draw(st.integers(1, 3))
    w, b, *data = normal(seed, [(3, columns), (columns,), *[(4, 3)] * draw(st.integers(least, most))])
    return Training(case.build(), {"w": w, "b": b}, data)


def to_a_point(seed: int) -> Any:
    """An outer loss that looks at every param."""
    (x,) = normal(seed, [(4, 3)])
    return lambda p: (Training.loss(p, x) + sum(w.sin().sum() for w in p.values())).sum()


def ways(steps: int) -> st.SearchStrategy[Any]:
    """Every exact strategy, with any of its options."""
    checkpoint = st.sampled_from([None, "sqrt", "log"]) | st.integers(1, steps + 1)
    unrolled = st.builds(lambda c, o: hft.Unroll(checkpoint=c, offload=o), checkpoint, st.booleans())
    others = [hft.Unroll(checkpoint=False), hft.Unroll(memory=2**30), hft.Forward()]
    return unrolled | st.sampled_from(others) | st.integers(1, 5).map(lambda n: hft.Forward(chunk=n))


@settings(max_examples=40)
@given(run=trainings(), data=st.data(), seed=seeds)
def test_every_exact_strategy_is_the_loop_by_hand(run: Training, data: Any, seed: int):
    """In all hparams, those of the loss and the start."""
    outer = to_a_point(seed)
    got = run.slopes(outer, data.draw(ways(len(run.data))))
    torch.testing.assert_close(got, run.slopes(outer, by_hand=True), **CLOSE)


@given(run=trainings(), data=st.data(), seed=seeds)
def test_truncation_is_the_loop_whose_head_is_a_constant(run: Training, data: Any, seed: int):
    """Of all steps it is no truncation, but for the start and what a state begins with."""
    outer, last = to_a_point(seed), data.draw(st.integers(1, len(run.data)))
    got, want = run.slopes(outer, hft.Unroll(truncate=last)), run.slopes(outer, by_hand=True, last=last)
    count = len(tree.leaves(run.hparams))
    torch.testing.assert_close(got[:count], want[:count], **CLOSE)
    assert not any(x.any() for x in got[count:])
    if last == len(run.data) and "initial_accumulator_value" not in run.opt.hparams:
        torch.testing.assert_close(got[:count], run.slopes(outer)[:count], **CLOSE)


@given(run=trainings(), data=st.data(), seed=seeds)
def test_a_hypergradient_is_that_of_central_differences(run: Training, data: Any, seed: int):
    path = data.draw(st.sampled_from([path for path, _ in tree.named(run.hparams)]))
    outer = to_a_point(seed)

    def at(x: Tensor) -> Tensor:
        return outer(run.end(tree.replaced(run.hparams, path, x)).params)

    x = tree.entry(run.hparams, path)
    (want,) = central_differences(at, x)
    # h^4 = 1e-16 times a fifth derivative, which a root of eps = 1e-2 makes up to 1e2^4 times as large; 1e-12 / h.
    torch.testing.assert_close(torch.func.grad(at)(x), want, rtol=1e-6, atol=1e-7)


@settings(max_examples=12)
@given(run=trainings(most=4), data=st.data(), a=tenths(-20, 20), b=tenths(-20, 20))
def test_hypergradients_are_linear_in_the_outer_loss(run: Training, data: Any, a: float, b: float):
    way = data.draw(ways(len(run.data)))
    f, g = to_a_point(1), to_a_point(2)
    both = run.slopes(lambda p: a * f(p) + b * g(p), way)
    for x, y, z in zip(both, run.slopes(f, way), run.slopes(g, way), strict=True):
        torch.testing.assert_close(x, a * y + b * z, **CLOSE)


@given(run=trainings(least=2), data=st.data(), seed=seeds)
def test_two_trainings_one_after_the_other_are_one(run: Training, data: Any, seed: int):
    """Params, state, losses and the hypergradient, whichever strategy each of them takes."""
    cut = data.draw(st.integers(1, len(run.data) - 1))
    first, second = (data.draw(st.sampled_from([None, hft.Unroll(checkpoint=1), hft.Forward()])) for _ in range(2))
    outer = to_a_point(seed)

    def chained(h: Any, by: tuple[Any, Any]) -> Any:
        a = run.end(h, by[0], data=run.data[:cut])
        b = run.end(h, by[1], state=a.state, params=a.params, data=run.data[cut:])
        return b, torch.cat([a.losses, b.losses])

    def slopes(end: Any) -> tuple[Any, ...]:
        leaves, rebuild = tree.flatten(run.hparams)
        leaves = [x.clone().requires_grad_() for x in leaves]
        result, losses = end(rebuild(leaves))
        found = torch.autograd.grad(outer(result.params), leaves, allow_unused=True, materialize_grads=True)
        return found, [x.detach() for x in tree.leaves((result.params, result.state))], losses

    got = slopes(lambda h: chained(h, (first, second)))
    want = slopes(lambda h: (lambda end: (end, end.losses))(run.end(h)))
    torch.testing.assert_close(got, want, **CLOSE)

    def of_rate(lr: Tensor) -> Tensor:  # under a transform, where a count that is wrapped stays one of double precision
        return outer(chained({**run.hparams, "lr": lr}, (None, None))[0].params)

    i = [path for path, _ in tree.named(run.hparams)].index("lr")
    torch.testing.assert_close(torch.func.grad(of_rate)(run.hparams["lr"]), want[0][i], **CLOSE)


@given(run=trainings(), rates=st.lists(tenths(5, 12), min_size=1, max_size=3), seed=seeds)
def test_vmap_over_hparams_is_a_loop_over_them(run: Training, rates: list[float], seed: int):
    outer = to_a_point(seed)

    def at(lr: Tensor) -> Tensor:
        return outer(run.end({**run.hparams, "lr": lr}).params)

    rows = torch.tensor(rates, dtype=F64) * run.hparams["lr"]
    got = torch.func.vmap(torch.func.grad(at))(rows)
    torch.testing.assert_close(got, torch.stack([torch.func.grad(at)(lr) for lr in rows]), **CLOSE)


@given(run=trainings(), data=st.data(), seed=seeds)
def test_derivatives_in_a_rate_of_each_step_add_up_to_that_of_the_shared_one(run: Training, data: Any, seed: int):
    """Steps after the last of a table go by its last row; so do those of a rate for each tensor."""
    outer, lr = to_a_point(seed), run.hparams["lr"]
    rows = data.draw(st.integers(1, len(run.data) + 1))

    def of(run: Training, lr: Any) -> Tensor:
        return outer(run.end({**run.hparams, "lr": lr}, data.draw(ways(len(run.data)))).params)

    shared = torch.func.grad(lambda x: of(run, x))(lr)
    table = lr.expand(rows).clone()
    by_step = torch.func.grad(lambda x: of(run._replace(opt=hft.per_step(run.opt, lr=table)), x))(table)
    by_layer = torch.func.grad(lambda x: of(run, x))(dict.fromkeys(run.params, lr))
    for parts in (by_step, torch.stack([*by_layer.values()])):
        torch.testing.assert_close(parts.sum(), shared, **CLOSE)
    assert rows <= len(run.data) or by_step[-1] == 0


@given(run=trainings(), data=st.data())
def test_what_does_not_require_grad_gets_none_and_changes_nothing_for_the_rest(run: Training, data: Any):
    leaves, rebuild = tree.flatten((run.hparams, run.params, run.data))
    asked = data.draw(st.sets(st.integers(0, len(leaves) - 1), min_size=1))
    way, outer = data.draw(ways(len(run.data))), to_a_point(3)
    found = []
    for some in (asked, range(len(leaves))):
        inputs = [x.clone().requires_grad_(i in some) for i, x in enumerate(leaves)]
        hparams, params, batches = rebuild(inputs)
        outer(run.end(hparams, way, params=params, data=batches).params).backward()
        assert {i for i, x in enumerate(inputs) if x.grad is not None} <= {*some}
        found.append([inputs[i].grad if inputs[i].grad is not None else torch.zeros_like(inputs[i]) for i in asked])
    torch.testing.assert_close(*found, **CLOSE)


STEPWISE = [hft.Unroll(), hft.Unroll(checkpoint=False), hft.Unroll(checkpoint=1), hft.Unroll(first_order=True)]


@given(run=trainings(least=2), strategy=st.sampled_from(STEPWISE), seed=seeds)  # ADOPT's first moves nothing
def test_steps_run_to_their_end_are_train(run: Training, strategy: Any, seed: int):
    outer, found = to_a_point(seed), []
    for stepwise in (True, False):
        lr = run.hparams["lr"].clone().requires_grad_()
        hparams = {**run.opt.hparams, "lr": lr}
        problem = (run.opt, run.loss, run.params, run.data)
        if stepwise:
            steps = [*hft.steps(*problem, hparams=hparams, strategy=strategy)]
            assert [step.k for step in steps] == [*range(len(run.data))]
            end, losses = steps[-1], torch.stack([step.loss for step in steps])
        else:
            end = hft.train(*problem, hparams=hparams, strategy=strategy)
            losses = end.losses
        slope = torch.autograd.grad(outer(end.params), lr)[0]
        found.append([slope, losses, *(x.detach() for x in tree.leaves((end.params, end.state)))])
    torch.testing.assert_close(*found, **CLOSE)


@given(run=trainings(most=4), seed=seeds, per_layer=st.booleans())
def test_first_order_is_a_loop_with_constant_gradients(run: Training, seed: int, per_layer: bool):
    outer = to_a_point(seed)

    def slopes(end: Any) -> list[Tensor]:
        params = {n: w.clone().requires_grad_() for n, w in run.params.items()}
        rates = [run.hparams["lr"].clone().requires_grad_() for _ in params]
        lr = dict(zip(params, rates, strict=True)) if per_layer else rates[0]
        value = outer(end(params, {**run.opt.hparams, "lr": lr}))
        asked = [*params.values(), *(rates if per_layer else rates[:1])]
        return list(torch.autograd.grad(value, asked, allow_unused=True, materialize_grads=True))

    def by_hand(params: Any, hparams: Any) -> Any:
        state = run.opt.init(params, hparams)
        for x in run.data:
            at = {n: w.detach().requires_grad_() for n, w in params.items()}
            grads = dict(zip(at, torch.autograd.grad(run.loss(at, x), [*at.values()]), strict=True))
            params, state = run.opt.update(grads, state, params, hparams)
        return params

    strategy = hft.Unroll(first_order=True)
    got = slopes(lambda p, h: hft.train(run.opt, run.loss, p, run.data, hparams=h, strategy=strategy).params)
    torch.testing.assert_close(got, slopes(by_hand), **CLOSE)


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@given(run=trainings(most=4), reduction=st.sampled_from(["mean", "sum"]), seed=seeds, data=st.data())
def test_data_parallel_in_one_process_is_the_loss_itself(run: Training, reduction: str, seed: int, data: Any):
    way, found = data.draw(ways(len(run.data))), []
    (held_out,) = normal(seed, [(4, 3)])

    def outer_of(loss: Any, p: Any) -> Tensor:
        return loss(p, held_out, 0.1)

    over = ("lr", "loss", "params", *(() if isinstance(way, hft.Forward) else ("batches",)))  # of shards: refused there
    with alone():
        for around in (lambda loss: loss, lambda loss: hft.data_parallel(loss, reduction=reduction)):
            outer = partial(outer_of, around(run.loss))
            value, slopes, end = hft.hypergradient(
                run.opt, around(run.loss), outer, run.params, run.data, over, run.hparams, strategy=way
            )
            found.append([value, *tree.leaves((slopes, end))])
    torch.testing.assert_close(*found, **CLOSE)


@given(run=trainings(), inner=st.integers(1, 4), at=st.integers(1, 3), seed=seeds)
def test_bilevel_resumes_bit_for_bit_at_any_round(run: Training, inner: int, at: int, seed: int):
    """Of rounds that end anywhere in a pass over the batches."""

    def rounds(state: Any = None) -> Iterator[Any]:
        return iter(hft.bilevel(
            run.opt, hft.sgd(lr=1e-3), "lr", lambda p, x: run.loss(p, x), lambda p, x: run.loss(p, x), run.params,
            run.data, normal(seed, [(4, 3)] * 2), inner_steps=inner, outer_steps=4, state=state,
        ))  # fmt: skip

    records = [*rounds()]
    values, rebuild = tree.flatten(records[at - 1].state)
    for got, want in itertools.zip_longest(rounds(rebuild(through_a_file(values))), records[at:]):
        assert tree.structure(got.state) == tree.structure(want.state)
        assert same(tree.leaves(got.state), tree.leaves(want.state))
        assert same(got.tuned, want.tuned)
        assert got.value == want.value
