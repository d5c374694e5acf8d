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


@pytest.mark.parametrize("over", ["rate", ("lr", "rate"), "betas.0", "lr.x"])
def test_over_names_what_does_not_exist(over):
    with pytest.raises(ValueError, match="over names .* but the hyperparameters are .*'lr'"):
        hft.hyper(hft.sgd(), by=hft.sgd(), over=over)


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
