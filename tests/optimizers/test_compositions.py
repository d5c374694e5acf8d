"""Combinators around combinators, drawn at random: what holds of each holds of any of them around each other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import ANCHOR, BASES
from ..support.problems import batches, central_differences, entries, largest_difference, loss, start, train

F64 = torch.float64
s = hft.schedules

#: ``around(base, anchor, x)``; x is a number in [0, 1), another one at each level: equal bounds would be a kink.
AROUND: dict[str, Callable[[hft.Optimizer, Any, float], hft.Optimizer]] = {
    "clipped": lambda base, anchor, x: hft.clipped(base, 0.5 + x),
    "clipped_by_value": lambda base, anchor, x: hft.clipped_by_value(base, 0.1 + x / 10),
    "clipped_per_layer": lambda base, anchor, x: hft.clipped_per_layer(base, 0.4 + x),
    "clipped_adaptively": lambda base, anchor, x: hft.clipped_adaptively(base, 0.2 + x / 10),
    "damped": lambda base, anchor, x: hft.damped(base, 0.9 - x / 2),
    "noisy": lambda base, anchor, x: hft.noisy(base, 0.01, seed=int(1000 * x)),
    "decayed": lambda base, anchor, x: hft.decayed(base, 0.1 + x),
    "averaged": lambda base, anchor, x: hft.averaged(base, 0.9 if x < 0.5 else None),
    "lookahead": lambda base, anchor, x: hft.lookahead(base, every=2, alpha=0.3 + x / 2),
    "accumulated": lambda base, anchor, x: hft.accumulated(base, every=2),
    "projected": lambda base, anchor, x: hft.projected(base, anchor, radius=0.3 + x),
    "ftp": lambda base, anchor, x: hft.ftp(base, anchor, radius_lr=0.1, kappa=0.8),
    "l2sp": lambda base, anchor, x: hft.l2sp(base, anchor, strength=0.2 + x, decoupled=x < 0.5),
}
SCHEDULES = [
    lambda x: s.cosine(4, floor=0.1 + x / 2),
    lambda x: s.warm_up(s.linear(1.0, 0.3, 5), share=0.3 + x / 4, start=0.2),
    lambda x: s.one_cycle(6, share=0.4 + x / 10),
    lambda x: s.joined([s.constant(0.7), s.exponential(0.8)], at=[2]),
]


def free(opt: hft.Optimizer) -> list[str]:
    """Paths of hparams that nothing tunes yet."""
    paths = dict.fromkeys(path for path, _ in tree.named(opt.hparams) if ".betas" not in f".{path}")
    return [path for path in paths if not any(f"{path}.".startswith(f"{t}.") for t in opt.tunes)]


@st.composite
def compositions(draw: Any, names: tuple[str, ...] = ("w", "b"), depth: int | None = None) -> hft.Optimizer:
    """One to four combinators, or parts with some of their own, around bases of the contract table."""
    depth = draw(st.integers(1, 4)) if depth is None else depth
    if not depth:
        return draw(st.sampled_from([case for case in BASES if case.smooth])).build()
    several = ["partition", "partition"] if len(names) > 1 else []
    kind = draw(st.sampled_from(["hyper", "hyper", "hyper", "scheduled", "per_step", *several, *AROUND]))
    note(f"{kind} of {names}")
    if kind == "partition":
        parts = {f"of_{name}": draw(compositions((name,), draw(st.integers(0, depth - 1)))) for name in names}
        return hft.partition(parts, {name: f"of_{name}" for name in names})
    base, x = draw(compositions(names, depth - 1)), draw(st.integers(0, 99)) / 100
    if kind in AROUND:
        moves_weights = kind in ("decayed", "lookahead", "projected", "ftp") or (kind == "l2sp" and x < 0.5)
        assume(not (moves_weights and base.weights_in_state))  # refused: test_combinators.py
        assume("lr" in base.hparams or kind not in ("decayed", "l2sp"))
        assume(kind not in ("decayed", "l2sp") or not tree.leaves(base.hparams["lr"])[0].ndim)
        return AROUND[kind](base, {name: ANCHOR[name] for name in names}, x)
    paths = [path for path in free(base) if not tree.entry(base.hparams, path).ndim]
    assume(paths)
    path = draw(st.sampled_from(paths))
    if kind == "hyper":
        return hft.hyper(base, by=hft.sgd(lr=1e-3), over=path)
    if kind == "scheduled":
        return hft.scheduled(base, {path: draw(st.sampled_from(SCHEDULES))(x)})
    factors = torch.tensor([1.0, 0.8, 0.9], dtype=F64)
    try:
        return hft.per_step(base, {path: tree.entry(base.hparams, path) * factors})
    except ValueError as error:  # of a number that may not be less
        assume("must lie in" not in str(error))
        raise


@given(opt=compositions())
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16], ids=str)
def test_inputs_are_unchanged_and_params_and_state_keep_their_form(opt: hft.Optimizer, dtype: torch.dtype):
    params = start(dtype)
    state = opt.init(params)
    for x in batches(3):
        grads = torch.func.grad(loss)(params, x)
        before = copy.deepcopy((grads, state, params, opt.hparams))
        new = opt.update(grads, state, params)
        assert largest_difference((grads, state, params, opt.hparams), before) == 0
        for (path, a), (other, b) in zip(tree.named((params, state)), tree.named(new), strict=True):
            assert (path, a.shape, a.dtype) == (other, b.shape, b.dtype)
        params, state = new


@pytest.mark.filterwarnings("ignore:the hypergradient of .* is exactly 0")
@given(opt=compositions(), data=st.data())
def test_hypergradients_are_those_of_the_loop_and_of_central_differences(opt: hft.Optimizer, data: Any):
    params, steps = start(), batches(3)
    names = [path for path, _ in tree.named(opt.hparams)]
    assume(names)
    i = data.draw(st.integers(0, len(names) - 1))
    values, rebuild = tree.flatten(opt.hparams)

    def put(x: Tensor) -> Any:
        return rebuild([*values[:i], x, *values[i + 1 :]])

    def outer(end: Any) -> Tensor:
        return loss(end, steps[0] + 0.3)

    def whole(x: Tensor) -> Tensor:
        return outer(train(opt, put(x), params, steps)[0])

    got = torch.func.grad(whole)(values[i])
    for strategy in (hft.Unroll(checkpoint=2), hft.Forward()):
        _, found, _ = hft.hypergradient(opt, loss, outer, params, steps, names[i], strategy=strategy)
        torch.testing.assert_close(found[names[i]], got, rtol=1e-9, atol=1e-10)
    wide, narrow = (torch.stack(central_differences(whole, values[i], h)) for h in (1e-4, 2e-5))
    # Where these two do not agree, a bound is near. The second has 1e-11 from the rounding of f.
    smooth = (wide - narrow).abs() <= 1e-6 * wide.abs() + 1e-9
    torch.testing.assert_close(entries(got)[smooth], wide[smooth], rtol=1e-5, atol=1e-8)
    together = torch.func.vmap(whole)(torch.stack([values[i], values[i]]))
    torch.testing.assert_close(together, whole(values[i]).expand(2), rtol=1e-12, atol=1e-12)
