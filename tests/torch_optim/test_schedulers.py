"""Every scheduler of torch on our classes: its numbers are those on torch's own optimizer, and the run follows them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

import hyperopt_ftp as hft

from ..support.compare import equal, kept, same
from ..support.contract import parameters, step
from ..support.pairs import pairs

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 6)], [3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, 0.001),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.05], total_steps=12),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6, power=2.0),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=4),
}
#: Each with torch's optimizer of the same numbers.
OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "FTPAdamW": (lambda p, **kw: hft.FTPAdamW(p, radius_lr=0.03, **kw), torch.optim.AdamW),
    "FTPSGD": (
        lambda p, **kw: hft.FTPSGD(p, momentum=0.9, radius_lr=0.03, **kw),
        lambda p: torch.optim.SGD(p, momentum=0.9),
    ),
    "FTP(AdamW)": (lambda p, **kw: hft.FTP(torch.optim.AdamW(p, **kw), radius_lr=0.03), torch.optim.AdamW),
    "L2SP(SGD)": (
        lambda p, **kw: hft.L2SP(torch.optim.SGD(p, momentum=0.9, **kw), strength=0.1),
        lambda p: torch.optim.SGD(p, momentum=0.9),
    ),
}
LOSSES = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 0.5]
STEPS = len(LOSSES)

CHOICES = pairs({"name": list(OPTIMIZERS), "scheduler": list(SCHEDULERS), "as_tensor": [False, True]})


def public(module: ModuleType) -> set[str]:
    return {
        name
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, LRScheduler) and found is not LRScheduler and name[0] != "_"
    }


def test_every_scheduler_of_torch_has_a_row():
    assert public(lr_scheduler) | public(swa_utils) == SCHEDULERS.keys()


def groups(as_tensor: bool) -> tuple[list[Any], list[dict[str, Any]]]:
    params = parameters()
    rates = [torch.tensor(lr, dtype=torch.float64) if as_tensor else lr for lr in (0.05, 0.02)]
    return params, [{"params": params[:2], "lr": rates[0]}, {"params": params[2:], "lr": rates[1]}]


def numbers(opt: Any) -> list[dict[str, Any]]:
    """What schedulers change, of each group."""
    return [
        kept({key: group[key] for key in ("lr", "momentum", "betas") if key in group}) for group in opt.param_groups
    ]


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_its_numbers_are_those_on_torchs_optimizer_and_the_run_follows(chosen: dict[str, Any]):
    """Against a run whose numbers are set by hand, to the last bit; a tensor is changed in place, as there."""
    name, scheduler, as_tensor = chosen.values()
    (ours, theirs), make = OPTIMIZERS[name], SCHEDULERS[scheduler]
    sides = [(*groups(as_tensor), ours), (*groups(as_tensor), theirs), (*groups(False), ours)]
    opt, plain, by_hand = opts = [build(its_groups) for _, its_groups, build in sides]
    rates = [(o, [group["lr"] for group in o.param_groups]) for o in (opt, plain)]
    schedules, seen = [make(opt), make(plain)], []
    for t in range(STEPS):
        assert same(numbers(opt), numbers(plain))
        for group, values in zip(by_hand.param_groups, numbers(plain), strict=True):
            group.update(kept({k: v.item() if isinstance(v, torch.Tensor) else v for k, v in values.items()}))
        for (params, *_), o in zip(sides, opts, strict=True):
            step(params, o, [t])
        assert equal(sides[0][0], sides[2][0])
        seen.append(numbers(plain)[0])
        for schedule in schedules:
            schedule.step(*([LOSSES[t]] if scheduler == "ReduceLROnPlateau" else []))
    ours_kept, theirs_kept = ([g["lr"] is r for g, r in zip(o.param_groups, its, strict=True)] for o, its in rates)
    assert ours_kept == theirs_kept
    assert len({float(found["lr"]) for found in seen}) > 1
    if scheduler in ("CyclicLR", "OneCycleLR"):
        assert len({str(found.get("momentum", found.get("betas"))) for found in seen}) > 1
