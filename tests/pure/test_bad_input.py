"""Wrong arguments of the functional API."""

from __future__ import annotations

import math

import pytest
import torch

import hyperopt_ftp as hft

from ..cases import BASES

W = {"w": torch.zeros(2, 3)}


@pytest.mark.parametrize("case", BASES, ids=str)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, torch.tensor(-1.0)], ids=str)
def test_learning_rates_outside_their_domain(case, value):
    with pytest.raises(ValueError, match=r"lr must lie in \[0, inf\), got"):
        case.build(lr=value)


@pytest.mark.parametrize("case", BASES, ids=str)
def test_hparams_of_a_wrong_type(case):
    with pytest.raises(TypeError, match="lr must be a number or a 0-d floating-point tensor, got str"):
        case.build(lr="0.1")
    with pytest.raises(TypeError, match="got bool"):
        case.build(lr=True)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        case.build(lr=torch.ones(2))


@pytest.mark.parametrize("case", BASES, ids=str)
def test_params_grads_and_hparams_of_a_wrong_structure(case):
    opt = case.build()
    state = opt.init(W)
    with pytest.raises(ValueError, match="grads must have the structure of the parameters"):
        opt.update({"v": W["w"]}, state, W)
    with pytest.raises(ValueError, match="hparams must be a dict with the names"):
        opt.update(W, state, W, {"lr": 0.1, "typo": 1.0})
    with pytest.raises(TypeError, match=r"must be floating-point .* but 'w' is torch.int64"):
        opt.init({"w": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(TypeError, match="must be a pytree of tensors, but 'w' is a float"):
        opt.init({"w": 1.0})


def test_betas():
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\), got 1.0"):
        hft.adam(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas must be a pair"):
        hft.lion(betas=(0.9,))
    with pytest.raises(ValueError, match="eps_root must lie in"):
        hft.adam(eps_root=-1.0)
    with pytest.raises(ValueError, match="nesterov needs momentum > 0"):
        hft.sgd(nesterov=True)


@pytest.mark.parametrize("make", [hft.ftp, hft.projected])
def test_anchors(make):
    with pytest.raises(ValueError, match=r"anchor has entries \['v'\] that are not parameters"):
        make(hft.sgd(), {"v": W["w"]}).init(W)
    with pytest.raises(ValueError, match=r"anchor entry 'w' has shape \(3, 2\), its parameter \(2, 3\)"):
        make(hft.sgd(), {"w": torch.zeros(3, 2)}).init(W)
    with pytest.raises(TypeError, match="anchor must hold floating-point tensors, but its entry 'w' is torch.int64"):
        make(hft.sgd(), {"w": torch.zeros(2, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="norm must be one of"):
        make(hft.sgd(), W, norm="l1")


def test_ftp_options():
    with pytest.raises(ValueError, match=r"kappa must lie in \[0, 1\], got 2"):
        hft.ftp(hft.sgd(), W, kappa=2)
    with pytest.raises(ValueError, match="gradient must be one of 'paper', 'exact'"):
        hft.ftp(hft.sgd(), W, gradient="true")
    with pytest.raises(ValueError, match="radius must lie in"):
        hft.projected(hft.sgd(), W, radius=-1.0)
    with pytest.raises(ValueError, match=r"radius must have the names of the anchor \['w'\], got \['v'\]"):
        hft.projected(hft.sgd(), W, radius={"v": 1.0})
    with pytest.raises(ValueError, match="already has the hparams"):
        hft.projected(hft.projected(hft.sgd(), W), W)
    with pytest.raises(ValueError, match=r"schedules for \['rate'\], but the hparams are"):
        hft.scheduled(hft.sgd(), rate=lambda t: t)


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ("rate", "over names 'rate', but the hyperparameters are .*'lr'"),
        (("lr", "rate"), "over names 'rate', but the hyperparameters are .*'lr'"),
        ("betas.2", r"over names 'betas.2', but 'betas' has \['betas.0', 'betas.1'\]"),
        ("lr.x", "over names 'lr.x', but 'lr' has no parts"),
        (3, "over must name at least one hyperparameter of .*'lr'.*, got 3$"),
        (hft.sgd(), "over must name at least one hyperparameter of .*'lr'.*, got an object of the class Optimizer$"),
    ],
)
def test_over_names_what_does_not_exist(over, text):
    with pytest.raises(ValueError, match=text):
        hft.hyper(hft.adam(), by=hft.sgd(), over=over)


def steps(opt: hft.Optimizer, **options):
    return hft.bilevel(
        opt, options.pop("by", hft.sgd()), "lr", lambda p, x: p["w"].sum(), lambda p, x: p["w"].sum(), W, [0], [0],
        inner_steps=1, outer_steps=1, **options,
    )  # fmt: skip


TORCHS = torch.optim.SGD([torch.ones(1)])


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (
            lambda: hft.hyper(TORCHS, by=hft.sgd(), over="lr"),
            "base must be a pure optimizer .*, got an object of .* SGD",
        ),
        (
            lambda: hft.hyper(hft.sgd(), by=hft.adam, over="lr"),
            "by must be a pure optimizer .*, got adam itself: call it",
        ),
        (lambda: hft.ftp(hft.FTPAdamW, W), "base must be .* got FTPAdamW itself: call it .* those of this package"),
        (lambda: hft.clipped(TORCHS, 1.0), "base must be a pure optimizer"),
        (lambda: hft.l2sp(TORCHS, W), "base must be a pure optimizer"),
        (lambda: steps(TORCHS), "optimizer must be a pure optimizer"),
        (lambda: steps(hft.sgd(), by=TORCHS), "by must be a pure optimizer"),
        (lambda: hft.to_torchopt(TORCHS), "optimizer must be a pure optimizer"),
        (
            lambda: hft.from_torchopt(hft.sgd()),
            "factory must be a function .* got a Optimizer; give the function and its",
        ),
        (lambda: steps(hft.sgd(), strategy=hft.Unroll), r"got the class Unroll; write Unroll\(\)"),
        (lambda: hft.hyper(hft.sgd(), by=hft.sgd(), over="lr", strategy=hft.OneStep), r"write OneStep\(\)"),
        (lambda: steps(hft.sgd(), constrain="log"), r"constrain must be a dict .* such as \{'lr': 'log'\}, got 'log'"),
        (
            lambda: steps(hft.sgd(), state=next(steps(hft.sgd()))),
            "state must be the BilevelState .* Record; pass record.state",
        ),
        (lambda: steps(hft.sgd(), state={}), "state must be the BilevelState of an earlier record, got dict$"),
        (lambda: hft.ftp(hft.sgd(), None), "anchor must be the weights to stay near, .* got None"),
    ],
)
def test_things_of_another_kind(act, text):
    with pytest.raises(TypeError, match=text):
        act()


@pytest.mark.parametrize(
    ("over", "kind", "base", "text"),
    [
        (
            "momentum",
            "log",
            hft.sgd(),
            "constrain of 'momentum': 'log' needs a first value above 0, got 0; start there",
        ),
        ("lr", "log", hft.sgd(lr=0.0), "needs a first value above 0, got 0"),
        ("betas", "logit", hft.adam(betas=(0.0, 0.9)), r"'logit' needs a first value in \(0, 1\), got 0"),
    ],
)
def test_a_first_value_that_its_map_cannot_take(over, kind, base, text):
    tuned = hft.hyper(base, by=hft.sgd(), over=over, constrain={over: kind})
    with pytest.raises(ValueError, match=text):
        tuned.init(W)
    with pytest.raises(ValueError, match=text):
        hft.bilevel(
            base, hft.sgd(), over, None, None, W, [0], [0], inner_steps=1, outer_steps=1, constrain={over: kind}
        )


def test_tpgm_needs_batches():
    with pytest.raises(ValueError, match="batches is empty, or an iterator that has been read before"):
        hft.tpgm(W, {"w": torch.zeros_like(W["w"])}, lambda p, x: p["w"].sum(), iter([]))
    with pytest.raises(ValueError, match="radius_lr must lie in"):
        hft.tpgm(W, W, lambda p, x: p["w"].sum(), [0], radius_lr=-1.0)


def test_over_and_strategies():
    with pytest.raises(ValueError, match="over must name at least one"):
        hft.hyper(hft.sgd(), by=hft.sgd(), over=())
    with pytest.raises(ValueError, match="over names a hyperparameter twice"):
        hft.hyper(hft.adam(), by=hft.sgd(), over=("betas", "betas.0"))
    with pytest.raises(TypeError, match="strategies that need gradients alone"):
        hft.hyper(hft.sgd(), by=hft.sgd(), over="lr", strategy=object())
    tuned = hft.hyper(hft.sgd(), by=hft.sgd(), over="lr")
    with pytest.raises(ValueError, match="already tunes"):
        hft.hyper(tuned, by=hft.sgd(), over="base.lr")
