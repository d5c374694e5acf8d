"""Combinators around combinators, drawn at random: what holds of each holds of any of them around each other."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import CLOSE, same, strategies

from ..support.problems import central_differences, entries

narrow = strategies.params((torch.float64, torch.bfloat16))


@given(run=strategies.runs(narrow, none=False), data=st.data())
def test_inputs_are_unchanged_and_params_and_state_keep_their_form_also_in_16_bits(run: strategies.Run, data: Any):
    """Where no gradient is missing: then a state has counts of its own for each tensor."""
    opt = data.draw(strategies.optimizers(run.params, none=False))
    first, last = (run.params, opt.init(run.params)), run.by(opt)  # which looks at what each update is given
    forms = [[(path, x.shape, x.dtype) for path, x in tree.named(each)] for each in (first, last)]
    assert forms[0] == forms[1]


@pytest.mark.filterwarnings("ignore:the hypergradient of .* is exactly 0")
@given(training=strategies.trainings(), data=st.data())
def test_hypergradients_are_those_of_the_loop_and_of_central_differences(training: strategies.Training, data: Any):
    params, steps = training.params, training.batches
    opt = data.draw(strategies.optimizers(params, none=False))
    names = [path for path, _ in tree.named(opt.hparams)]
    assume(names)
    i = data.draw(st.integers(0, len(names) - 1))
    values, rebuild = tree.flatten(opt.hparams)

    def put(x: Tensor) -> Any:
        return rebuild([*values[:i], x, *values[i + 1 :]])

    def outer(end: Any) -> Tensor:
        return training.loss(end, steps[0] + 0.3)

    def end(x: Tensor) -> Any:
        state = opt.init(params, put(x))
        moved = params
        for batch in steps:
            moved, state = opt.update(torch.func.grad(training.loss)(moved, batch), state, moved, put(x))
        return moved

    def whole(x: Tensor) -> Tensor:
        return outer(end(x))

    got = torch.func.grad(whole)(values[i])
    for strategy in (hft.Unroll(checkpoint=2), hft.Forward()):
        _, found, _ = hft.hypergradient(opt, training.loss, outer, params, steps, names[i], strategy=strategy)
        torch.testing.assert_close(found[names[i]], got, rtol=1e-9, atol=1e-10)
    wide, short = (torch.stack(central_differences(whole, values[i], h)) for h in (1e-4, 2e-5))
    # Where these two do not agree, a bound is near. The second has 1e-11 from the rounding of f.
    smooth = (wide - short).abs() <= 1e-6 * wide.abs() + 1e-9
    torch.testing.assert_close(entries(got)[smooth], wide[smooth], rtol=1e-5, atol=1e-8)


@given(data=st.data(), factors=st.lists(strategies.between(0.5, 1.0), min_size=1, max_size=3))
def test_vmap_over_hparams_is_the_loop_over_them(data: Any, factors: list[float]):
    run = data.draw(strategies.runs(none=False))
    opt = data.draw(strategies.optimizers(run.params, none=False))

    def end(hparams: Any) -> Any:
        params, state = run.params, opt.init(run.params, hparams)
        for g in run.grads:
            params, state = opt.update(g, state, params, hparams)
        return params

    rows = [tree.map_tree(lambda x, f=f: x * f, opt.hparams) for f in factors]
    together = torch.func.vmap(end)(tree.map_tree(lambda *xs: torch.stack(xs), *rows))
    for i, row in enumerate(rows):
        for many, alone in zip(*map(tree.leaves, (together, end(row))), strict=True):
            # Other kernels round otherwise: a dozen operations in each of four steps, of numbers of order 1.
            torch.testing.assert_close(many[i], alone, rtol=10 * CLOSE, atol=10 * CLOSE)


@given(data=st.data(), run=strategies.runs(), at=st.integers(0, 3))
def test_a_state_that_is_saved_and_loaded_at_any_step_goes_on_to_the_last_bit(data: Any, run: strategies.Run, at: int):
    opt = data.draw(strategies.optimizers(run.params))
    params, state = run.params, opt.init(run.params)
    for k, g in enumerate(run.grads):
        if k == at % len(run.grads):
            file = io.BytesIO()
            torch.save(tree.leaves((params, state)), file)
            file.seek(0)
            params, state = tree.flatten((params, state))[1](torch.load(file, weights_only=True))
        params, state = opt.update(g, state, params)
    assert same((params, state), run.by(opt))
