"""Maps to free values, and domains that tuned values are kept in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperopt_ftp as hft
from hyperopt_ftp import tree
from hyperopt_ftp.hparams import DOMAINS, Domain
from hyperopt_ftp.optimizers.constraints import Constraints
from hyperopt_ftp.testing import strategies


def number(x: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(x, dtype=dtype)


ADAM, LEVELS = hft.adam().domains, hft.hyper(hft.sgd(), by=hft.sgd(), over="lr").domains
TOWER = hft.hyper(hft.hyper(hft.sgd(), by=hft.adam(), over="lr"), by=hft.sgd(), over="by.eps").domains
# Keys of a radius are not names of hparams.
RADII = hft.projected(hft.sgd(), {"lr": torch.zeros(2), "alpha": {"eps": torch.zeros(2)}}, radius=2.0).domains
DOTS = {"by": {"rate.x": Domain(0.0, 1.0)}, "rate": Domain(5.0, 6.0)}
#: Domains, free values by path, and what they become.
KEPT = [
    (ADAM, {"betas": (-1.0, 2.0)}, {"betas": (0.0, 1 - 2**-53)}),
    (TOWER, {"base.by.betas": (-1.0, 2.0)}, {"base.by.betas": (0.0, 1 - 2**-53)}),
    (ADAM, {"betas.1": 2.0, "lr": -1.0}, {"betas.1": 1 - 2**-53, "lr": 0.0}),
    (TOWER, {"base.by.betas.1": 2.0, "base.by.lr": -1.0}, {"base.by.betas.1": 1 - 2**-53, "base.by.lr": 0.0}),
    (LEVELS, {"base": {"lr": -1.0, "dampening": -1.0}}, {"base": {"lr": 0.0, "dampening": -1.0}}),
    (DOTS, {"by.rate.x": 9.0, "by.rate": 9.0}, {"by.rate.x": 1.0, "by.rate": 9.0}),
    (
        RADII,
        {"radius": {"lr": 5.0, "alpha.eps": -5.0}, "lr": -1.0},
        {"radius": {"lr": 5.0, "alpha.eps": 1e-8}, "lr": 0.0},
    ),
    (RADII, {"radius.alpha.eps": 7.0}, {"radius.alpha.eps": 7.0}),
]


@pytest.mark.parametrize(("domains", "free", "want"), KEPT)
def test_values_are_kept_in_domains_of_their_own(domains, free, want):
    free, want = tree.map_tree(number, (free, want))
    assert Constraints(tuple(free), None, domains).natural(free) == want


@given(kind=st.sampled_from(["log", "logit"]), shape=strategies.shapes(), seed=st.integers(0, 999))
def test_maps_of_tensors_of_any_shape(kind: str, shape: tuple[int, ...], seed: int):
    x = 0.1 + 0.8 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = {"loss.weights": {"a": x, "b": [x / 2]}}
    constraints = Constraints(("loss.weights",), {"loss.weights": kind}, hft.sgd().domains)
    constraints.check(values)
    free = constraints.free(values)
    # A logarithm and back, of numbers from 0.05 to 0.9: two roundings of the logarithm, up to 3, and one of each map.
    torch.testing.assert_close(constraints.natural(free), values, rtol=1e-14, atol=1e-14)
    slope = constraints.chain({"loss.weights": {"a": torch.ones_like(x), "b": [torch.ones_like(x)]}}, values)
    for u, h in zip(tree.leaves(free), tree.leaves(slope), strict=True):
        back = torch.exp if kind == "log" else torch.sigmoid
        torch.testing.assert_close(h, torch.func.grad(lambda u: back(u).sum())(u), rtol=1e-14, atol=1e-14)  # noqa: B023


@settings(max_examples=50)
@given(
    name=st.sampled_from([*DOMAINS]), x=st.floats(-1e6, 1e6),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_what_a_domain_clips_is_inside_and_stays(name: str, x: float, dtype: torch.dtype):
    domain = DOMAINS[name]
    once = domain.clip(number(x, dtype))
    assert once.dtype == dtype
    assert domain.holds(once.item())
    assert once >= domain.floor
    assert torch.equal(domain.clip(once), once)
    if domain.holds(number(x, dtype).item()) and domain.floor <= x < domain.ceiling - 0.01:
        assert once == number(x, dtype)  # a number inside is kept


def test_maps_are_for_domains_that_hold_their_range():
    with pytest.raises(ValueError, match="'log' is for positive values"):
        Constraints(("base",), {"base": "log"}, LEVELS)
    for name in ("lr", "momentum", "betas", "alpha", "dampening"):
        Constraints((name,), {name: "logit"}, DOMAINS)
    for domain, text in ((Domain(0.0, 0.5), r"\[0, 0.5\]"), (Domain(0.5, 2.0), r"\[0.5, 2\]")):
        with pytest.raises(ValueError, match=rf"'logit' is for values in \(0, 1\), its domain is {text}"):
            Constraints(("share",), {"share": "logit"}, {"share": domain})


@pytest.mark.parametrize(("kind", "u"), [("log", 0.5), ("logit", 50.0)])
def test_what_a_map_gives_is_kept_in_the_domain_too(kind: str, u: float):
    """exp(0.5) is above 1, and 1 / (1 + exp(-50)) rounds to it."""
    natural = Constraints(("betas.0",), {"betas.0": kind}, hft.adam().domains).natural
    assert natural({"betas.0": number(u)})["betas.0"] == 1 - 2**-53
    for far in (-1e4, 1e4):  # and where there is none, in the range of the map
        x = Constraints(("loss.x",), {"loss.x": kind}, {}).natural({"loss.x": number(far)})["loss.x"]
        assert 0 < x < (1 if kind == "logit" else math.inf)
