"""steps: each step of a training as one's own loop has it, whatever lies between two of them."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hyper import Step
from hyperopt_ftp.hyper.core.graph import nodes_below
from hyperopt_ftp.hyper.strategies import unroll

from ..support.problems import batches, loss, start
from ..support.train_problems import PROBLEMS, Problem

F64 = torch.float64
STEPWISE = {
    "Unroll()": hft.Unroll(),
    "Unroll(checkpoint=False)": hft.Unroll(checkpoint=False),
    "Unroll(checkpoint=1)": hft.Unroll(checkpoint=1),
}
every_strategy = pytest.mark.parametrize("strategy", STEPWISE.values(), ids=STEPWISE)
KINDS = [p for p in PROBLEMS if p.name in ("dropout", "attention", "tied", "checkpoint", "autocast")]
WEIGHTS = (0.2, 0.8)  # of two steps out of three
DATA = batches(4)
SGD = hft.sgd(lr=0.2, momentum=0.5)
W = start()


def one(x: Any, **options: Any) -> Tensor:
    return torch.tensor(x, dtype=F64, **options)


@every_strategy
@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_a_loss_at_each_step_is_that_of_a_loop_by_hand(problem: Problem, strategy: Any):
    """MAML++ (arXiv 1810.09502): a weighted sum over the steps before training was stopped."""

    def weighted(ends: Any) -> Tensor:
        return sum(weight * problem.outer(*end) for weight, end in zip(WEIGHTS, ends, strict=False))

    def by_steps(inputs: list[Tensor]) -> Tensor:
        hparams, params, state, data = problem.at(inputs)
        torch.manual_seed(7)
        steps = hft.steps(problem.opt, problem.loss, params, data, hparams=hparams, state=state, strategy=strategy)
        return weighted((step.params, step.state) for step in steps)

    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    want = torch.autograd.grad(weighted(problem.walked_by_hand(leaves, True)), leaves, materialize_grads=True)
    got = torch.autograd.grad(by_steps(leaves), leaves, materialize_grads=True)
    for x, y in zip(got, want, strict=True):  # of bfloat16 four units in the last place
        top = max(y.abs().max().item(), 0.1)
        torch.testing.assert_close(x, y, rtol=0, atol=(2**-6 if problem.autocast else 1e-11) * top)


@every_strategy
def test_batches_that_depend_on_the_params_seen(strategy: Any):
    """On-policy: the way from params through the next batch counts, and the training gradient is partial."""

    def act(params: Any, noise: Tensor) -> Tensor:
        return noise + 0.1 * torch.tanh(noise @ params["w"]).sum() * params["b"][0]

    def by_hand(lr: Tensor) -> Tensor:
        params = {n: x.clone().requires_grad_() for n, x in W.items()}
        for noise in DATA:
            at = {n: x.view_as(x) for n, x in params.items()}
            grads = torch.autograd.grad(loss(at, act(params, noise)), [*at.values()], create_graph=True)
            params = {n: p - lr * g for (n, p), g in zip(params.items(), grads, strict=True)}
        return loss(params, DATA[0])

    def by_steps(lr: Tensor) -> Tensor:
        params: Any = W

        def policy():
            for noise in itertools.cycle(DATA):
                yield act(params, noise)

        for step in hft.steps(hft.sgd(lr=0.0), loss, params, policy(), hparams={"lr": lr}, strategy=strategy):
            params = step.params
            if step.k == 3:
                return loss(params, DATA[0])
        raise AssertionError

    lr = one(0.1, requires_grad=True)
    got, want = (torch.autograd.grad(f(lr), lr)[0] for f in (by_steps, by_hand))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_a_batch_is_read_when_its_step_is_asked_for():
    read: list[int] = []

    def reading():
        for k in itertools.count():
            read.append(k)
            yield DATA[k % 4]

    steps = hft.steps(SGD, loss, W, reading())
    assert read == []
    next(steps)
    next(steps)
    assert read == [0, 1]


class Lazy:
    """Only the length tells the end."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, k: int) -> Tensor:
        return DATA[k % 4]


@pytest.mark.parametrize(
    "given",
    [DATA[:3], (*DATA[:3],), torch.stack(DATA[:3]), Lazy(), torch.utils.data.DataLoader(DATA[:3], batch_size=None)],
    ids=lambda x: type(x).__name__,
)
def test_batches_of_any_kind(given: Any):
    *_, last = hft.steps(SGD, loss, W, given)
    torch.testing.assert_close(last.params, hft.train(SGD, loss, W, DATA[:3]).params, rtol=1e-14, atol=1e-15)
    assert last.k == 2


def test_under_a_transform():
    def end(lr: Tensor, stop: int) -> Tensor:
        for step in hft.steps(SGD, loss, W, itertools.cycle(DATA), hparams={"lr": lr}):
            if step.k == stop:
                return loss(step.params, DATA[0])
        raise AssertionError

    rates = one([0.1, 0.2])
    got = torch.func.vmap(torch.func.grad(lambda lr: end(lr, 2)))(rates)
    want = [torch.autograd.grad(end(lr, 2), lr)[0] for lr in rates.clone().requires_grad_()]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-12, atol=0)


@pytest.mark.parametrize("strategy", [hft.Unroll(truncate=1), hft.Implicit("identity", tolerance=1e9)], ids=str)
def test_where_the_start_is_a_constant_nothing_is_kept_of_earlier_steps(strategy: Any):
    lr, sizes = one(0.1, requires_grad=True), []
    for step in hft.steps(SGD, loss, W, DATA, hparams={"lr": lr}, strategy=strategy):
        sizes.append(len(nodes_below(*(x.grad_fn for x in step.params.values()))))
    assert sizes[1] == sizes[2] == sizes[3]
    if isinstance(strategy, hft.Unroll):
        (got,) = torch.autograd.grad(loss(step.params, DATA[0]), lr)
        run = hft.train(SGD, loss, W, DATA, hparams={"lr": lr}, strategy=strategy)
        torch.testing.assert_close(got, torch.autograd.grad(loss(run.params, DATA[0]), lr)[0], rtol=1e-13, atol=0)


def test_graphs_are_kept_up_to_a_limit_for_all_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unroll, "graphs_fit", lambda problem, inputs, left: problem.before + left < 3)
    lr, hidden = one(0.1, requires_grad=True), []
    for step in hft.steps(SGD, loss, W, DATA, hparams={"lr": lr}):
        hidden.append(type(step.params["w"].grad_fn).__name__ == "TrainNodeBackward")
    assert hidden == [False, False, True, True]
    (got,) = torch.autograd.grad(loss(step.params, DATA[0]), lr)
    monkeypatch.undo()
    (want,) = torch.autograd.grad(loss(hft.train(SGD, loss, W, DATA, hparams={"lr": lr}).params, DATA[0]), lr)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        hft.Unroll(truncate=2), hft.Unroll(checkpoint=2), hft.Unroll(checkpoint="sqrt"), hft.Unroll(checkpoint="log"),
        hft.Unroll(offload=True), hft.Unroll(memory=2**30), hft.Unroll(compile=True), hft.Implicit(batches=2),
        hft.Forward(), hft.ZeroOrder(2, 0.1),
    ],
    ids=str,
)  # fmt: skip
def test_strategies_that_need_all_steps_at_once(strategy: Any):
    calls = []

    def counted(p: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return loss(p, x)

    name = type(strategy).__name__
    with pytest.raises(ValueError, match=rf"steps makes .* this {name} needs all at once: take hft.Unroll\(\)"):
        hft.steps(SGD, counted, W, DATA, strategy=strategy)
    with pytest.raises(ValueError, match=f"progress=True makes .* this {name} needs all"):
        hft.train(SGD, counted, W, DATA, strategy=strategy, progress=True)
    rule = hft.bilevel(
        SGD, hft.sgd(lr=0.1), "lr", counted, loss, W, DATA, DATA, inner_steps=lambda n: lambda step: True,
        outer_steps=1, strategy=strategy,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"a rule that ends a round makes .* this {name} needs all"):
        next(iter(rule))
    assert calls == []


@pytest.mark.parametrize("given", [[], iter(())], ids=["list", "iterator"])
def test_no_batches(given: Any):
    with pytest.raises(ValueError, match="batches is empty"):
        next(hft.steps(SGD, loss, W, given))


@pytest.mark.parametrize("given", [{"x": DATA}, 3, None, "abc"], ids=str)
def test_what_is_no_iterable_of_batches(given: Any):
    with pytest.raises(TypeError, match="batches must be a sequence"):
        hft.steps(SGD, loss, W, given)


def test_steps_that_are_left_do_not_go_on():
    ended = hft.steps(SGD, loss, W, DATA)
    assert len([*ended]) == 4
    left = hft.steps(SGD, loss, W, DATA)
    next(left)
    left.close()
    failed = hft.steps(SGD, loss, W, [DATA[0], None])
    next(failed)
    with pytest.raises((TypeError, AttributeError)):
        next(failed)
    for steps in (ended, left, failed):
        with pytest.raises(RuntimeError, match=r"cannot go on: begin new ones by hft.steps\(.*state=state"):
            for _ in steps:
                pass


def test_a_pause_changes_nothing_and_new_steps_go_on_from_the_last():
    *_, want = hft.steps(SGD, loss, W, DATA)
    paused = hft.steps(SGD, loss, W, DATA)
    first = [*itertools.islice(paused, 2)][-1]
    *_, got = paused
    again = [*hft.steps(SGD, loss, first.params, DATA[2:], state=first.state)][-1]
    for x in (got, again):
        assert torch.equal(x.params["w"], want.params["w"])
    assert isinstance(got, Step)


def test_float16_adjoints_between_steps_warn():
    half = tree.map_tree(lambda x: x.half(), W)
    lr = torch.tensor(0.1, requires_grad=True)
    data = [x.half() for x in DATA]
    with pytest.warns(UserWarning, match="between steps that are made one by one, the adjoints of float16"):
        for _ in hft.steps(hft.sgd(lr=0.1), loss, half, data, hparams={"lr": lr}):
            pass


def test_dropout_draws_what_a_loop_draws():
    """Also values alone, under no_grad and after a pause in which others draw."""

    def noisy(p: Any, x: Tensor) -> Tensor:
        return loss({n: F.dropout(w, 0.5) for n, w in p.items()}, x)

    torch.manual_seed(3)
    want = hft.train(SGD, noisy, W, DATA)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with torch.no_grad():
        *_, last = hft.steps(SGD, noisy, W, iter(DATA))
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(last.params, want.params, rtol=1e-14, atol=1e-15)


def test_a_bar_shows_the_steps_and_changes_nothing(capsys, monkeypatch):
    lr = one(0.1, requires_grad=True)
    want = hft.train(SGD, loss, W, DATA, hparams={"lr": lr})
    for data in (DATA, torch.stack(DATA)):
        found = hft.train(SGD, loss, W, data, hparams={"lr": lr}, progress=True)
        assert "4/4" in capsys.readouterr().err
        torch.testing.assert_close(found.detached(), want.detached(), rtol=1e-13, atol=1e-15)
        slopes = [torch.autograd.grad(loss(x.params, DATA[0]), lr, retain_graph=True)[0] for x in (found, want)]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="progress must be True or False, got 'yes'"):
        hft.train(SGD, loss, W, DATA, progress="yes")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="progress=True shows a bar by tqdm.*pip install 'hyperopt-ftp.progress.'"):
        hft.train(SGD, lambda p, x: None, W, DATA, progress=True)
