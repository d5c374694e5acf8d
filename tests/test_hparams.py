"""Domains belong to an optimizer, and so does what it tunes itself; both shine through whatever is put around it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hparams import DOMAINS, Domain, domain_at, domains_of

from .support.cases import ANCHOR, CASES, Case
from .support.hypergradients import rounds
from .support.problems import batches, loss, start, train


def number(x: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(x, dtype=dtype)


def moved(tuned: hft.Optimizer, steps: int = 4) -> dict:
    """The tuned values after some steps."""
    return train(tuned, None, start(), batches(steps))[1].tuned


def own(value: float, name: str = "alpha", **fields) -> hft.Optimizer:
    """Somebody's own optimizer: its only hparam has a name that means something else in the package."""

    def update(grads, state, params, hparams=None):
        rate = ({name: number(value)} if hparams is None else hparams)[name]
        return {key: w - rate * grads[key] for key, w in params.items()}, state

    return hft.Optimizer(lambda params, hparams=None: (), update, {name: number(value)}, **fields)


# -- whose they are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_hparam_of_the_package_has_the_domain_of_its_name(case: Case):
    opt = case.build()
    for path in tree.by_path(opt.hparams):
        names = [part for part in path.split(".") if part in DOMAINS and part not in case.own]
        domain = domain_at(opt.domains, path)
        assert domain is DOMAINS[names[0]] if names else isinstance(domain, Domain)  # one of the method's own


#: What may be infinite, which switches a bound off, and what may be negative.
ENDLESS = ("dampening", "ns_coefficients", "step_sizes", "t0", "max_norm", "max_value", "radius")
SIGNED = ("dampening", "ns_coefficients", "beta2_decay", "midpoint")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_hparam_is_negative_or_infinite_but_those_that_make_sense_so(case: Case):
    opt = case.build()
    for path in tree.by_path(opt.hparams):
        domain, names = domain_at(opt.domains, path), path.split(".")
        assert domain.holds(math.inf) == any(name in ENDLESS for name in names), path
        assert domain.holds(-0.5) == any(name in SIGNED for name in names), path


WRAPPED = {
    "damped": hft.damped,
    "clipped": lambda opt: hft.clipped(opt, 1.0),
    "scheduled": hft.scheduled,
    "per_step": hft.per_step,
    "projected": lambda opt: hft.projected(opt, ANCHOR),
    "ftp": lambda opt: hft.ftp(opt, ANCHOR),
    "l2sp": lambda opt: hft.l2sp(opt, ANCHOR),
    "directed": lambda opt: hft.directed(opt, ANCHOR),
}


@pytest.mark.parametrize("wrap", [*WRAPPED.values(), lambda opt: hft.digrap(opt, ANCHOR)], ids=[*WRAPPED, "digrap"])
def test_a_combinator_hands_on_what_its_base_says(wrap):
    wrapped = wrap(own(0.5, "lr", domains={"lr": Domain(0.0, 2.0)}, tunes=("lr",)))
    assert wrapped.domains["lr"] == Domain(0.0, 2.0)
    assert wrapped.domains.keys() == wrapped.hparams.keys()
    assert wrapped.tunes == ("lr",)


def test_an_optimizer_of_three_fields_has_no_domains_and_can_be_copied():
    opt = own(0.5)
    assert (dict(opt.domains), opt.domains.get("alpha"), opt.tunes) == ({}, None, ())
    with pytest.raises(TypeError):
        opt.domains["alpha"] = Domain(0.0, 1.0)
    for twin in (copy.deepcopy(opt.domains), pickle.loads(pickle.dumps(opt.domains))):
        assert twin == opt.domains == {}


def test_domains_of_torchopt_are_those_of_the_names_it_shares():
    torchopt = pytest.importorskip("torchopt")
    opt = hft.from_torchopt(torchopt.sgd, lr=0.1)
    assert opt.domains == domains_of(("lr", "momentum", "dampening", "weight_decay"))
    assert "eps_root" not in hft.from_torchopt(torchopt.adam, lr=0.1).domains


# -- a tuner keeps values in them -----------------------------------------------------------------------------------


def test_names_of_ones_own_are_bounded_by_nothing():
    """``alpha`` is in [0, 1] in RMSprop; and a momentum that may be given above 1 is not tuned there."""
    tuned = hft.hyper(own(3.0), by=hft.sgd(lr=1e-4), over="alpha")
    assert moved(tuned)["alpha"] > 2.9
    bounded = hft.hyper(own(3.0, domains=domains_of(["alpha"])), by=hft.sgd(lr=1e-4), over="alpha")
    assert moved(bounded)["alpha"] == 1
    assert hft.sgd(momentum=1.2).hparams["momentum"] == 1.2
    assert 0 <= moved(hft.hyper(hft.sgd(lr=0.1, momentum=0.9), by=hft.sgd(lr=1e3), over="momentum"))["momentum"] < 1


def test_hparams_of_the_loss_are_bounded_by_nothing():
    def weighed(params, x, h):
        return h["alpha"] * loss(params, x)

    def run(**options):
        given = {"loss": {"alpha": number(3.0), "lr": number(-2.0)}}
        return rounds(("lr", "loss.alpha"), train_loss=weighed, hparams=given, outer_steps=1, **options)[0]

    free, logarithm = run(), run(constrain={"loss.alpha": "log"})
    assert free.tuned["loss.alpha"] > 1
    slope = logarithm.hypergradient["loss.alpha"].item()
    assert logarithm.tuned["loss.alpha"].item() == pytest.approx(3 * math.exp(-0.1 * 3 * slope))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["betas", "momentum"])
def test_an_open_bound_is_not_reached_in_any_precision(name: str, dtype: torch.dtype):
    below = DOMAINS[name].clip(number(1.5, dtype))
    assert below < 1
    assert below + torch.finfo(dtype).eps / 2 == 1  # the number next to it
    assert DOMAINS["lr"].clip(number(math.inf, dtype)).isfinite()


# -- what is tuned already ------------------------------------------------------------------------------------------


def tower() -> hft.Optimizer:
    inner = hft.hyper(hft.adam(lr=0.1), by=hft.sgd(lr=1e-3), over="betas")
    return hft.hyper(inner, by=hft.hyper(hft.sgd(lr=1e-3), by=hft.sgd(), over="lr"), over=("by.lr", "base.eps"))


@pytest.mark.parametrize("wrap", [lambda opt: opt, *WRAPPED.values()], ids=["bare", *WRAPPED])
@pytest.mark.parametrize(
    "over",
    ["base.by.lr", "base.base.eps", "base.base.betas", "base.base.betas.0", "base", "base.base", "by.base.lr", "by"],
)
def test_what_is_tuned_already_is_not_tuned_again(wrap, over: str):
    with pytest.raises(ValueError, match=rf"over names \['{over}'\], which base already tunes"):
        hft.hyper(wrap(tower()), by=hft.sgd(), over=over)


@pytest.mark.parametrize("wrap", [lambda opt: opt, *WRAPPED.values()], ids=["bare", *WRAPPED])
def test_what_lies_beside_it_is_tuned(wrap):
    for over in ("base.base.lr", "base.by.momentum", "by.by", "by.by.lr", "by.base.momentum"):
        assert hft.hyper(wrap(tower()), by=hft.sgd(), over=over).tunes[0] == f"base.{over}"


def test_what_is_tuned_is_named_by_its_path():
    assert tower().tunes == ("base.by.lr", "base.base.eps", "base.base.betas", "by.base.lr")
    inner = hft.hyper(hft.adam(), by=hft.sgd(), over="betas.0")
    assert hft.hyper(inner, by=hft.sgd(), over="base.betas.1").tunes == ("base.base.betas.1", "base.base.betas.0")
    with pytest.raises(ValueError, match="already tunes"):
        hft.hyper(inner, by=hft.sgd(), over="base.betas")
    anchor = {"fc": number(0.0), "fc.weight": number(0.0)}  # of which one is not inside the other
    inner = hft.hyper(hft.projected(hft.sgd(), anchor, radius=1.0), by=hft.sgd(), over="radius.fc")
    assert hft.hyper(inner, by=hft.sgd(), over="base.radius.fc.weight").tunes[0] == "base.base.radius.fc.weight"
