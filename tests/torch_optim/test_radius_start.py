"""How far the first step may go: by every execution, near the anchor and off it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_ftp as hft

from ..support.executions import FLAGS, every_execution
from ..support.pairs import pairs

F64 = torch.float64
STEPS = 5


def start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(4, 3, dtype=F64), "b": torch.randn(4, dtype=F64)}


def gradients() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{name: torch.randn_like(x) for name, x in start().items()} for _ in range(STEPS)]


MAKERS = {
    "adamw": (hft.adamw(lr=0.1, weight_decay=0.0), lambda p, flags, **k: hft.FTPAdamW(p, lr=0.1, **flags, **k)),
    "sgd": (
        hft.sgd(lr=0.1, momentum=0.9),
        lambda p, flags, **k: hft.FTPSGD(p, lr=0.1, momentum=0.9, **flags, **k),
    ),
    "around": (hft.sgd(lr=0.1), lambda p, flags, **k: hft.FTP(torch.optim.SGD(p, lr=0.1, **flags), **k)),
}
CHOICES = pairs({
    "execution": list(FLAGS), "base": list(MAKERS), "radius_start": [None, 0.05, 10.0], "norm": ["mars", "l2"],
    "shift": [0.0, 0.3],
})  # fmt: skip


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_every_execution_is_the_pure_function(chosen: dict[str, Any]):
    execution, base, radius_start, norm, shift = chosen.values()
    optimizer, make = MAKERS[base]
    anchor = {name: x - shift for name, x in start().items()}
    options = {"norm": norm, "radius_start": radius_start}
    named = {name: torch.nn.Parameter(x) for name, x in start().items()}
    opt = make(named.items(), FLAGS[execution], anchor=anchor, **options)
    pure, params = hft.ftp(optimizer, anchor, **options), start()
    state = pure.init(params)
    for grads in gradients():
        params, state = pure.update(grads, state, params)
        for name, p in named.items():
            p.grad = grads[name].clone()
        opt.step()
    assert opt.execution == execution
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), params[name], atol=1e-12, rtol=0)
        assert opt.radii()[name] == pytest.approx(state.radius[name].item(), abs=1e-12)


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
    assert radius == pytest.approx(moved.abs().sum(1).max().item() + 1e-8, abs=1e-14)


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
