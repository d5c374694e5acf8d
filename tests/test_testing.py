"""Each check of `hyperopt_ftp.testing` fails for the mistake that it is for."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.testing import CHECKS, check_optimizer

LR = {"lr": torch.tensor(0.1, dtype=torch.float64)}


def made(update: Any, state: Any = ()) -> hft.Optimizer:
    def init(params: Any, hparams: Any = None) -> Any:
        return state

    return hft.Optimizer(init, lambda g, s, p, h=None: update(g, s, p, LR | (h or {})), LR)


def moved(g: Any, p: Any, by: Any) -> Any:
    return {n: p[n] if g[n] is None else (p[n] - by(n)).to(p[n].dtype) for n in p}


def counting() -> Any:
    steps = [0]

    def update(g, s, p, h):
        steps[0] += 1
        return moved(g, p, lambda n: h["lr"] * g[n] / steps[0]), s

    return update


def growing(g, s, p, h):
    s["t"] = torch.ones(())
    return moved(g, p, lambda n: h["lr"] * g[n]), s


def blind(g, s, p, h):
    filled = {n: torch.ones_like(p[n]) if g[n] is None else g[n] for n in p}
    return moved(filled, p, lambda n: h["lr"] * filled[n]), s


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (
            lambda g, s, p, h: ({n: p[n].sub_((h["lr"] * g[n]).to(p[n].dtype)) for n in p}, s),
            "pure: update has changed its params",
        ),
        (lambda g, s, p, h: (dict(p), s), "pure: 20 updates have not moved the params"),
        (lambda g, s, p, h: moved(g, p, lambda n: h["lr"] * g[n]), r"pure: update must return \(params, state\)"),
        (growing, "pure: update has changed its state"),
        (counting(), "pure: a second update of the same inputs gives something else"),
        (
            lambda g, s, p, h: ({n: p[n] - h["lr"] * g[n].double() for n in p}, s),
            "kept: 'w' of the params was .*float32.* and is .*float64",
        ),
        (
            lambda g, s, p, h: (moved(g, p, lambda n: h["lr"] * g[n]), {"count": torch.ones(())}),
            "kept: update returns state of another structure",
        ),
        (
            lambda g, s, p, h: (moved(g, p, lambda n: h["lr"].detach() * g[n] + 0.01 * h["lr"]), s),
            "derivatives: in 'lr' .*; a state in 16 bits .*larger eps",
        ),
        (
            lambda g, s, p, h: (moved(g, p, lambda n: float(h["lr"].detach()) * g[n]), s),
            r"derivatives: in 'lr' \[0.0\], by differences .*; detach\(\), .item\(\), float\(\)",
        ),
        (
            lambda g, s, p, h: (moved(g, p, lambda n: (h["lr"] + (h["lr"] * 0).sqrt()) * g[n]), s),
            "derivatives: in 'lr' .*nan",
        ),
        (
            lambda g, s, p, h: (moved(g, p, lambda n: h["lr"] * g[n] if h["lr"] > 0 else h["lr"]), s),
            "vmap over hparams: write torch.where for an if on a tensor, .*data-dependent",
        ),
        (blind, "gaps: a parameter moves without a gradient"),
    ],
)
def test_a_mistake_is_found(update, said: str):
    with pytest.raises(AssertionError, match=said):
        check_optimizer(made(update, {} if update is growing else ()))


class M(NamedTuple):
    step: Any
    m: Any


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda w, g, s, h, t: (w - h["lr"] * g / g.norm(), {"m": s["m"]}), r"apart: 'w' moves .*is not entrywise"),
        (lambda w, g, s, h, t: (w - h["lr"] * g.mul_(0.5), {"m": s["m"]}), "pure: update has changed its grads"),
        (lambda w, g, s, h, t: (w.sub_(h["lr"] * g), {"m": s["m"]}), "vmap over hparams: .* new tensors"),
        (
            lambda w, g, s, h, t: (w - h["lr"] * g / ((s["m"] + g**2).sqrt() + 0.1), {"m": s["m"] + g**2}),
            "zeros: the derivative in 'lr' is nan .*safe_sqrt",
        ),
        (lambda w, g, s, h, t: w - h["lr"] * g, r"rule must return \(w, s\), s a dict of \['m'\].*, got Tensor"),
        (lambda w, g, s, h, t: (w, s["m"], t), r"got \(Tensor, Tensor, Tensor\)"),
        (lambda w, g, s, h, t: (w - h["lr"] * g, s["m"]), r"got \(Tensor, Tensor\)"),
        (lambda w, g, s, h, t: (w, {"n": s["m"]}), r"got \(Tensor, a dict of \['n'\]\)"),
        (
            lambda w, g, s, h, t: (w - h["lr"] * g, {"m": g.mean()}),
            r"of the shapes \[\(16,\)\]; the rule makes \(16,\) and \[\(\)\] of them: .* or a rule of your own",
        ),
    ],
)
def test_a_mistake_in_a_rule_is_found(rule: Any, said: str):
    with pytest.raises(AssertionError, match=said):
        check_optimizer(hft.optimizers.by_rule(rule, M, hft.optimizers.to_tensors(lr=0.1), entrywise=True))


@pytest.mark.parametrize(
    ("kind", "hparams", "keeps", "said"),
    [
        (dict, LR, None, r"by_rule takes .*class State\(NamedTuple\).*, got .*<class 'dict'>"),
        (M(0, 0), LR, None, r"by_rule takes .*, got .*M\(step=0, m=0\)"),
        (M, None, None, r"hparams must be the defaults by name, as of to_tensors\(lr=0.1\), got None"),
        (M, LR, ["v"], r"keeps must be a list of fields of M, \['step', 'm'\], got \['v'\]"),
        (M, LR, "m", r"keeps must be a list of fields of M, .* got 'm'"),
    ],
)
def test_what_a_rule_is_given(kind: Any, hparams: Any, keeps: Any, said: str):
    with pytest.raises((TypeError, ValueError), match=said):
        hft.optimizers.by_rule(lambda w, g, s, h, t: (w, s), kind, hparams, keeps=keeps)


def test_numbers_of_any_name_and_a_rule_for_whole_tensors():
    def rule(w, g, s, h, t):
        m = h["beta"] * s["m"] + g
        return w - h["lr"] * m / (1 + torch.linalg.vector_norm(m)), {"m": m}

    check_optimizer(hft.optimizers.by_rule(rule, M, hft.optimizers.to_tensors(lr=0.1, beta=-3.0)))


@pytest.mark.parametrize("make", [hft.adam, hft.adamw, hft.rmsprop, hft.adagrad, hft.adamax, hft.lamb])
def test_defaults_whose_differences_need_short_steps_are_not_refused(make: Any):
    check_optimizer(make(lr=0.1))


@pytest.mark.parametrize("name", ["lr", "eps"])
def test_a_derivative_that_is_slightly_wrong_is_found_at_such_defaults(name: str):
    """By 2e-5 of itself; the differences of Adam's eps with the longest step are off by 1.2e-5 in themselves."""
    right = hft.adam(lr=0.1)

    def update(g, s, p, h=None):
        h = right.hparams | (h or {})
        slightly = h[name] + 2e-5 * (
            h[name] - h[name].detach()
        )  # the value of this number, and 1.00002 of its derivative
        return right.update(g, s, p, {**h, name: slightly})

    with pytest.raises(AssertionError, match=f"derivatives: in '{name}' "):
        check_optimizer(hft.Optimizer(right.init, update, right.hparams))


def test_what_is_right_is_not_refused():
    infinite = {"best": torch.tensor(float("inf"), dtype=torch.float64)}
    check_optimizer(made(lambda g, s, p, h: (moved(g, p, lambda n: h["lr"] * g[n]), s), infinite))
    check_optimizer(hft.sgd(lr=torch.tensor(0.1)))  # float32
    check_optimizer(hft.sgd(lr=torch.tensor(0.1, requires_grad=True)))
    check_optimizer(hft.accumulated(hft.adam(lr=0.1, eps=1e-2), 10), without=["gaps", "apart", "derivatives"])
    no_numbers = hft.Optimizer(lambda p, h=None: (), lambda g, s, p, h=None: (moved(g, p, lambda n: g[n]), s), {})
    check_optimizer(no_numbers)


def test_wrong_arguments():
    with pytest.raises(AssertionError, match="hparams must be a tree of floating-point tensors, and 'lr' is float"):
        check_optimizer(hft.sgd()._replace(hparams={"lr": 0.1}))
    with pytest.raises(AssertionError, match="the state must be a tree of tensors, and 't' is int"):
        check_optimizer(made(lambda g, s, p, h: (dict(p), s), {"t": 0}))
    with pytest.raises(ValueError, match="without must be one of 'pure', .* got 'derivative'; did you mean"):
        check_optimizer(hft.sgd(), without=["derivative"])
    with pytest.raises(TypeError, match="optimizer must be a pure optimizer"):
        check_optimizer(torch.optim.SGD)  # pyright: ignore
    assert list(CHECKS) == ["pure", "kept", "derivatives", "zeros", "vmap", "resume", "gaps", "apart"]
