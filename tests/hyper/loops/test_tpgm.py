"""TPGM: radii that are learned on held-out data, in training and after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.anchored import project, row_norm

from ...support.hypergradients import DATA, F64, HELD_OUT
from ...support.problems import largest_difference, loss, start, train

every_norm = pytest.mark.parametrize("norm", ["l2", "mars"])


def moved():
    """Weights that were fine-tuned, each entry away from where it began."""
    return {k: v + torch.linspace(0.5, 1, v.numel(), dtype=F64).view(v.shape) for k, v in start().items()}


def test_tpgm_is_bilevel_over_the_radii():
    """Its first radius; and one outer step is Adam along d outer / d radius of the last projection."""
    w0 = start()
    params, _ = train(hft.sgd(lr=0.3), None, w0, DATA[:3])
    radius = hft.tpgm_radius(params, w0)
    assert radius["w"].item() == pytest.approx(((params["w"] - w0["w"]).abs().sum(1).min() / 2).item(), rel=1e-6)
    opt = hft.projected(hft.sgd(lr=0.1), w0, radius=radius)
    records = list(
        hft.bilevel(
            opt, hft.adam(lr=0.01), "radius", loss, loss, params, DATA, [HELD_OUT], inner_steps=1, outer_steps=3
        )
    )
    moved = hft.sgd(lr=0.1).update(torch.func.grad(loss)(params, DATA[0]), hft.sgd(lr=0.1).init(params), params)[0]

    def after(r):
        return loss({k: project(moved[k], w0[k], r[k]) for k in r}, HELD_OUT)

    want = torch.func.grad(after)(radius)
    assert largest_difference(records[0].hypergradient["radius"], want) <= 1e-14
    assert all(r.tuned["radius"]["w"] >= 1e-8 for r in records)


@every_norm
def test_the_first_radius_of_tpgm_is_not_below_its_floor(norm):
    """At the anchor a row norm is 1e-8 and its half would be less; of no rows there is no smallest one."""
    params = {"w": torch.ones(3, 2, dtype=F64), "empty": torch.zeros(0, 2, dtype=F64)}
    assert {name: r.item() for name, r in hft.tpgm_radius(params, params, norm).items()} == {"w": 1e-8, "empty": 1e-8}


@every_norm
def test_after_fine_tuning_it_learns_an_interpolation_of_each_layer(norm):
    w0, w1 = start(), moved()
    target = {"w": w0["w"] + 0.3 * (w1["w"] - w0["w"]), "b": w1["b"]}

    def outer(p, _):
        return sum(((p[k] - target[k]) ** 2).sum() for k in p)

    given = {k: nn.Parameter(v) for k, v in w1.items()}
    new, radii = hft.tpgm(given, w0, outer, [None] * 200, norm=norm, radius_lr=0.04)
    assert not any(x.requires_grad for x in tree.leaves((new, radii)))
    if norm == "l2":  # one s for each layer reaches the target
        torch.testing.assert_close(new["w"], target["w"], rtol=0, atol=1e-2)
    for name in w0:
        torch.testing.assert_close(new[name], project(w1[name], w0[name], radii[name], norm), rtol=0, atol=1e-15)
    torch.testing.assert_close(new["b"], w1["b"], rtol=0, atol=1e-2)  # a radius that ends beyond the deviation
    assert outer(new, None) < 0.3 * outer(w1, None)


@every_norm
@pytest.mark.parametrize("rate", [0.05, 100.0])
def test_radii_stay_between_their_floor_and_the_largest_norm(norm, rate):
    w0, w1 = start(), moved()
    top = {k: row_norm(w1[k] - w0[k], norm).max().item() for k in w0}

    def outer(p, sign):
        return sign * sum(((p[k] - w0[k]) ** 2).sum() for k in p)

    for signs in ([-1.0] * 5, [1.0] * 5, [-1.0, 1.0] * 4):
        radii = hft.tpgm(w1, w0, outer, signs, norm=norm, radius_lr=rate)[1]
        assert all(1e-8 <= r.item() <= top[name] * (1 + 1e-12) for name, r in radii.items())


def test_a_radius_that_overshoots_comes_back():
    """With the anchor as target every radius should shrink; the first step out is by the first batch alone."""
    w1, w0 = {"w": torch.tensor([[3.0, 4.0]], dtype=F64)}, {"w": torch.zeros(1, 2, dtype=F64)}

    def radius(signs):
        return hft.tpgm(w1, w0, lambda p, sign: sign * (p["w"] ** 2).sum(), signs, norm="l2", radius_lr=10.0)[1]["w"]

    assert radius([-1.0]).item() == pytest.approx(5.0)  # 2.5 + 10, clipped
    assert radius([-1.0, *[1.0] * 30]).item() < 4.0
