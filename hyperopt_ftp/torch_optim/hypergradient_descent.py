"""Hypergradient descent of the learning rate around any ``torch.optim`` optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..anchored.rule import Spec
from ..calls import explained
from ..dtensors import whole
from ..hparams import check_number
from ..tree import working
from ..types import Excludes
from .checks import is_schedule_free
from .given import Extra, Given
from .optimizer import DropIn, floats


class HypergradientDescent(DropIn):
    """Hypergradient descent of the learning rate (arXiv 1703.04782, eq. 8) around an optimizer.

    For each group with learning rate ``lr``, gradients ``g`` at the present weights, and ``u`` = the displacement of
    the previous step divided by its learning rate::

        lr <- max(lr + lr_lr * sum <g, u>, 0)            before the base's step

    The closed form of ``hyper(base, by=sgd(lr=lr_lr), over="lr")`` for every rule whose displacement is proportional to
    the learning rate, which is so for those of torch.optim but Rprop, ASGD, and Adafactor where its bound on the rate,
    1 / sqrt(t) at step t, is below ``lr``. A sum that is not finite moves nothing.

    Args:
        base: any :class:`torch.optim.Optimizer` that steps once for each gradient (not LBFGS).
        lr_lr: step of the learning rate, the paper's beta, >= 0; a group may have its own. 0 is ``base``.
        exclude: as in :class:`FTPAdamW`: parameters whose gradients do not count.

    The learning rate in use is ``group["lr"]``. LR schedulers that multiply it (StepLR, CosineAnnealingLR) go on from
    what was learned, those that compute it anew (LambdaLR, OneCycleLR) overwrite it. From 0 it does not move by itself,
    since a step of length 0 has no direction; nor do 16-bit weights show moves smaller than their last bit. State:
    ``direction`` (u), as large as the weights.

    Raises:
        TypeError: ``base`` is no optimizer, or LBFGS, or an anchored one.
        ValueError: an lr_lr outside its domain; an exclude that matches nothing.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> opt = hft.HypergradientDescent(torch.optim.SGD([w], lr=0.1), lr_lr=0.01)
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     (w**2 / 2).sum().backward()
    ...     opt.step()
    >>> round(opt.param_groups[0]["lr"], 4)  # 0.1 + 0.01 * <0.9, 1>
    0.109
    """

    @explained("it goes around an optimizer: HypergradientDescent(torch.optim.AdamW(params, lr=...), lr_lr=...)")
    def __init__(self, base: torch.optim.Optimizer, *, lr_lr: float = 1e-6, exclude: Excludes = ()) -> None:
        if isinstance(base, torch.optim.Optimizer) and is_schedule_free(base):
            raise ValueError(
                "HypergradientDescent cannot go around a PureOptimizer of a schedule-free optimizer, whose step is not "
                "proportional to its learning rate: take PureOptimizer(params, hft.hyper(hft.schedule_free_sgd(...), "
                "by=hft.sgd(lr=...), over='lr'))"
            )
        extra = Extra({"lr_lr": lr_lr}, (Spec("direction", "weights"),), _check, _step)
        super().__init__(Given(base, extra), None, exclude)


def _check(group: dict[str, Any]) -> None:
    check_number("lr_lr", group["lr_lr"])
    if group.get("lr") is None:
        raise ValueError(f"the optimizer whose lr is to be learned has none, its options are {sorted(group)}")


def _step(opt: DropIn) -> None:
    assert isinstance(opt._mover, Given)
    opt._check_step()
    work = [(group, _counted(group)) for group in opt.param_groups]
    old = [group["lr"] for group in opt.param_groups]
    new = [_new_lr(opt, group, params) for group, params in work]
    before = {p: working(p.detach()).clone() for _, params in work for p in params}
    try:
        for group, lr in zip(opt.param_groups, new, strict=True):
            _set_lr(group, lr)
        opt._mover.step_base(opt)
    except BaseException:
        for group, lr in zip(opt.param_groups, old, strict=True):
            group["lr"] = lr
        raise
    for group, params in work:
        lr = float(group["lr"])
        for p in set(group["params"]) - set(params):
            opt.state.get(p, {}).pop("direction", None)  # it has not moved
        for p in params:
            u = before[p] - working(p.detach())
            opt.state[p]["direction"] = u / lr if lr else torch.zeros_like(u)


def _counted(group: dict[str, Any]) -> list[Tensor]:
    pairs = zip(group["params"], group["constrained"], strict=True)
    return [p for p, counts in pairs if counts and p.grad is not None]


def _new_lr(opt: DropIn, group: dict[str, Any], params: list[Tensor]) -> float:
    """The group's learning rate for this step."""
    lr, sign, products = float(group["lr"]), -1 if group.get("maximize", False) else 1, []
    for p in params:
        u = opt.state.get(p, {}).get("direction")
        if u is not None and p.grad is not None:
            products.append(whole((p.grad.to(u.dtype) * u.to(p.device)).sum()))
    move = float(group["lr_lr"]) * sign * sum(floats(products))
    return max(lr + move, 0.0) if math.isfinite(move) else lr


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"] = torch.full_like(group["lr"], lr)
    else:
        group["lr"] = lr
