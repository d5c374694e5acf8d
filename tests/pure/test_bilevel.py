"""bilevel, its domain maps, and TPGM."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.anchored import project

from ..support.problems import batches, central_differences, largest_difference, loss, start, train

DATA, HELD_OUT = batches(7), batches(2)


def run(optimizer=None, by=None, over="lr", **options):
    given = {"inner_steps": 3, "outer_steps": 5, **options}
    return list(
        hft.bilevel(
            optimizer or hft.sgd(lr=0.1), by or hft.sgd(lr=1e-2), over, loss, loss, start(), DATA, HELD_OUT, **given
        )
    )


def test_maps_inside_hyper_are_differentiable():
    opt = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.05), over="lr", constrain={"lr": "log"})
    assert opt.init(start()).tuned["lr"].item() == 0.1

    def outer(h):
        return loss(train(opt, h, start(), DATA)[0], HELD_OUT[0])

    got = torch.stack(tree.leaves(torch.func.grad(outer)(opt.hparams)))
    torch.testing.assert_close(got, torch.stack(central_differences(outer, opt.hparams)), rtol=1e-6, atol=1e-10)


def test_a_record_has_the_hparams_of_the_next_training():
    numbers = {"lr": torch.tensor(0.05, dtype=torch.float64), "loss": {"l2": torch.tensor(0.1, dtype=torch.float64)}}
    ridge = lambda p, x, h: loss(p, x) + h["l2"] * p["w"].square().sum()  # noqa: E731
    opt = hft.sgd(momentum=0.5)
    for over in ("lr", ("lr", "loss.l2"), ("params", "lr")):
        steps = {"inner_steps": 2, "outer_steps": 2, "hparams": numbers}
        record = list(hft.bilevel(opt, hft.sgd(lr=0.01), over, ridge, loss, start(), DATA, HELD_OUT, **steps))[-1]
        want = opt.hparams | numbers
        for path, value in record.tuned.items():
            want = want if path == "params" else tree.replaced(want, path, value)
        assert record.hparams.keys() == want.keys()
        assert largest_difference(record.hparams, want) == 0
        hft.train(opt, ridge, start(), DATA[:1], hparams=record.hparams)


def test_loaders_are_started_anew():
    class Loader:
        starts = 0

        def __iter__(self):
            Loader.starts += 1
            return iter(DATA[:2])

    given = {"inner_steps": 3, "outer_steps": 2}
    records = list(
        hft.bilevel(hft.sgd(lr=0.1), hft.sgd(lr=1e-2), "lr", loss, loss, start(), Loader(), HELD_OUT, **given)
    )
    assert len(records) == 2
    assert Loader.starts == 3  # 6 batches, 2 a pass


def test_tpgm_is_bilevel_over_the_radii():
    """Its first radius; and one outer step is Adam along d outer / d radius of the last projection."""
    w0 = start()
    params, _ = train(hft.sgd(lr=0.3), None, w0, DATA[:3])
    radius = hft.tpgm_radius(params, w0)
    assert radius["w"].item() == pytest.approx(((params["w"] - w0["w"]).abs().sum(1).min() / 2).item(), rel=1e-6)
    opt = hft.projected(hft.sgd(lr=0.1), w0, radius=radius)
    records = list(
        hft.bilevel(opt, hft.adam(lr=0.01), "radius", loss, loss, params, DATA, HELD_OUT, inner_steps=1, outer_steps=3)
    )
    moved = hft.sgd(lr=0.1).update(torch.func.grad(loss)(params, DATA[0]), hft.sgd(lr=0.1).init(params), params)[0]

    def after(r):
        return loss({k: project(moved[k], w0[k], r[k]) for k in r}, HELD_OUT[0])

    want = torch.func.grad(after)(radius)
    assert largest_difference(records[0].hypergradient["radius"], want) <= 1e-14
    assert all(r.tuned["radius"]["w"] >= 1e-8 for r in records)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_the_first_radius_of_tpgm_is_not_below_its_floor(norm):
    """At the anchor a row norm is 1e-8 and its half would be less; of no rows there is no smallest one."""
    params = {"w": torch.ones(3, 2, dtype=torch.float64), "empty": torch.zeros(0, 2, dtype=torch.float64)}
    assert {name: r.item() for name, r in hft.tpgm_radius(params, params, norm).items()} == {"w": 1e-8, "empty": 1e-8}


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_tpgm_after_fine_tuning_learns_an_interpolation_of_each_layer(norm):
    w0 = start()
    w1 = {k: v + torch.linspace(0.5, 1, v.numel(), dtype=torch.float64).view(v.shape) for k, v in w0.items()}
    target = {"w": w0["w"] + 0.3 * (w1["w"] - w0["w"]), "b": w1["b"]}

    def outer(p, _):
        return sum(((p[k] - target[k]) ** 2).sum() for k in p)

    new, radii = hft.tpgm(w1, w0, outer, [None] * 400, norm=norm, radius_lr=0.02)
    if norm == "l2":  # one s for each layer reaches the target
        torch.testing.assert_close(new["w"], target["w"], rtol=0, atol=1e-2)
    for name in w0:
        torch.testing.assert_close(new[name], project(w1[name], w0[name], radii[name], norm), rtol=0, atol=1e-15)
    torch.testing.assert_close(new["b"], w1["b"], rtol=0, atol=1e-2)  # a radius that ends beyond the deviation
    assert outer(new, None) < 0.3 * outer(w1, None)
