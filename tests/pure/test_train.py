"""train: every exact strategy in every mode of differentiation, on losses of many kinds, against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from .train_problems import PROBLEMS, TRANSFORMS, Problem

EXACT = {
    "Unroll()": hft.Unroll(),
    "Unroll(checkpoint=2)": hft.Unroll(checkpoint=2),
    "Unroll(sqrt, offload)": hft.Unroll(checkpoint="sqrt", offload=True),
    "Unroll(checkpoint=False)": hft.Unroll(checkpoint=False),
    "Forward()": hft.Forward(),
    "Forward(chunk=1)": hft.Forward(chunk=1),
    "Forward(chunk=2)": hft.Forward(chunk=2),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def equal(problem: Problem, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Rounding in float64; in bfloat16 four units in the last place of the largest."""
    top = max(b.abs().max().item() for b in want)
    for a, b in zip(got, want, strict=True):
        atol = 2**-6 * top if problem.autocast else 1e-9 * max(b.abs().max().item(), 0.1)
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def cell(problem: Problem, mode: str, strategy: str = "Unroll()") -> Any:
    """What is expected there: an exception, or none."""
    found = problem.fails.get(f"{mode}, {strategy}") or problem.fails.get(mode)
    return nullcontext() if found is None else pytest.raises(found[0], match=found[1])


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if not p.autocast], ids=str)
def test_the_loop_by_hand_equals_central_differences(problem):
    for i, v in enumerate(problem.direction):
        along = [v if j == i else None for j in range(len(problem.inputs))]
        want = problem.differences(lambda x: problem.by_hand(x, False), along)
        assert dot([problem.slope[i]], [v]).item() == pytest.approx(want.item(), rel=1e-6, abs=1e-9), i
    want = problem.differences(lambda x: flat(problem.slope_by_hand(x)), problem.direction)
    torch.testing.assert_close(flat(problem.curvature), want, rtol=1e-6, atol=1e-7)


def flat(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in xs])


@pytest.mark.parametrize("strategy", EXACT)
@every_problem
def test_in_eager_mode(problem, strategy):
    """By autograd.grad and by backward, the second time through the same node."""
    places = problem.small if "chunk" in strategy else range(len(problem.inputs))
    inputs = [x.clone().requires_grad_(i in places) for i, x in enumerate(problem.inputs)]
    leaves = [inputs[i] for i in places]
    with cell(problem, "eager", strategy):
        value = problem.value(inputs, EXACT[strategy])
        found = torch.autograd.grad(value, leaves, retain_graph=True)
        value.backward()
        equal(problem, found, [problem.slope[i] for i in places])
        assert all(torch.equal(x.grad, g) for x, g in zip(leaves, found, strict=True))
    assert all(x.grad is None for x in inputs if not x.requires_grad)


@pytest.mark.parametrize(
    ("problem", "strategy"),
    [(p, s) for p in PROBLEMS for s in EXACT if s == "Unroll()" or (p.name in ("mlp", "dropout") and "chunk" not in s)],
    ids=str,
)
def test_create_graph(problem, strategy):
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    with cell(problem, "create_graph", strategy):
        slope = torch.autograd.grad(problem.value(leaves, EXACT[strategy]), leaves, create_graph=True)
        equal(problem, slope, problem.slope)
        equal(problem, torch.autograd.grad(dot(slope, problem.direction), leaves), problem.curvature)


@pytest.mark.parametrize("mode", TRANSFORMS)
@pytest.mark.parametrize(
    ("problem", "strategy"),
    [(p, s) for p in PROBLEMS for s in EXACT if s == "Unroll()" or p.name == "mlp"],
    ids=str,
)
def test_under_transforms(problem, strategy, mode):
    with cell(problem, mode, strategy):
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
