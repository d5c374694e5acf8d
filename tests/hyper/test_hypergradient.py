"""A hypergradient is right, and says so where it is not: what was once wrong in silence, leaked or failed inside."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree

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


@every_exact
def test_params_without_dimensions(strategy):
    coupled = lambda p, x: (p["a"] - p["b"] * x.mean() - 1) ** 2 + p["b"] ** 2  # noqa: E731
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


def weighed(p, x, h):
    return (1 + h["scale"]) * loss(p, x.float())


def of_dtype(dtype, factor, strategy, ends=torch.float32, over=("lr", "momentum", "loss.scale")):
    opt = hft.sgd(lr=0.2, momentum=0.5)

    def outer_loss(p):
        return factor * loss({k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in p.items()}, HELD_OUT)

    def train_loss(p, x, h):
        value = weighed(p, x, h)
        return value if dtype == F64 else value.to(ends)

    return call(train_loss, strategy, over, {"loss": {"scale": f64(0.1)}}, outer_loss, start(dtype), opt=opt)[1]


@pytest.mark.parametrize(
    ("dtype", "factor", "ends"),
    [
        *((torch.float16, x, torch.float32) for x in (1e-6, 1.0, 1e6)),
        (torch.bfloat16, 1.0, torch.float32),
        (torch.float16, 1.0, torch.float16),
        (torch.bfloat16, 1.0, torch.bfloat16),
    ],
)
@every_exact
def test_adjoints_of_16_bit_params(strategy, dtype, factor, ends):
    """Below float16's smallest number, 6e-8, and above its largest, 65504, as where it is at its best; also of a
    training loss that ends in 16 bits."""
    want, got = of_dtype(F64, factor, hft.Unroll()), of_dtype(dtype, factor, strategy, ends)
    for name, right in want.items():
        # Weights are rounded by 2^-11 or 2^-8 in each of 4 steps.
        slack = 0.02 if dtype == torch.float16 else 0.1
        assert got[name].item() / factor == pytest.approx(right.item() / factor, rel=slack, abs=slack / 10), name


@pytest.mark.parametrize("strategy", [hft.Unroll(), hft.Forward()], ids=["unroll", "forward"])
def test_adjoints_of_float16_under_a_transform_are_warned_of(strategy):
    def value(lr):
        return call(params=start(torch.float16), hparams={"lr": lr}, strategy=strategy)[0]

    with pytest.warns(UserWarning, match="adjoints of float16 params are float16 too") as seen:
        torch.func.grad(value)(f64(0.2))
    assert {w.filename for w in seen} == {call.__code__.co_filename}


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


def watching(held):
    """A loss that keeps weak references to its values."""

    def watched(p, x):
        y = loss(p, x)
        held.append(weakref.ref(y))
        return y

    return watched


@not_converged
@every_strategy
def test_graphs_of_the_steps_are_freed(strategy):
    """With nn.Parameter as params, and lr that requires grad outside; of train by the last backward pass."""
    held, lr = [], f64(0.2).requires_grad_()
    result = call(watching(held), strategy, params=parameters(), hparams={"lr": lr})
    gc.collect()
    assert len(held) >= len(DATA)
    assert not any(ref() is not None for ref in held)
    assert not any(x.requires_grad for x in tree.leaves(result))
    held.clear()
    run = hft.train(SGD, watching(held), parameters(), DATA, hparams={**SGD.hparams, "lr": lr}, strategy=strategy)
    value = outer(run.params)
    value.backward(retain_graph=True)
    value.backward()
    gc.collect()
    assert not any(ref() is not None for ref in held)


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


def test_of_params_that_are_in_the_batch_or_stand_twice_each_place_has_its_own_derivative():
    """With ``p1 = p - a x`` and the loss ``p1^3``; of tensors that are one."""
    w, a = torch.tensor(2.0, dtype=F64), 0.1
    over = ("params", "batches")
    found = hft.hypergradient(hft.sgd(lr=a), lambda p, x: p * x, lambda p: p**3, w, [w], over)[1]
    end = 2.0 - a * 2.0
    torch.testing.assert_close(found["params"], torch.tensor(3 * end**2, dtype=F64), rtol=1e-14, atol=0)
    torch.testing.assert_close(found["batches"], [torch.tensor(-3 * a * end**2, dtype=F64)], rtol=1e-14, atol=0)
    found = hft.hypergradient(
        hft.sgd(lr=a), lambda p, x: p["a"] ** 2 * p["b"], lambda p: p["a"], {"a": w, "b": w}, [0.0], "params"
    )[1]
    want = {"a": 1 - 2 * a * w, "b": -2 * a * w}  # of p.a - 2 a p.a p.b
    torch.testing.assert_close(found["params"], want, rtol=1e-14, atol=0)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_training_losses_that_are_not_finite_are_told_once_at_the_end():
    with pytest.warns(UserWarning, match=r"the training loss of step . of 4 is inf, .*smaller learning rate") as told:
        hft.train(hft.sgd(lr=1e200), lambda p, x: (p["w"] ** 4).sum() + p["b"].sum(), start(), DATA)
    assert [x.filename for x in told] == [__file__]


@pytest.mark.parametrize(
    ("lr", "over", "what"),
    [(1e200, "lr", "outer loss"), (0.1, "loss.x", "hypergradient of 'loss.x'")],
    ids=["the end", "a root at 0"],
)
def test_what_is_not_finite_is_told(lr, over, what):
    def rooted(w, x, h):
        return w.square().sum() + h["x"].sqrt() * w.sum()

    with pytest.warns(UserWarning, match=f"^the {what} is not finite, so training") as told:
        hft.hypergradient(
            hft.sgd(lr=lr), rooted, lambda w: w.square().sum(), f64([0.3]), [0] * 3, over, {"loss": {"x": f64(0.0)}}
        )
    assert told[0].filename == __file__


def test_large_entries_are_finite_though_their_sum_is_not():
    def slope(c):
        return hft.hypergradient(
            hft.sgd(lr=0.1), lambda w, x: 0 * w.sum() + x, lambda w: c * w.sum(), at, data, "params"
        )

    at, data = torch.zeros(2), [torch.tensor(3e38)] * 2
    assert torch.equal(slope(3e38)[1]["params"], torch.full((2,), 3e38))
    assert torch.equal(hft.train(hft.sgd(lr=0.1), lambda w, x: 0 * w.sum() + x, at, data).losses, torch.stack(data))


def test_a_warning_names_the_line_that_calls():
    def tuned():
        return hft.hypergradient(SGD, loss, lambda p: f64(1.0), start(), DATA, "lr")

    with pytest.warns(UserWarning, match="is exactly 0") as seen:
        _, grads, end = tuned()
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, tuned.__code__.co_firstlineno + 1)]
    assert grads["lr"] == 0
    assert not any(x.requires_grad for x in tree.leaves(end))
