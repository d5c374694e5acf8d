"""Bases with two modes: what is deployed is held, what is trained follows, and both to the last bit."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

from ..support.given_bases import GRADIENT, Averaged, Kept, run, weights


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_of_a_schedule_free_base_the_deployed_weights_are_held(norm):
    """MARS-SP around it, against a loop by hand: x is projected, z is free, y is between them."""
    p = weights()
    w0, radius, lr, beta = p.detach().clone(), 0.12, 0.1, 0.9
    opt = hft.MARSSP(Averaged([p], lr, beta), radius=radius, norm=norm)
    x, z = w0.clone(), w0.clone()
    opt.train()
    for t in range(6):
        run(p, opt, range(t, t + 1))
        z = z - lr * GRADIENT * (1 + 0.3 * t)
        x = x + (z - x) / (t + 1)
        c = x - w0
        n = (c.abs().sum(1, keepdim=True) if norm == "mars" else c.norm()) + 1e-8
        x = w0 + (radius / n).clamp(max=1) * c
        torch.testing.assert_close(p.detach(), (1 - beta) * z + beta * x, rtol=1e-12, atol=1e-12)
    opt.eval()
    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-12)
    assert (p.detach() - w0).abs().sum() > 0.9 * radius
    with pytest.raises(RuntimeError, match="Averaged is not in its training mode; call train"):
        opt.step()


def test_a_base_whose_trained_weights_do_not_follow_is_refused():
    p = weights()
    opt = hft.FTP(Kept([p]))
    opt.train()
    p.grad = GRADIENT
    with pytest.raises(RuntimeError, match="Kept trains other weights than those it deploys"):
        opt.step()


def test_a_base_that_does_not_say_its_mode_is_refused_before_it_moves():
    class Silent(torch.optim.SGD):
        def train(self) -> None: ...
        def eval(self) -> None: ...

    p = weights()
    before = p.detach().clone()
    opt = hft.FTP(Silent([p], lr=0.1))
    with pytest.raises(RuntimeError, match="Silent has train.*no train_mode that says"):
        run(p, opt, range(1))
    assert torch.equal(p, before)
    assert not opt.state


def test_modes_are_passed_over_where_there_are_none():
    p = weights()
    for opt in (hft.FTPSGD([p], lr=0.1), hft.FTP(torch.optim.SGD([p], lr=0.1))):
        opt.train()
        opt.eval()


def test_weights_that_no_rule_moves_are_those_of_the_base_alone():
    """To the last bit, though to go to and fro rounds them: excluded ones, and those without a gradient."""

    def steps(wrap: Any) -> torch.Tensor:
        torch.manual_seed(0)
        held, out, idle = (torch.nn.Parameter(torch.randn(9, 9)) for _ in range(3))
        opt = wrap(Averaged([{"params": [("held", held), ("idle", idle)]}, {"params": [("out", out)], "beta": 0.7}]))
        opt.train()
        for t in range(6):
            for p in (held, out, idle):
                p.grad = torch.randn(9, 9) if p is not idle or t < 3 else None
            before = idle.detach().clone()
            opt.step()
            assert t < 3 or torch.equal(idle, before)
        return out.detach()

    assert torch.equal(steps(lambda base: hft.MARSSP(base, radius=9.0, exclude="out")), steps(lambda base: base))


def test_a_step_that_is_refused_leaves_both_modes_as_they_were():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(2, 3)) for _ in range(3)]
    opt = hft.FTP(Averaged([{"params": [p], "beta": beta} for p, beta in zip(params, (0.9, 0.7, 0.6), strict=True)]))
    opt.train()

    def gradients() -> None:
        for p in params:
            p.grad = torch.randn(2, 3)

    for _ in range(3):
        gradients()
        opt.step()
    gradients()
    before = [p.detach().clone() for p in params]
    beta, opt.param_groups[2]["beta"] = opt.param_groups[2]["beta"], 0.0  # the third one cannot go to eval
    with pytest.raises(RuntimeError, match=r"eval\(\) failed within a step"):
        opt.step()
    assert all(map(torch.equal, params, before))
    assert all(group["train_mode"] for group in opt.param_groups)
    opt.param_groups[2]["beta"] = beta
    params[1].grad = torch.zeros(2, 3).to_sparse()
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        opt.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("wrap", [hft.FTP, hft.SPD])
def test_a_schedule_free_run_goes_on_bit_for_bit_held_and_not(wrap):
    """The first step of an optimizer also looks whether a base's modes can be trusted; that must not round them."""
    ends, saved = [], None
    for resumed in (False, True):
        params = [torch.nn.Parameter(w) for w in torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))]
        opt = wrap(Averaged([("held", params[0]), ("out", params[1])], beta=0.6), exclude="out")
        opt.train()
        g = torch.Generator().manual_seed(1)
        for t in range(8):
            if t == 4 and not resumed:
                saved = copy.deepcopy(([p.detach() for p in params], opt.state_dict()))
            elif t == 4 and saved:
                for p, value in zip(params, saved[0], strict=True):
                    p.data.copy_(value)
                opt.load_state_dict(saved[1])
            for p in params:
                p.grad = torch.randn(9, 9, generator=g)
                p.grad = p.grad if not resumed or t >= 4 else None
            opt.step()
        ends.append([p.detach() for p in params])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    "first",
    [torch.ones(0, 3), torch.full((2,), 4096.0, dtype=torch.float16), torch.full((2,), float("nan"))],
    ids=["empty", "large in 16 bits", "NaN"],
)
def test_whether_weights_follow_is_seen_whatever_the_first_one_is(first):
    for base in (Averaged, Kept):
        p, q = torch.nn.Parameter(first.clone()), weights()
        opt = hft.MARSSP(base([p, q]), radius=1.0)
        opt.train()
        p.grad, q.grad = torch.zeros_like(p), GRADIENT
        if base is Averaged:
            opt.step()
        else:
            with pytest.raises(RuntimeError, match="Kept trains other weights than those it deploys"):
                opt.step()


def test_modes_are_those_of_the_state_that_was_put_in():
    p = weights()
    opt = hft.MARSSP(Averaged([p]), radius=9.0)
    opt.train()
    run(p, opt, range(3))
    state: Any = defaultdict(dict)
    state[p] = {**opt.state[p], "z": p.detach().clone()}
    opt.state = state
    before = p.detach().clone()
    opt.eval()
    assert torch.equal(p.detach(), before)  # z is where the trained weights are
