"""How far the first step may go: by every execution, near the anchor and off it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft

from ..support.draws import gaps, normal, seeds, several, tenths
from ..support.executions import FLAGS, every_execution

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
    "sgd": (hft.sgd(lr=0.1, momentum=0.9), lambda p, flags, **k: hft.FTPSGD(p, 0.1, 0.9, **flags, **k)),
    "around": (hft.sgd(lr=0.1), lambda p, flags, **k: hft.FTP(torch.optim.SGD(p, lr=0.1, **flags), **k)),
}


@settings(max_examples=40)
@given(
    seed=seeds, sizes=several, execution=st.sampled_from(sorted(FLAGS)), base=st.sampled_from(sorted(MAKERS)),
    norm=st.sampled_from(["mars", "l2"]), gradient=st.sampled_from(["paper", "exact"]), kappa=tenths(0, 10),
    radius_start=st.none() | st.floats(0, 1e40), shift=st.sampled_from([0.0, 0.3]), absent=gaps(4, STEPS),
)  # fmt: skip
def test_every_execution_is_the_pure_function(
    seed, sizes, execution, base, norm, gradient, kappa, radius_start, shift, absent
):
    """Weights and radii, for FTPAdamW, FTPSGD and FTP around SGD; where a gradient is None, and weights are changed."""
    optimizer, make = MAKERS[base]
    params = {str(i): w for i, w in enumerate(normal(seed, sizes))}
    options = {"norm": norm, "gradient": gradient, "kappa": kappa, "radius_start": radius_start}
    anchor = {name: w - shift for name, w in params.items()}
    named = {name: torch.nn.Parameter(w.clone()) for name, w in params.items()}
    opt, pure = make(named.items(), FLAGS[execution], anchor=anchor, **options), hft.ftp(optimizer, anchor, **options)
    state = pure.init(params)
    for t in range(STEPS):
        grads = dict(zip(params, normal(seed + 1 + t, sizes), strict=True))
        grads = {name: None if (t, i) in absent else g for i, (name, g) in enumerate(grads.items())}
        if t == 3:  # by somebody else: they count as they are
            params = {name: 1.25 * w for name, w in params.items()}
            for p in named.values():
                p.data.mul_(1.25)
        params, state = pure.update(grads, state, params)
        for name, p in named.items():
            p.grad = None if grads[name] is None else grads[name].clone()
        opt.step()
    assert absent or opt.execution == execution
    for name, p in named.items():
        # Five steps of two dozen roundings; a hypergradient, which sums up to 64 terms, may cancel to 1e-3 of them.
        torch.testing.assert_close(p.detach(), params[name], atol=1e-11, rtol=0)
        if opt.state.get(p):  # it has made a step
            assert opt.radii()[name] == pytest.approx(state.radius[name].item(), abs=1e-11)


def first(radius_start: float | None, execution: str, dtype: torch.dtype = F64, **options: Any) -> tuple[Tensor, float]:
    """Weights after one step of SGD, and the radius."""
    w = torch.nn.Parameter(start()["w"].to(dtype))
    opt = hft.FTPSGD([w], lr=0.1, radius_start=radius_start, **FLAGS[execution], **options)
    w.grad = gradients()[0]["w"].to(dtype)
    opt.step()
    return w.detach(), opt.radii()[0]


@every_execution
def test_a_large_one_leaves_the_first_step_to_the_base(execution):
    """Also one that no float32 holds."""
    moved = -0.1 * gradients()[0]["w"]
    w, radius = first(10.0, execution)
    torch.testing.assert_close(w, start()["w"] + moved, atol=1e-14, rtol=0)
    assert radius == pytest.approx(moved.abs().sum(1).max().item() + 1e-8, abs=1e-14)
    w, _ = first(1e300, execution, torch.float32)
    torch.testing.assert_close(w, (start()["w"] + moved).float(), rtol=0, atol=4 * torch.finfo(w.dtype).eps)


@every_execution
def test_a_small_one_bounds_it_and_none_is_the_floor(execution):
    for start_at, radius in ((0.05, 0.05), (None, 1e-8), (0.0, 1e-8)):
        w, found = first(start_at, execution)
        assert found == radius
        longest = (w - start()["w"]).abs().sum(1).max().item()
        assert longest == pytest.approx(radius, rel=1e-6) or longest <= 1e-8 + 1e-15  # n has 1e-8 more


@every_execution
def test_off_the_anchor_none_holds_the_weights_and_a_small_one_throws_them_back(execution):
    """The second as the authors' code does."""
    held, radius = first(None, execution, anchor="zero")
    assert (held - start()["w"]).abs().max() < 0.2 < radius
    thrown, radius = first(1e-8, execution, anchor="zero")
    assert thrown.abs().sum(1).max() <= 1e-8 + 1e-15
    assert radius == 1e-8


def test_a_scheduler_without_patience_takes_the_first_step_for_a_plateau():
    """As docs/gotchas.md says; not under a first radius that is large."""
    for radius_start, lr in ((None, 0.001), (10.0, 0.01)):
        w = torch.nn.Parameter(start()["w"])
        opt = hft.FTPAdamW([w], lr=0.01, radius_start=radius_start)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
        for _ in range(3):
            loss, w.grad = w.square().sum().item(), 2 * w.detach()
            opt.step()
            schedule.step(loss)
        assert opt.param_groups[0]["lr"] == lr
