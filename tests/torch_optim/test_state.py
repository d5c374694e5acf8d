"""State of a rule and of a base beside each other: what is made, fitted, left alone."""

from __future__ import annotations

import copy
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support import given_bases
from ..support.compare import kept, same
from ..support.given_bases import run, weights


class Counting(torch.optim.Optimizer):
    """Gradient descent that counts in Python, makes its state within its step, and keeps what is no tensor."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:  # as many do: an empty state is a first step
                        state["step"] = 0
                    state["step"] += 1
                    state["note"] = ("last", state["step"])
                    p.add_(p.grad, alpha=-group["lr"] / state["step"])


WRAPPERS = {**given_bases.WRAPPERS, "DiGraP": hft.DiGraP}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_base_that_counts_in_python_is_left_to_itself(wrap):
    """Its state is neither read nor changed, and a resumed run is the same to the last bit."""

    def fresh() -> tuple[torch.nn.Parameter, Any]:
        p = weights()
        return p, wrap(Counting([p]))

    p, opt = fresh()
    there = run(p, opt, range(4))
    saved = copy.deepcopy(opt.state_dict())
    assert (type(opt.state[p]["step"]), opt.state[p]["step"], opt.state[p]["note"]) == (int, 4, ("last", 4))
    assert torch.equal(opt.state[p]["anchor"], weights())  # that of the first step
    straight = run(p, opt, range(4, 7))
    again, second = fresh()
    second.load_state_dict(saved)
    again.data.copy_(there)
    assert torch.equal(run(again, second, range(4, 7)), straight)


class Clearing(torch.optim.SGD):
    """Takes its gradients away within its step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        self.zero_grad(set_to_none=True)


def test_gradients_that_a_rule_leaves_alone_are_left_to_the_base():
    p = weights()
    opt = hft.FTP(Clearing([p], lr=0.1, foreach=False))
    run(p, opt, range(2))
    assert p.grad is None
    assert opt.execution == "single"


@pytest.mark.parametrize("wrap", [lambda base: hft.L2SP(base, strength=0.1), hft.DiGraP], ids=["L2SP", "DiGraP"])
def test_a_gradient_of_a_former_dtype_is_refused_before_anything_moves(wrap):
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = wrap(torch.optim.SGD([p], lr=0.1, momentum=0.9))
    for _ in range(2):
        p.grad = torch.ones_like(p)
        if opt.state:
            break
        opt.step()
    p.data = p.data.double()
    before = kept([p, p.grad, {key: x.double() for key, x in opt.state[p].items()}])
    with pytest.raises(RuntimeError, match="gradient"):
        opt.step()
    assert same(kept([p, p.grad, {key: x.double() for key, x in opt.state[p].items()}]), before)


def test_state_that_is_made_anew_is_lean_too():
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = hft.FTPAdamW([p], lr=0.1, lean=True)
    for again in (False, True):
        if again:
            opt.state.clear()
        p.grad = torch.ones_like(p)
        opt.step()
        assert opt.state[p]["deviation"].dtype == torch.bfloat16


@pytest.mark.parametrize("foreach", [False, True])
def test_a_base_that_writes_into_its_gradients_changes_no_rule(foreach):
    """torch's foreach SGD does under nesterov; selective projection decay looks at the gradient afterwards."""
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    opt = hft.SPD(torch.optim.SGD([p], lr=1.0, momentum=0.9, nesterov=True, foreach=foreach))
    pure = hft.spd(hft.sgd(lr=1.0, momentum=0.9, nesterov=True), torch.zeros(2, dtype=torch.float64))
    w = torch.zeros(2, dtype=torch.float64)
    state = pure.init(w)
    for g in (-1.0, 0.1, 0.1):
        p.grad = torch.full_like(p, g)
        opt.step()
        w, state = pure.update(torch.full_like(w, g), state, w)
        torch.testing.assert_close(p.detach(), w, rtol=1e-15, atol=1e-15)


class WithoutLr(torch.optim.Optimizer):
    """Has no learning rate."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        raise AssertionError


@pytest.mark.parametrize("wrap", [partial(hft.L2SP, decoupled=True), hft.CautiousDecay, hft.DiGraP])
def test_a_rule_that_needs_a_learning_rate_says_so_when_it_is_built(wrap):
    with pytest.raises(ValueError, match="has no lr"):
        wrap(WithoutLr([torch.nn.Parameter(torch.ones(2))]))


@pytest.mark.parametrize("make", [hft.FTPAdamW, lambda p, **o: hft.SPD(torch.optim.SGD(p, lr=0.1), **o)])
def test_an_anchor_in_the_memory_of_the_weights_stays_where_it_was(make):
    """A state_dict is such a one: weights that are loaded before the first step must not take it along."""
    model = torch.nn.Linear(4, 2).double()
    start = copy.deepcopy(model.state_dict())
    opt = make(model.named_parameters(), anchor=model.state_dict())
    model.load_state_dict({name: x + 0.5 for name, x in start.items()})
    model(torch.randn(8, 4, dtype=torch.float64)).square().mean().backward()
    opt.step()
    for name, p in model.named_parameters():
        assert torch.equal(opt.state[p]["anchor"], start[name])


def test_an_anchor_that_has_changed_before_its_layer_is_added_is_refused():
    """A copy of the optimizer has values of its own."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))
    named, anchor = [*model.named_parameters()], dict(model.state_dict())
    opt = hft.FTPAdamW(named[:2], lr=0.1, anchor=anchor)
    with torch.no_grad():
        model[1].weight.mul_(0.5)
    twin = copy.deepcopy(opt)
    with pytest.raises(RuntimeError, match="anchor entry '1.weight' has changed since"):
        opt.add_param_group({"params": named[2:]})
    assert len(opt.param_groups) == 1
    twin.add_param_group({"params": named[2:]})


@pytest.mark.parametrize("put_in", [False, True])
def test_state_of_other_kinds_is_fitted_to_the_kernels(put_in: bool):
    """Swapped in, or loaded."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    opt = hft.FTPAdamW([p], lr=0.1)
    for t in range(4):
        if t == 2:
            other = {key: x.long() if "step" in key else x.double() for key, x in opt.state[p].items()} | {"step": 2}
            if put_in:
                opt.state = defaultdict(dict, {p: other})
            else:
                opt.load_state_dict({**opt.state_dict(), "state": {0: other}})
        p.grad = torch.ones_like(p)
        opt.step()
    assert {x.dtype for key, x in opt.state[p].items() if key != "anchor"} == {torch.float32}
    assert {opt.state[p][key].item() for key in ("step", "radius_step")} == {4.0}


def test_an_anchor_that_does_not_fit_at_a_first_step_leaves_no_state():
    w = torch.ones(2, 3)
    p = torch.nn.Parameter(w.clone())
    opt = hft.FTPSGD([("w", p)], lr=0.1, momentum=0.9, anchor={"w": w})
    p.data, p.grad = torch.ones(4, 3), torch.ones(4, 3)
    with pytest.raises(RuntimeError):
        opt.step()
    assert not opt.state[p]
    assert torch.equal(p.detach(), torch.ones(4, 3))
