"""bilevel, its domain maps, and TPGM."""

from __future__ import annotations

import io
import math

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.anchored.projections import project

from ..support.problems import batches, central_differences, largest_difference, loss, start, train

DATA, HELD_OUT = batches(7), batches(2)


def run(optimizer=None, by=None, over="lr", **options):
    given = {"inner_steps": 3, "outer_steps": 5, **options}
    return list(
        hft.bilevel(
            optimizer or hft.sgd(lr=0.1), by or hft.sgd(lr=1e-2), over, loss, loss, start(), DATA, HELD_OUT, **given
        )
    )


def test_it_is_its_loop_written_out():
    records = run(hft.adamw(lr=0.05, eps=1e-2), hft.adam(lr=0.01), ("lr", "betas"))
    opt, by = hft.adamw(lr=0.05, eps=1e-2), hft.adam(lr=0.01)
    params, tuned = start(), {"lr": opt.hparams["lr"], "betas": opt.hparams["betas"]}
    state, outer = opt.init(params), by.init(tuned)
    for i, record in enumerate(records):
        data = [DATA[(3 * i + k) % 7] for k in range(3)]
        held = HELD_OUT[i % 2]
        value, h, (params, state) = hft.hypergradient(
            opt, loss, lambda p, x=held: loss(p, x), params, data, ("lr", "betas"), opt.hparams | tuned, state
        )
        tuned, outer = by.update(h, outer, tuned)
        tuned = {
            k: tree.map_tree(lambda x, k=k: x.clamp(0, 1 - 2**-53 if k == "betas" else math.inf), v)
            for k, v in tuned.items()
        }
        assert record.step == i + 1
        assert record.value == value.item()
        assert largest_difference((record.tuned, record.state.params), (tuned, params)) == 0


def test_a_resumed_run_continues_bit_for_bit():
    records = run(by=hft.adam(lr=0.1), constrain={"lr": "log"})
    file = io.BytesIO()
    values, rebuild = tree.flatten(records[1].state)
    torch.save(values, file)
    file.seek(0)
    saved = rebuild(torch.load(file, weights_only=True))
    rest = run(by=hft.adam(lr=0.1), constrain={"lr": "log"}, state=saved)
    assert [r.step for r in rest] == [3, 4, 5]
    assert largest_difference(rest[-1].state, records[-1].state) == 0


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("log", "lr", 0.1), ("logit", "momentum", 0.6), ("logit", "betas.0", 0.9), ("clip", "lr", 0.1)],
)
def test_a_map_moves_the_free_value_by_the_chain_rule(kind, name, value):
    base = hft.sgd(lr=0.1, momentum=0.6)
    to_free = {"log": math.log, "logit": lambda x: math.log(x / (1 - x)), "clip": lambda x: x}[kind]
    back = {"log": torch.exp, "logit": torch.sigmoid, "clip": lambda x: x}[kind]
    if name == "betas.0":
        base = hft.adam(lr=0.1, eps=1e-2)
    record = run(base, hft.sgd(lr=0.02), name, constrain={name: kind}, outer_steps=1)[0]
    u = torch.tensor(to_free(value), dtype=torch.float64)

    def outer(u):
        x = back(u)
        h = base.hparams | ({"betas": (x, base.hparams["betas"][1])} if name == "betas.0" else {name: x})
        return loss(train(base, h, start(), DATA[:3])[0], HELD_OUT[0])

    want = back(u - 0.02 * central_differences(outer, u)[0])
    assert record.tuned[name].item() == pytest.approx(want.item(), rel=1e-8)


def test_maps_inside_hyper_are_differentiable():
    opt = hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.05), over="lr", constrain={"lr": "log"})
    assert opt.init(start()).tuned["lr"].item() == 0.1

    def outer(h):
        return loss(train(opt, h, start(), DATA)[0], HELD_OUT[0])

    got = torch.stack(tree.leaves(torch.func.grad(outer)(opt.hparams)))
    torch.testing.assert_close(got, torch.stack(central_differences(outer, opt.hparams)), rtol=1e-6, atol=1e-10)


def test_not_finite_hypergradients():
    def bad(params, x):
        return loss(params, x) + (0 * params["w"].sum()).sqrt()  # derivative 0 * inf

    args = (hft.sgd(lr=0.1), hft.sgd(lr=0.1), ("lr",), loss, bad, start(), DATA, HELD_OUT)
    with pytest.raises(FloatingPointError, match="hypergradient of 'lr' is not finite at outer step 1"):
        list(hft.bilevel(*args, inner_steps=2, outer_steps=2))
    record = list(hft.bilevel(*args, inner_steps=2, outer_steps=2, not_finite="skip"))[-1]
    assert record.skipped == ("lr",)
    assert record.tuned["lr"].item() == record.hparams["lr"].item() == 0.1


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


def test_bad_input():
    with pytest.raises(ValueError, match="inner_steps must be a number of steps >= 1, got 0"):
        run(inner_steps=0)
    with pytest.raises(ValueError, match="over names 'rate'"):
        run(over="rate")
    for losses in ((loss, None), ("mse", loss)):
        with pytest.raises(TypeError, match="must be a function that returns a scalar tensor, got (NoneType|str)"):
            hft.bilevel(hft.sgd(lr=0.1), hft.sgd(), "lr", *losses, start(), DATA, DATA, inner_steps=1, outer_steps=1)
    with pytest.raises(ValueError, match=r"constrain names \['momentum'\], but over tunes \['lr'\]"):
        run(constrain={"momentum": "clip"})
    with pytest.raises(ValueError, match="must be one of 'clip', 'log', 'logit', got 'exp'"):
        run(constrain={"lr": "exp"})
    with pytest.raises(ValueError, match="'log' is for positive values"):
        run(hft.sgd(lr=0.1, momentum=0.5), over="dampening", constrain={"dampening": "log"})
    with pytest.raises(ValueError, match="not_finite must be one of"):
        run(not_finite="ignore")
    with pytest.raises(ValueError, match="train_batches is empty"):
        list(
            hft.bilevel(
                hft.sgd(lr=0.1), hft.sgd(), "lr", loss, loss, start(), [], HELD_OUT, inner_steps=1, outer_steps=1
            )
        )


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
