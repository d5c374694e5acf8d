"""How far the first step may go: by every execution, near the anchor and off it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp.anchored import row_norm

from ..support.executions import FLAGS, every_execution

F64 = torch.float64
STEPS = 5


def start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(4, 3, dtype=F64), "b": torch.randn(4, dtype=F64)}


def gradients() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{name: torch.randn_like(x) for name, x in start().items()} for _ in range(STEPS)]


def steps(make: Any) -> tuple[dict[str, Tensor], dict[str, float], Any]:
    named = [(name, torch.nn.Parameter(x)) for name, x in start().items()]
    opt = make(named)
    for grads in gradients():
        for name, p in named:
            p.grad = grads[name].clone()
        opt.step()
    return {name: p.detach() for name, p in named}, opt.radii(), opt


def pure(base: hft.Optimizer, anchor: dict[str, Tensor], **options: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    opt, params = hft.ftp(base, anchor, **options), start()
    state = opt.init(params)
    for grads in gradients():
        params, state = opt.update(grads, state, params)
    return params, {name: radius.item() for name, radius in state.radius.items()}


MAKERS = {
    "adamw": (hft.adamw(lr=0.1, weight_decay=0.0), lambda p, **k: hft.FTPAdamW(p, lr=0.1, **k)),
    "sgd": (hft.sgd(lr=0.1, momentum=0.9), lambda p, **k: hft.FTPSGD(p, lr=0.1, momentum=0.9, **k)),
}


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("radius_start", [None, 0.05, 10.0])
@pytest.mark.parametrize("base", MAKERS)
@every_execution
def test_every_execution_is_the_pure_function(execution, base, radius_start, norm, shift):
    optimizer, make = MAKERS[base]
    anchor = {name: x - shift for name, x in start().items()}
    options = {"norm": norm, "radius_start": radius_start}
    expected, radii = pure(optimizer, anchor, **options)
    params, found, opt = steps(lambda p: make(p, anchor=anchor, **options, **FLAGS[execution]))
    assert opt.execution == execution
    for name, x in expected.items():
        torch.testing.assert_close(params[name], x, atol=1e-12, rtol=0)
        assert found[name] == pytest.approx(radii[name], abs=1e-12)


@pytest.mark.parametrize("multi", [False, True])
def test_around_a_base_that_is_given(multi):
    expected, radii = pure(hft.sgd(lr=0.1), start(), radius_start=0.05)
    make = lambda p: hft.FTP(torch.optim.SGD(p, lr=0.1, foreach=multi), radius_start=0.05)  # noqa: E731
    params, found, _ = steps(make)
    for name, x in expected.items():
        torch.testing.assert_close(params[name], x, atol=1e-12, rtol=0)
        assert found[name] == pytest.approx(radii[name], abs=1e-12)


def first(radius_start: float | None, **options: Any) -> tuple[Tensor, float]:
    w = torch.nn.Parameter(start()["w"])
    opt = hft.FTPSGD([w], lr=0.1, radius_start=radius_start, **options)
    w.grad = gradients()[0]["w"]
    opt.step()
    return w.detach(), opt.radii()[0]


def test_a_large_one_leaves_the_first_step_to_the_base():
    w, radius = first(10.0)
    moved = -0.1 * gradients()[0]["w"]
    torch.testing.assert_close(w, start()["w"] + moved, atol=1e-14, rtol=0)
    assert radius == pytest.approx(row_norm(moved).max().item(), abs=1e-14)


def test_a_small_one_bounds_it_and_none_is_the_floor():
    w, radius = first(0.05)
    longest = (w - start()["w"]).abs().sum(1).max().item()
    assert radius == 0.05
    assert longest == pytest.approx(0.05, rel=1e-6)  # n has 1e-8 more
    for lowest in (None, 0.0):
        w, radius = first(lowest)
        assert radius == 1e-8
        assert (w - start()["w"]).abs().sum(1).max() <= 1e-8 + 1e-15


@every_execution
def test_off_the_anchor_none_holds_the_weights_and_a_small_one_throws_them_back(execution):
    """The second as the authors' code does."""
    held, radius = first(None, anchor="zero", **FLAGS[execution])
    assert (held - start()["w"]).abs().max() < 0.2 < radius
    thrown, radius = first(1e-8, anchor="zero", **FLAGS[execution])
    assert thrown.abs().sum(1).max() <= 1e-8 + 1e-15
    assert radius == 1e-8


@pytest.mark.parametrize(("radius_start", "lr"), [(None, 0.001), (10.0, 0.01)])
def test_a_scheduler_without_patience_takes_the_first_step_for_a_plateau(radius_start, lr):
    """As docs/gotchas.md says."""
    w = torch.nn.Parameter(start()["w"])
    opt = hft.FTPAdamW([w], lr=0.01, radius_start=radius_start)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    for _ in range(3):
        opt.zero_grad()
        loss = w.square().sum()
        loss.backward()
        opt.step()
        schedule.step(loss.item())
    assert opt.param_groups[0]["lr"] == lr


def test_a_group_has_its_own():
    named = [(name, torch.nn.Parameter(x)) for name, x in start().items()]
    opt = hft.FTPAdamW([{"params": [named[0]], "radius_start": 0.05}, {"params": [named[1]]}], lr=0.1)
    for name, p in named:
        p.grad = gradients()[0][name]
    opt.step()
    assert opt.radii() == {"w": 0.05, "b": 1e-8}


@every_execution
def test_one_that_no_float32_holds_leaves_the_first_step_to_the_base(execution):
    p, q = (torch.nn.Parameter(torch.ones(2, 3)) for _ in "pq")
    p.grad = q.grad = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.1, -0.1]])
    hft.FTPSGD([p], lr=0.1, radius_start=1e300, **FLAGS[execution]).step()
    torch.optim.SGD([q], lr=0.1).step()
    torch.testing.assert_close(p, q, rtol=2 * torch.finfo(torch.float32).eps, atol=0)
