"""train: every exact strategy in every mode of differentiation, on losses of many kinds, against the truth."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.descent import DATA, PLAIN, W, descent, dot, leaf_gradient, line, one, told, trained
from ..support.problems import central_differences, entries, loop
from ..support.train_problems import PROBLEMS, TRANSFORMS, Problem

EXACT = {
    "Unroll()": hft.Unroll(),
    "Unroll(checkpoint=2)": hft.Unroll(checkpoint=2),
    "Unroll(sqrt, offload)": hft.Unroll(checkpoint="sqrt", offload=True),
    "Unroll(checkpoint=1)": hft.Unroll(checkpoint=1),
    "Forward()": hft.Forward(),
    "Forward(chunk=1)": hft.Forward(chunk=1),
    "Forward(chunk=2)": hft.Forward(chunk=2),
}
#: Of each kind, where a loss makes a difference: one that keeps graphs, one that makes steps again, and tangents.
KINDS = ("Unroll()", "Unroll(checkpoint=2)", "Forward(chunk=2)")


def cells(kinds: Sequence[str], others: Sequence[str]) -> Any:
    """Every problem with a few strategies, and the others with two."""
    two = ("mlp", "dropout")
    pairs = [(p, s) for p in PROBLEMS for s in EXACT if s in kinds or (s in others and p.name in two)]
    return pytest.mark.parametrize(("problem", "strategy"), pairs, ids=str)


def equal(problem: Problem, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Rounding in float64; in bfloat16 four units in the last place of the largest."""
    top = max(b.abs().max().item() for b in want)
    for a, b in zip(got, want, strict=True):
        atol = 2**-6 * top if problem.autocast else 1e-9 * max(b.abs().max().item(), 0.1)
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def cell(problem: Problem, mode: str) -> Any:
    """What is expected there: an exception, or none."""
    found = problem.fails.get(mode)
    return nullcontext() if found is None else pytest.raises(found[0], match=found[1])


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if not p.autocast], ids=str)
def test_the_loop_by_hand_equals_central_differences(problem):
    want = problem.differences(lambda x: problem.by_hand(x, False))
    assert dot(problem.slope, problem.direction).item() == pytest.approx(want.item(), rel=1e-6, abs=1e-9)
    want = problem.differences(lambda x: flat(problem.slope_by_hand(x)))
    torch.testing.assert_close(flat(problem.curvature), want, rtol=1e-6, atol=1e-7)


def flat(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in xs])


@cells(KINDS, [*EXACT])
def test_in_eager_mode(problem, strategy):
    """By autograd.grad and by backward, the second time through the same node."""
    places = problem.small if "chunk" in strategy else range(len(problem.inputs))
    inputs = [x.clone().requires_grad_(i in places) for i, x in enumerate(problem.inputs)]
    leaves = [inputs[i] for i in places]
    value = problem.value(inputs, EXACT[strategy])
    found = torch.autograd.grad(value, leaves, retain_graph=True)
    value.backward()
    equal(problem, found, [problem.slope[i] for i in places])
    assert all(torch.equal(x.grad, g) for x, g in zip(leaves, found, strict=True))
    assert all(x.grad is None for x in inputs if not x.requires_grad)


@cells(["Unroll()"], [name for name in EXACT if "chunk" not in name])
def test_create_graph(problem, strategy):
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    with cell(problem, "create_graph"):
        slope = torch.autograd.grad(problem.value(leaves, EXACT[strategy]), leaves, create_graph=True)
        equal(problem, slope, problem.slope)
        equal(problem, torch.autograd.grad(dot(slope, problem.direction), leaves), problem.curvature)


@pytest.mark.parametrize("mode", TRANSFORMS)
@cells(["Unroll()"], ["Unroll(checkpoint=2)", "Forward()"])  # an exact strategy has no node there
def test_under_transforms(problem, strategy, mode):
    with cell(problem, mode):
        derive(problem, mode, EXACT[strategy])


def derive(problem: Problem, mode: str, strategy: Any) -> None:
    def f(x: list[Tensor]) -> Tensor:
        return problem.value(x, strategy)

    at, v = problem.inputs, problem.direction
    if mode == "grad":
        equal(problem, torch.func.grad(f)(at), problem.slope)
    elif mode == "jvp":
        equal(problem, [torch.func.jvp(f, (at,), (v,))[1]], [dot(problem.slope, v)])
    elif mode == "vmap":
        both = [torch.stack(pair) for pair in zip(at, problem.other, strict=True)]
        got = torch.func.vmap(torch.func.grad(f), randomness="same")(both)
        equal(problem, [x[0] for x in got], problem.slope)
        equal(problem, [x[1] for x in got], problem.slope_by_hand(problem.other))
    elif mode == "grad of grad":
        equal(problem, torch.func.grad(lambda x: dot(torch.func.grad(f)(x), v))(at), problem.curvature)
    else:
        equal(problem, torch.func.jvp(torch.func.grad(f), (at,), (v,))[1], problem.curvature)


# What goes in, and what comes out.

MLP = next(p for p in PROBLEMS if p.name == "mlp")
every_strategy = pytest.mark.parametrize("strategy", [*KINDS, "Forward(chunk=1)"])


@pytest.mark.parametrize("strategy", [*EXACT.values(), hft.Unroll(truncate=1), hft.ZeroOrder(2, 0.1)], ids=str)
def test_values_are_those_of_the_plain_loop(strategy):
    """Bit for bit, whether something requires grad or not; and without a graph where nothing does.

    A step is one operation of torch, which rounds once, as in torch.optim.SGD.
    """
    w, losses = W.clone().requires_grad_(), []
    for x in DATA:
        loss = line(w, x)
        losses.append(loss.detach())
        w = torch.sub(w, torch.autograd.grad(loss, w)[0], alpha=0.1).detach().requires_grad_()
    for lr in (one(0.1), one(0.1, requires_grad=True)):
        run = trained(W, DATA, lr, strategy=strategy)
        assert torch.equal(run.params, w)
        assert run.params.requires_grad == lr.requires_grad
        assert torch.equal(run.losses, torch.stack(losses))
        assert run.losses.grad_fn is None
        assert not run.losses.requires_grad
        assert run.state.step.item() == 3
        assert not run.state.step.requires_grad
    with torch.no_grad():
        assert not trained(W, DATA, lr, strategy=strategy).params.requires_grad


class Lazy:
    """Entries that are made when they are asked for, by an int; only the length tells the end."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Tensor:
        assert isinstance(i, int)
        self.reads += 1
        return self.data[i % len(self.data)].clone()


@every_strategy
@pytest.mark.parametrize("kind", [torch.Tensor.clone, list, tuple, Lazy], ids=lambda kind: kind.__name__)
def test_batches_of_any_sequence(kind, strategy):
    lr, data = one(0.1, requires_grad=True), DATA.clone().requires_grad_()
    want = torch.autograd.grad(line(descent(W, data, lr), W), [lr, data])
    batches = kind(data)
    line(trained(W, batches, lr, strategy=EXACT[strategy]).params, W).backward()
    torch.testing.assert_close(lr.grad, want[0], rtol=1e-12, atol=1e-14)
    if kind is Lazy:  # constant
        assert data.grad is None
        assert batches.reads >= len(data)
        under = torch.func.grad(lambda lr: line(trained(W, Lazy(DATA), lr, strategy=EXACT[strategy]).params, W))
        torch.testing.assert_close(under(lr.detach()), want[0])
    else:
        torch.testing.assert_close(data.grad, want[1], rtol=1e-12, atol=1e-14)


def test_nested_params_batches_and_integer_labels():
    """Each leaf by central differences; a named tuple and an ordered dict reach the loss as they are."""
    pair = namedtuple("pair", "l2 scale")

    def nested_loss(params, batch, h):
        assert isinstance(batch, OrderedDict)
        assert isinstance(h, pair)
        (x, y), extra = batch["pair"], batch["extra"]
        out = torch.tanh(x @ params["layers"][0] + params["layers"][1]["b"]) * extra[0]["scale"] * h.scale
        return torch.nn.functional.cross_entropy(out, y) + h.l2[0] * params["layers"][0].square().sum()

    params = {"layers": (torch.ones(2, 3, dtype=torch.float64), {"b": W.clone()})}
    data = [
        OrderedDict(pair=(DATA[:2, :2] + k, torch.tensor([0, 2])), extra=[{"scale": one(1.0 + k), "name": "a"}, None])
        for k in range(2)
    ]
    own = pair([one(0.1)], one(1.2))
    over = ("lr", "params", "batches.1.pair.0", "batches.0.extra.0.scale", "loss.0.0", "loss.1")

    def end(values, **options):
        new = values.get("params", params), values.get("batches", data)
        hparams = {"lr": one(0.1), "loss": own} | {k: v for k, v in values.items() if k in ("lr", "loss")}
        outer = lambda p, h: nested_loss(p, data[0], h)  # noqa: E731
        return hft.hypergradient(PLAIN, nested_loss, outer, *new, over, hparams, **options)

    want = {}
    for path in over:
        values = {"params": params, "batches": data, "lr": one(0.1), "loss": own}
        at = lambda x, path=path, values=values: end(tree.replaced(values, path, x))[0]  # noqa: E731
        want[path] = torch.stack(central_differences(at, tree.entry(values, path)))
    for strategy in EXACT.values():
        for path, found in end({}, strategy=strategy)[1].items():
            torch.testing.assert_close(entries(found), want[path], rtol=1e-7, atol=1e-9)


def resting(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
    """Nothing moves: what comes out are the very tensors that went in."""
    return params, state


def twins(grads: Any, state: Any, params: Any, hparams: Any = None) -> tuple[Any, Any]:
    """One tensor in two places of the state, and the params there as well."""
    m = hparams["lr"] * state["a"] + grads
    return params - hparams["lr"] * m, {"a": m, "b": m, "seen": params}


@pytest.mark.parametrize("transform", [False, True], ids=["eager", "grad"])
@pytest.mark.parametrize("update", [resting, twins])
@every_strategy
def test_outputs_that_are_inputs_or_each_other(strategy, update, transform):
    opt = hft.Optimizer(lambda p, h=None: {"a": p + 0, "b": p + 1, "seen": p}, update, {"lr": one(0.1)})

    def f(inputs: list[Tensor], by_hand: bool = False) -> Tensor:
        lr, w, a, b, seen = inputs
        params, state = w, {"a": a, "b": b, "seen": seen}
        if by_hand:
            params, state = loop(opt, line, params, DATA, state, {"lr": lr})
        else:
            given = {"hparams": {"lr": lr}, "state": state, "strategy": EXACT[strategy]}
            params, state, _ = hft.train(opt, line, params, DATA, **given)
        return (params * (state["a"] + 2 * state["b"]) + params**3 * state["seen"]).sum()

    inputs = [one(0.1), W, W + 1, W + 2, W + 3]
    leaves = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(f(leaves, True), leaves, materialize_grads=True)
    got = torch.func.grad(f)(inputs) if transform else torch.autograd.grad(f(leaves), leaves, materialize_grads=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("graph", [False, True], ids=["once", "create_graph"])
@every_strategy
def test_inputs_that_depend_on_each_other(strategy, graph):
    """Of a leaf, and of params and batches that are functions of it, each way counts once."""

    def slope(end: Any) -> list[Tensor]:
        lr = one(0.1, requires_grad=True)
        value = line(end(W * torch.exp(lr), DATA * lr, lr), W)
        (first,) = torch.autograd.grad(value, lr, create_graph=graph)
        return [first, torch.autograd.grad(first, lr)[0]] if graph else [first]

    got = slope(lambda w, data, lr: trained(w, data, lr, strategy=EXACT[strategy]).params)
    torch.testing.assert_close(got, slope(descent), rtol=1e-11, atol=1e-13)


def by_rows(f: Any, x: list[Tensor]) -> list[Tensor]:
    """The Jacobian with all cotangents in one backward pass."""
    leaves = [a.clone().requires_grad_() for a in x]
    y = f(leaves)
    return list(torch.autograd.grad(y, leaves, torch.eye(len(y), dtype=y.dtype), is_grads_batched=True))


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd, by_rows], ids=lambda f: f.__name__)
@every_strategy
def test_jacobians(strategy, jacobian):
    def f(x: list[Tensor]) -> Tensor:
        return trained(x[1], DATA, x[0], strategy=EXACT[strategy]).params

    x = [one(0.1), W]
    rows = [leaf_gradient(lambda x, i=i: descent(x[1], DATA, x[0])[i])(x) for i in range(3)]
    want = [torch.stack(column) for column in zip(*rows, strict=True)]
    got = jacobian(f, x) if jacobian is by_rows else jacobian(f)(x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@every_strategy
def test_backward_through_the_result_of_a_transform(strategy):
    """Leaves outside of vmap and of torch.func.grad, one of them an argument of train."""
    lrs, scale = one(0.1, requires_grad=True) * torch.tensor([1, 2]), one(0.7, requires_grad=True)

    def slope(lr: Tensor, by_hand: bool) -> Tensor:
        def scaled(w, x):
            return scale * line(w, x)

        if by_hand:
            w = W.clone().requires_grad_()
            return torch.autograd.grad(line(descent(w, DATA, lr, scaled), W), w, create_graph=True)[0]
        run = lambda w: line(trained(w, DATA, lr, scaled, strategy=EXACT[strategy]).params, W)  # noqa: E731
        return torch.func.grad(run)(W)

    got = torch.func.vmap(lambda lr: slope(lr, False))(lrs)
    want = torch.stack([slope(lr, True) for lr in lrs])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    got, want = (torch.autograd.grad(x.sin().sum(), [lrs, scale]) for x in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


every_kind = pytest.mark.parametrize(
    "strategy",
    [*EXACT.values(), hft.Unroll(checkpoint="log"), hft.Unroll(memory=2**30), hft.Implicit(tolerance=10.0)],
    ids=str,
)


@pytest.mark.filterwarnings("ignore:Implicit")  # has not converged
@every_kind
def test_params_without_entries(strategy):
    lr = one(0.1, requires_grad=True)
    run = trained(W[:0], DATA, lr, lambda p, x: (p.sum() + 1) * x.sum(), strategy=strategy)
    assert run.losses.tolist() == [x.sum().item() for x in DATA]
    assert torch.autograd.grad(run.params.sum(), lr)[0] == 0


@pytest.mark.filterwarnings("ignore:Implicit", "ignore:ZeroOrder")
@pytest.mark.parametrize("strategy", [*EXACT.values(), hft.Implicit(tolerance=10.0), hft.ZeroOrder(3, 1e-3)], ids=str)
def test_state_with_leaves_that_are_no_tensors(strategy):
    def update(g, s, p, h):
        return p - h["lr"] * g, {"t": s["t"] + 1, "none": None}

    opt = hft.Optimizer(lambda params, hparams=None: {"t": 0, "none": None}, update, {"lr": one(0.1)})
    lr = one(0.1, requires_grad=True)
    end = hft.train(opt, line, W, DATA, hparams={"lr": lr}, strategy=strategy)
    end.params.sum().backward()
    assert end.state == {"t": 3, "none": None}


@pytest.mark.parametrize(
    "make", [torch.nn.ParameterList, lambda data: type("Rows", (list,), {})(data)], ids=["parameters", "own list"]
)
def test_lists_of_other_classes_are_lists(make):
    grads = []
    for data in (f([x.clone().requires_grad_() for x in DATA]) for f in (make, list)):
        grads.append(torch.autograd.grad(trained(W, data, one(0.1)).params.sum(), list(data)))
    assert all(map(torch.equal, *grads))


def test_a_part_of_the_hparams_is_given_and_the_rest_is_the_optimizers_own():
    def decayed(p: Tensor, x: Tensor, h: dict[str, Tensor]) -> Tensor:
        return line(p, x) + h["l2"] * p.square().sum()

    opt, lr, own = hft.sgd(lr=0.1, momentum=0.9), {"lr": one(0.2)}, {"loss": {"l2": one(0.5)}}
    for some, f in ((lr, line), (own, decayed), (lr | own, decayed)):
        both = (some, {**opt.hparams, **some})
        assert torch.equal(*(hft.train(opt, f, W, DATA, hparams=h).params for h in both))
        found, expected = (hft.hypergradient(opt, f, lambda p: line(p, W), W, DATA, hparams=h)[1] for h in both)
        assert found.keys() == expected.keys()
        assert torch.equal(found["lr"], expected["lr"])
    assert torch.equal(*(opt.update(W + 1, opt.init(W), W, h)[0] for h in (lr, {**opt.hparams, **lr})))


# Derivatives that would be lost.

INEXACT = {
    "Unroll(truncate=2)": hft.Unroll(truncate=2),
    "Implicit": hft.Implicit(),
    "ZeroOrder": hft.ZeroOrder(2, 0.1),
}
ALL = EXACT | INEXACT
#: Strategies that leave the graph to autograd: what a step uses counts, an argument or not.
OWNED = [hft.Unroll(), hft.Unroll(truncate=2)]


#: An optimizer and a loss, one of which uses a tensor beside its arguments.
PLACES = {
    "loss": lambda stray: (PLAIN, lambda w, x: line(w, x) + (stray * w).sum()),
    "made before": lambda stray: PLACES["loss"](torch.exp(stray)),
    "update": lambda stray: (hft.scheduled(PLAIN, lr=lambda count: stray * 0.9**count), line),
}
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


something_asks = pytest.mark.parametrize("asks", [False, True], ids=["nothing else", "params"])


@told
@every_place
@something_asks
@pytest.mark.parametrize("strategy", [name for name in ALL if ALL[name] not in OWNED])
def test_a_stray_leaf_is_an_error_where_a_node_hides_the_graph(strategy, asks, place):
    stray, w = one(0.7, requires_grad=True), W.clone().requires_grad_(asks)
    opt, loss = place(stray)
    with pytest.raises(ValueError, match=r"tensor of shape \(\) .*no argument of train"):
        line(hft.train(opt, loss, w, DATA, strategy=ALL[strategy]).params, W).backward()


@told
@every_place
@something_asks
@pytest.mark.parametrize("strategy", OWNED, ids=repr)
def test_a_stray_leaf_counts_where_autograd_owns_the_graph(strategy, asks, place):
    """Each way from the leaf to the end, also in the second derivative."""
    stray, w = one(0.7, requires_grad=True), W.clone().requires_grad_(asks)

    def slope(train: Any) -> list[Tensor]:
        end = train(*place(stray))
        (first,) = torch.autograd.grad(line(end, W), stray, create_graph=True)
        return [first, *torch.autograd.grad(first, stray)]

    got = slope(lambda opt, loss: hft.train(opt, loss, w, DATA, strategy=strategy).params)
    want = slope(lambda opt, loss: loop(opt, loss, w, DATA, last=strategy.truncate)[0])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@every_place
@every_strategy
def test_a_stray_tensor_under_a_transform_counts(strategy, place):
    def f(stray: Tensor) -> Tensor:
        opt, loss = place(stray)
        return line(hft.train(opt, loss, W * stray, DATA, strategy=EXACT[strategy]).params, W)

    leaf = one(0.7, requires_grad=True)
    want = torch.autograd.grad(line(loop(*place(leaf), W * leaf, DATA)[0], W), leaf)[0]
    torch.testing.assert_close(torch.func.grad(f)(one(0.7)), want)
    torch.testing.assert_close(torch.func.jvp(f, (one(0.7),), (one(1.0),))[1], want)


TRACKING = {
    "grad": torch.func.grad,
    "second": lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).sum()),
    "vmap": lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x])),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
}


@every_place
@pytest.mark.parametrize("leaf", [False, True], ids=["tracked", "leaf"])
@pytest.mark.parametrize("transform", TRACKING.values(), ids=TRACKING)
@pytest.mark.parametrize("strategy", [name for name in INEXACT if INEXACT[name] not in OWNED])
def test_a_stray_tensor_under_a_transform_is_an_error(strategy, place, leaf, transform):
    """One that the transform tracks, or a leaf that requires grad, if the strategy does not differentiate the steps."""
    outside = one(0.7, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        opt, loss = place(outside if leaf else x.mean())
        return line(hft.train(opt, loss, x, DATA, strategy=INEXACT[strategy]).params, W)

    with pytest.raises(ValueError, match=r"tensor of shape \(\) .*no argument of train"):
        transform(f)(W)


def test_where_no_derivative_can_be_meant_a_stray_leaf_is_a_number():
    opt, loss = PLACES["loss"](one(0.7, requires_grad=True))
    with torch.no_grad():
        got = hft.train(opt, loss, W, DATA).params
    assert torch.equal(got, trained(W, DATA, one(0.1), PLACES["loss"](one(0.7))[1]).params)
