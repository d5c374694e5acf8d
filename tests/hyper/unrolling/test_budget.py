"""What fits into so many bytes of memory is said before, and is so."""

from __future__ import annotations

import re

import pytest
import torch

import hyperopt_ftp as hft
from benchmarks.nets import NETS
from hyperopt_ftp.hyper import TrainInputs
from hyperopt_ftp.hyper.guarded import problem_of
from hyperopt_ftp.hyper.unrolling.budget import SMALL, Sizes, affordable, graphs_fit, peak_of
from hyperopt_ftp.hyper.unrolling.plans import Plan, points_of_every, points_of_tree, with_graphs


def test_as_much_memory_as_the_error_says_is_enough():
    problem = NETS["mlp"](20)

    def run(memory: int) -> None:
        problem.hypergradient(hft.Unroll(memory=memory), None)

    with pytest.raises(ValueError, match="memory=1000 bytes are too few") as caught:
        run(1000)
    least = int(re.search(r"steps need (\d+)", str(caught.value))[1])  # pyright: ignore[reportOptionalSubscript]
    run(least)
    with pytest.raises(ValueError, match=f"need {least}"):
        run(least - 1)


@pytest.mark.parametrize(
    ("plan", "made", "peak"),
    [
        (with_graphs(4, 4), 0, 3 * 7 + 4 * 100 + 50),  # where the way back begins
        (with_graphs(4, 4), 1000, 3 * 7 + 3 * 100 + 1000),  # in the last step
        (with_graphs(4, 2), 1000, 3 * 7 + 1 * 100 + 1000),
        (with_graphs(4, 0), 0, 3 * 7 + 100 + 50),
        (points_of_every(2), 0, 2 * 10 + 100 + 50),
        (points_of_every(2), 100, 2 * 10 + 100 + 50),
        (points_of_every(2, links=True), 1000, 2 * 10 + 1000 + 3),  # the last point is a link, and made whole too
    ],
)
def test_a_peak_is_a_count_of_what_is_held(plan: Plan, made: int, peak: int):
    sizes = Sizes(
        steps=4, hvps=4, fixed=20_000, first=10_000, point=10, beside=7, link=3, first_state=0, graph=100, made=made,
        back=50, adjoints=5, batch=2,
    )  # fmt: skip
    assert peak_of(sizes, plan) == 30_000 + peak


def test_the_first_plan_that_fits_is_taken():
    """More graphs before fewer, then shorter strides before longer ones, to the root of the steps, then a tree."""
    sizes = Sizes(
        steps=99, hvps=99, fixed=0, first=0, point=10, beside=10, link=10, first_state=0, graph=20, made=0,
        back=0, adjoints=0, batch=0,
    )  # fmt: skip
    plans = [with_graphs(99, n) for n in range(99, -1, -1)] + [points_of_every(n) for n in range(2, 11)]
    for plan in (*plans, points_of_tree(links=False)):
        memory = peak_of(sizes, plan)
        first = next(p for p in [*plans, plan] if peak_of(sizes, p) <= memory)
        found, peak = affordable(memory, sizes, links=False)
        assert (found.words, peak) == (first.words, peak_of(sizes, first))
    assert found.words == "the points of a tree"


@pytest.mark.parametrize(("steps", "before", "made", "fit"), [
    (2, 0, 0, True), (2, 0, 1, False), (3, 0, 0, False), (1, 9, 0, False), (1, 0, 2**30, True),
])  # fmt: skip
def test_graphs_are_kept_unasked_up_to_so_many_bytes(steps: int, before: int, made: int, fit: bool):
    """Eight tensors for each param, and four times what the loss makes; those of one step always."""
    weights = torch.empty(2**20, dtype=torch.float64)
    problem = problem_of(hft.sgd(), lambda p, x: p.sum(), before=before)
    inputs = TrainInputs(problem.optimizer.hparams, weights, None, [0] * steps)
    problem = problem.guarded(inputs)
    assert problem.guards is not None
    problem.guards.verdict.bytes_made = made
    assert SMALL == 8 * 8 * 2**20 * 2
    assert graphs_fit(problem, inputs, steps) == fit
    assert not graphs_fit(problem, inputs._replace(batches=range(steps)), steps)
