"""A hypergradient is right, and says so where it is not: what was once wrong in silence, leaked or failed inside."""

from __future__ import annotations

import copy
import gc
import sys
import weakref

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.anchored import row_norm
from hyperopt_ftp.hyper.core import vjp

from ..support.hypergradients import (
    DATA,
    F64,
    HELD_OUT,
    SGD,
    call,
    differences,
    every_exact,
    every_strategy,
    f64,
    module_loss,
    not_converged,
    outer,
    slope,
)
from ..support.problems import largest_difference, loss, start

# -- params without dimensions ----------------------------------------------------------------------------------------


@every_exact
def test_params_without_dimensions(strategy):
    def coupled(p, x):
        return (p["a"] - p["b"] * x.mean() - 1) ** 2 + p["b"] ** 2

    given = {"params": {"a": f64(0.5), "b": f64(2.0)}, "outer_loss": lambda p: p["a"] ** 2}
    assert slope(coupled, strategy, **given).item() == pytest.approx(differences(coupled, **given), rel=1e-6)


@every_exact
def test_one_param_without_dimensions(strategy):
    """A cotangent that is missing is 0; that of a scalar once counted as 1."""
    given = {"params": f64(0.5), "opt": hft.sgd(lr=0.2), "over": ("lr", "loss.c"), "hparams": {"loss": {"c": f64(1.0)}}}
    square = lambda p, _, h: h["c"] * p**2 / 2  # noqa: E731
    grads = call(square, strategy, outer_loss=lambda p: 1 * p, **given)[1]
    assert grads["lr"].item() == pytest.approx(-4 * 0.8**3 / 2, rel=1e-12)  # of (1 - lr c)^4 / 2
    assert grads["loss.c"].item() == pytest.approx(-4 * 0.2 * 0.8**3 / 2, rel=1e-12)
    with pytest.warns(UserWarning, match="is exactly 0"):
        grads = call(square, strategy, outer_loss=lambda p: f64(1.0), **given)[1]
    assert [g.item() for g in grads.values()] == [0, 0]


# -- 16-bit params ----------------------------------------------------------------------------------------------------


def weighed(p, x, h):
    return (1 + h["scale"]) * loss(p, x.float())


def of_dtype(dtype, factor, strategy, over=("lr", "momentum", "loss.scale")):
    opt = hft.sgd(lr=0.2, momentum=0.5)

    def outer_loss(p):
        return factor * loss({k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in p.items()}, HELD_OUT)

    return call(weighed, strategy, over, {"loss": {"scale": f64(0.1)}}, outer_loss, start(dtype), opt=opt)[1]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        *((torch.float16, x) for x in (1e-6, 1e-4, 1.0, 1e4, 1e6)),
        *((torch.bfloat16, x) for x in (1e-6, 1.0, 1e6)),
    ],
)
@every_exact
def test_adjoints_of_16_bit_params(strategy, dtype, factor):
    """Below float16's smallest number, 6e-8, and above its largest, 65504, as where it is at its best."""
    want, got = of_dtype(F64, factor, hft.Unroll()), of_dtype(dtype, factor, strategy)
    for name, right in want.items():
        # Weights are rounded by 2^-11 or 2^-8 in each of 4 steps.
        slack = 0.02 if dtype == torch.float16 else 0.1
        assert got[name].item() / factor == pytest.approx(right.item() / factor, rel=slack, abs=slack / 10), name


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Forward()], ids=["unroll", "forward"])
def test_adjoints_of_float16_under_a_transform_are_warned_of(strategy):
    with pytest.warns(UserWarning, match="adjoints of float16 params are float16 too") as seen:
        torch.func.grad(lambda lr: call(params=start(torch.float16), hparams={"lr": lr}, strategy=strategy)[0])(
            f64(0.2)
        )
    assert {w.filename for w in seen} == {call.__code__.co_filename}


# -- what stays alive -------------------------------------------------------------------------------------------------


def nodes(*outputs):
    """Number of nodes of the graphs behind tensors."""
    seen, stack = set(), [x.grad_fn for x in tree.leaves(outputs) if isinstance(x, torch.Tensor)]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [after for after, _ in node.next_functions]
    return len(seen)


def parameters():
    return {name: nn.Parameter(x) for name, x in start().items()}


@not_converged
@every_strategy
def test_bilevel_over_parameters_of_a_module_grows_no_graph(strategy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    train_loss = module_loss(net)
    run = hft.bilevel(
        SGD, hft.sgd(lr=1e-3), "lr", train_loss, train_loss, dict(net.named_parameters()), DATA, [HELD_OUT],
        inner_steps=2, outer_steps=3, strategy=strategy,
    )  # fmt: skip
    for record in run:
        assert not any(x.requires_grad for x in tree.leaves((record.state, record.tuned, record.hypergradient)))
        assert largest_difference(copy.deepcopy(record.state), record.state) == 0
    assert all(p.grad is None for p in net.parameters())


@not_converged
@every_strategy
def test_graphs_of_the_steps_are_freed(strategy):
    """With nn.Parameter as params, and lr that requires grad outside."""
    held = []

    def watched(p, x):
        y = loss(p, x)
        held.append(weakref.ref(y))
        return y

    params, lr = parameters(), f64(0.2).requires_grad_()
    value, grads, (end, state) = call(watched, strategy, params=params, hparams={"lr": lr})
    gc.collect()
    assert len(held) >= len(DATA)
    assert not any(ref() is not None for ref in held)
    assert nodes(value, grads, end, state) == 0
    assert not any(x.requires_grad for x in tree.leaves((value, grads, end, state)))


@not_converged
@every_strategy
def test_a_graph_of_train_is_one_node_that_frees_its_steps(strategy):
    held = []

    def watched(p, x):
        y = loss(p, x)
        held.append(weakref.ref(y))
        return y

    lr = f64(0.2).requires_grad_()
    run = hft.train(SGD, watched, parameters(), DATA, hparams={**SGD.hparams, "lr": lr}, strategy=strategy)
    assert nodes(run.params) <= 2 + 2 + len(start())  # the node, and where the graph ends
    value, job = outer(run.params), run.params["w"].grad_fn.job
    value.backward(retain_graph=True)
    assert job.residual is not None
    value.backward()
    assert job.residual is None
    gc.collect()
    assert not any(ref() is not None for ref in held)


def test_tpgm_returns_tensors_without_grad():
    params = {k: nn.Parameter(v + 1) for k, v in start().items()}
    found = hft.tpgm(params, start(), loss, [HELD_OUT] * 2)
    assert not any(x.requires_grad for x in tree.leaves(found))


# -- compiled losses --------------------------------------------------------------------------------------------------


@every_exact
def test_a_compiled_loss_is_right_inside_and_still_runs_compiled_after(strategy):
    runs = []

    def counting(graph, inputs):
        return lambda *args: runs.append(0) or graph.forward(*args)

    compiled = torch.compile(loss, backend=counting)
    expected = compiled(start(), HELD_OUT)
    assert len(runs) == 1
    assert slope(compiled, strategy).item() == pytest.approx(differences(), rel=1e-6)
    within = len(runs)
    assert compiled(start(), HELD_OUT) == expected
    assert len(runs) == within + 1
    torch._dynamo.reset()


# -- radii of TPGM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize("rate", [0.05, 100.0])
def test_radii_of_tpgm_stay_between_their_floor_and_the_largest_norm(norm, rate):
    w0 = start()
    w1 = {k: v + torch.linspace(0.5, 1, v.numel(), dtype=F64).view(v.shape) for k, v in w0.items()}
    top = {k: row_norm(w1[k] - w0[k], norm).max().item() for k in w0}

    def outer_loss(p, sign):
        return sign * sum(((p[k] - w0[k]) ** 2).sum() for k in p)

    for signs in ([-1.0] * 5, [1.0] * 5, [-1.0, 1.0] * 4):
        radii = hft.tpgm(w1, w0, outer_loss, signs, norm=norm, radius_lr=rate)[1]
        for name, r in radii.items():
            assert 1e-8 <= r.item() <= top[name] * (1 + 1e-12)


def test_a_radius_that_overshoots_comes_back():
    """With the anchor as target every radius should shrink; the first step out is by the first batch alone."""
    w1, w0 = {"w": f64([[3.0, 4.0]])}, {"w": f64([[0.0, 0.0]])}

    def outer_loss(p, sign):
        return sign * (p["w"] ** 2).sum()

    out = hft.tpgm(w1, w0, outer_loss, [-1.0], norm="l2", radius_lr=10.0)[1]["w"]
    assert out.item() == pytest.approx(5.0)  # 2.5 + 10, clipped
    back = hft.tpgm(w1, w0, outer_loss, [-1.0, *[1.0] * 30], norm="l2", radius_lr=10.0)[1]["w"]
    assert back.item() < 4.0


# -- Forward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_chunk_bounds_the_tangents_that_live_at_once(chunk, monkeypatch):
    """Of seven scalars; the derivative is the same."""
    sizes = []

    def spy(outputs, tangents, inputs, rows):
        sizes.extend(len(t) for t in tangents if t is not None)
        return pull_rows(outputs, tangents, inputs, rows)

    def shifted(p, x, h):
        return loss({"w": p["w"], "b": p["b"] + h["shift"]}, x)

    pull_rows = vjp.pull_rows
    for module in (vjp, sys.modules[hft.Forward.__module__]):
        monkeypatch.setattr(module, "pull_rows", spy)
    hparams = {"loss": {"shift": torch.linspace(0, 1, 4, dtype=F64)}}
    over = ("lr", "momentum", "weight_decay", "loss")
    want, got = (call(shifted, s, over, hparams)[1] for s in (hft.Unroll(), hft.Forward(chunk=chunk)))
    assert largest_difference(got, want) <= 1e-12
    assert max(sizes) == min(chunk, 7)
