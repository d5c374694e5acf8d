"""Laws of every optimizer, alone or below combinators, on any tree: what ``hyperopt_ftp.testing.strategies`` is for."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.testing import CLOSE, central_differences, largest_difference, same, strategies


@st.composite
def cases(draw, none: bool = True, max_steps: int = 4):
    """An optimizer, and params and gradients for it."""
    run = draw(strategies.runs(none=none, max_steps=max_steps))
    return draw(strategies.optimizers(run.params, none=none)), run


@settings(max_examples=40)
@given(case=cases())
def test_an_update_is_pure_and_keeps_structure_shapes_and_dtypes(case):
    """Of the params. A state has a count for each tensor from the first gradient on that is missing."""
    opt, run = case
    params, _ = run.by(opt)  # which looks at what each update is given
    assert tree.structure(params) == tree.structure(run.params)
    forms = [[(x.shape, x.dtype) for x in tree.leaves(part)] for part in (params, run.params)]
    assert forms[0] == forms[1]


@settings(max_examples=40)
@given(case=cases(), at=st.integers(0, 4))
def test_a_state_that_is_saved_and_loaded_at_any_step_goes_on_to_the_last_bit(case, at):
    opt, run = case
    params, state = run.params, opt.init(run.params)
    for k, g in enumerate(run.grads):
        if k == at:
            file = io.BytesIO()
            torch.save(tree.leaves((params, state)), file)
            file.seek(0)
            params, state = tree.flatten((params, state))[1](torch.load(file, weights_only=True))
        params, state = opt.update(g, state, params)
    assert same((params, state), run.by(opt))


@settings(max_examples=30)
@given(case=cases(none=False), factors=st.lists(strategies.between(0.5, 1.0), min_size=1, max_size=3))
def test_vmap_over_hparams_is_the_loop_over_them(case, factors):
    opt, run = case
    rows = [tree.map_tree(lambda x, f=f: x * f, opt.hparams) for f in factors]
    together = torch.func.vmap(lambda h: _params(opt, run, h))(tree.map_tree(lambda *xs: torch.stack(xs), *rows))
    for i, row in enumerate(rows):
        alone = _params(opt, run, row)
        picked = tree.map_tree(lambda x, i=i: x[i], together)
        # Other kernels round otherwise: a dozen operations a step, of numbers of order 1.
        assert largest_difference(picked, alone) <= CLOSE * 10


def _params(opt, run, hparams):
    params, state = run.params, opt.init(run.params, hparams)
    for g in run.grads:
        params, state = opt.update(g, state, params, hparams)
    return params


@settings(max_examples=15)
@given(training=strategies.trainings(), rule=strategies.rules())
def test_a_hypergradient_in_every_hparam_is_that_of_central_differences(training, rule):
    def outer(hparams):
        run = hft.train(rule, training.loss, training.params, training.batches, hparams=hparams)
        return training.loss(run.params, training.batches[0])

    found = tree.leaves(torch.func.grad(outer)(rule.hparams))
    if found:
        x = torch.cat([leaf.reshape(-1) for leaf in found])
        y = torch.stack(central_differences(outer, rule.hparams))
        # Extrapolated differences are off by h^4 = 1e-16 times a fifth derivative, and by rounding over h: 1e-12.
        assert ((x - y).abs() <= 1e-6 * y.abs() + 1e-8).all()


@settings(max_examples=30)
@given(run=strategies.runs(), rule=strategies.rules(), bound=st.sampled_from([1e6, 1e9]))
def test_a_bound_that_no_gradient_reaches_clips_nothing(run, rule, bound):
    assert same(run.by(hft.clipped(rule, bound))[0], run.by(rule)[0])


@settings(max_examples=30)
@given(run=strategies.runs(), rule=strategies.rules())
def test_one_part_is_the_optimizer_itself(run, rule):
    assert same(run.by(hft.partition({"all": rule}, lambda path: "all"))[0], run.by(rule)[0])


@settings(max_examples=30)
@given(run=strategies.runs(), rule=strategies.rules())
def test_a_number_of_the_hparams_is_read_from_the_argument(run, rule):
    """Hparams that are given stand for those of the optimizer, wherever it was made."""
    other = tree.map_tree(lambda x: x * 0.9, rule.hparams)
    moved = rule._replace(hparams=other)
    assert same(_params(rule, run, other), _params(moved, run, moved.hparams))


@settings(max_examples=30)
@given(run=strategies.runs(none=False), rule=strategies.rules())
def test_where_no_leaf_has_a_gradient_nothing_moves(run, rule):
    state = rule.init(run.params)
    none = tree.map_tree(lambda x: None, run.params)
    params, _ = rule.update(none, state, run.params)
    assert same(params, run.params)


@settings(max_examples=20)
@given(make=st.sampled_from(strategies.RULES), lr=st.sampled_from([-1.0, float("nan"), "fast"]))
def test_a_rate_out_of_its_domain_is_refused_before_anything_is_made(make, lr):
    with pytest.raises((TypeError, ValueError), match="lr"):
        make(lr=lr)
