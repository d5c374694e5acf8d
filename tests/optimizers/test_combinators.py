"""Combinators, one around the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from ..support.cases import ANCHOR
from ..support.problems import largest_difference, start
from ..support.updates import F64, gradients, run

# -- twice ------------------------------------------------------------------------------------------------------------

BASE = hft.sgd(lr=0.1, momentum=0.5)


def test_of_two_radii_the_smaller_counts_and_each_has_its_name():
    def ball(opt: hft.Optimizer, x: float) -> hft.Optimizer:
        return hft.projected(opt, ANCHOR, radius=x)

    grads = gradients(4)
    for inner, outer in ((0.2, 0.4), (0.4, 0.2)):
        twice = ball(ball(BASE, inner), outer)
        assert [tree.leaves(twice.hparams[name])[0].item() for name in ("radius", "radius_2")] == [inner, outer]
        # A projection once more moves a row by the rounding of its norm.
        assert largest_difference(run(twice, grads)[0], run(ball(BASE, 0.2), grads)[0]) <= 1e-7


@pytest.mark.parametrize("around", [lambda opt, anchor: hft.decayed(opt, 0.1), hft.l2sp, hft.ftp])
def test_a_base_gets_16_bit_weights_in_one_dtype_from_the_first(around: Any):
    """One that keeps them, as lookahead does."""
    params, anchor = ({name: w.bfloat16() for name, w in x.items()} for x in (start(), ANCHOR))
    opt = around(hft.lookahead(hft.sgd(lr=0.1)), anchor)
    first = opt.init(params)
    _, later = opt.update(params, first, params)
    assert [x.dtype for x in tree.leaves(later)] == [x.dtype for x in tree.leaves(first)]


READS_LR = {
    "decayed": lambda opt: hft.decayed(opt, 0.1),
    "l2sp": lambda opt: hft.l2sp(opt, ANCHOR, decoupled=True),
    "cautious_decay": lambda opt: hft.cautious_decay(opt, ANCHOR),
    "recall": lambda opt: hft.recall(opt, ANCHOR),
}


@pytest.mark.parametrize("around", READS_LR.values(), ids=READS_LR)
def test_what_reads_an_lr_takes_a_scheduled_one_and_no_table(around: Any):
    """A table of the length of a row would be stretched over the rows."""
    table = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    with pytest.raises(ValueError, match=r"lr of base is a table of the shape \(4,\).*; per_step goes around"):
        around(hft.clipped(hft.per_step(hft.sgd(), lr=table), 1.0))
    run(hft.per_step(around(hft.sgd()), lr=table), gradients(2))
    still = hft.scheduled(around(hft.sgd(lr=0.1)), lr=lambda count: 0.0 * count)
    assert largest_difference(run(still, gradients(2))[0], start()) == 0


# -- around a schedule-free base --------------------------------------------------------------------------------------

FREE: dict[str, Callable[[], hft.Optimizer]] = {
    "sgd": lambda: hft.schedule_free_sgd(lr=0.1, momentum=0.7),
    "adamw": lambda: hft.schedule_free_adamw(lr=0.1),
    "seen through others": lambda: hft.scheduled(hft.clipped(hft.schedule_free_sgd(lr=0.1), 1.0), lr=lambda t: 1.0),
    "seen through a table": lambda: hft.per_step(hft.schedule_free_sgd(), weight_decay=torch.tensor([0.0])),
}
MOVES_WEIGHTS: dict[str, tuple[Callable[[hft.Optimizer], hft.Optimizer], str]] = {
    "decayed": (lambda opt: hft.decayed(opt, 0.1), "weight decay .* lost; use its own, weight_decay="),
    "lookahead": (hft.lookahead, "way back to the slow weights would be lost; leave lookahead out .hft.averages"),
    **{
        make.__name__: (lambda opt, make=make: make(opt, ANCHOR), "holds these near the anchor would be lost; take ano")
        for make in (hft.ftp, hft.projected, hft.spd, hft.cautious_decay, hft.recall)
    },
    "l2sp": (lambda opt: hft.l2sp(opt, ANCHOR, decoupled=True), "l2sp with decoupled=False.*schedule-free torch opt"),
}


@pytest.mark.parametrize("base", FREE.values(), ids=FREE)
@pytest.mark.parametrize(("around", "text"), MOVES_WEIGHTS.values(), ids=MOVES_WEIGHTS)
def test_what_moves_weights_is_refused_around_a_base_that_goes_on_from_its_own(around: Any, text: str, base: Any):
    with pytest.raises(ValueError, match=f"goes on from weights in its state, as schedule-free optimizers do.*{text}"):
        around(base())


@pytest.mark.parametrize("of", ["a tuned one", "a part", "a tuned part"])
def test_a_schedule_free_base_is_seen_in_towers_and_partitions(of: str):
    base = FREE["sgd"]()
    if "part" in of:
        base = hft.partition({"free": base, "rest": hft.sgd(lr=0.1)}, {"w": "free", "b": "rest"})
    if "tuned" in of:
        base = hft.hyper(base, by=hft.sgd(), over="free.lr" if "part" in of else "lr")
    with pytest.raises(ValueError, match="goes on from weights in its state"):
        hft.projected(base, ANCHOR, radius=0.1)
    rest = hft.projected(hft.sgd(lr=0.1), {"b": ANCHOR["b"]}, radius=0.1)  # the remedy that the error names
    run(hft.partition({"free": FREE["sgd"](), "rest": rest}, {"w": "free", "b": "rest"}), gradients(2))


def test_pulls_by_the_gradient_hold_a_schedule_free_base():
    """They are not refused: what is deployed ends where the loss and the pull are in balance."""
    target = {"w": ANCHOR["w"] + 1, "b": ANCHOR["b"] + 1}  # of |W - target|^2 / 2
    half = tree.map_tree(lambda w0: w0 + 0.5, ANCHOR)
    for opt in (hft.l2sp(FREE["sgd"](), ANCHOR, 1.0), hft.digrap(hft.l2sp(FREE["sgd"](), ANCHOR, 1.0), ANCHOR)):
        params = start()
        state = opt.init(params)
        for _ in range(300):
            params, state = opt.update(tree.map_tree(torch.sub, params, target), state, params)
        assert largest_difference(hft.averages(params, state), half) < 0.03
