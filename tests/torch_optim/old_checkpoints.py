"""Runs whose checkpoints are committed: each can be made again, and gone on with from the file.

``python -m tests.torch_optim.old_checkpoints FILE`` writes the file with the code as it is. A committed file is never
written again: it shows what code of that time wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from hyperopt_ftp import tree

SHAPES = {"weight": (4, 3), "bias": (5,), "conv": (3, 2, 2, 2), "free": (2, 2)}
BEFORE, AFTER = 5, 3  # steps until the checkpoint, and from there

Params = dict[str, torch.nn.Parameter]


def _sgd(params: Params) -> Any:
    return torch.optim.SGD(params.items(), lr=0.05, momentum=0.9)


def _adamw(params: Params) -> Any:
    return torch.optim.AdamW(params.items(), lr=0.05, weight_decay=0.1)


#: Drop-in optimizers by name: dtype of the weights, and how one is made of named parameters.
DROP_IN: dict[str, tuple[torch.dtype, Callable[[Params], Any]]] = {
    "FTPAdamW": (
        torch.float32,
        lambda p: hft.FTPAdamW(p.items(), 0.05, weight_decay=0.1, amsgrad=True, exclude="free", foreach=True),
    ),
    "FTPAdamW fused": (torch.float32, lambda p: hft.FTPAdamW(p.items(), 0.05, exclude="free", fused=True)),
    "FTPAdamW single": (torch.float64, lambda p: hft.FTPAdamW(p.items(), 0.05, gradient="exact", foreach=False)),
    "FTPAdamW lean": (torch.float32, lambda p: hft.FTPAdamW(p.items(), 0.05, lean=True, save_anchor=False)),
    "FTPAdamW bfloat16": (torch.bfloat16, lambda p: hft.FTPAdamW(p.items(), 0.05, norm="l2")),
    "FTPAdamW zero": (torch.float32, lambda p: hft.FTPAdamW(p.items(), 0.05, anchor="zero")),
    "FTPSGD": (torch.float64, lambda p: hft.FTPSGD(p.items(), 0.1, momentum=0.9, dampening=0.3, exclude="free")),
    "FTP": (torch.float32, lambda p: hft.FTP(_adamw(p), radius_lr=0.05, exclude="free")),
    "FTP without anchors": (torch.float32, lambda p: hft.FTP(_sgd(p), kappa=0.5, save_anchor=False)),
    "MARSSP": (torch.float64, lambda p: hft.MARSSP(_sgd(p), radius=0.1, exclude="free")),
    "L2SP": (torch.float32, lambda p: hft.L2SP(_adamw(p), strength=0.3, exclude="free")),
    "L2SP decoupled": (torch.float64, lambda p: hft.L2SP(_sgd(p), strength=0.3, decoupled=True)),
    "SPD": (torch.float32, lambda p: hft.SPD(_sgd(p), exclude="free", save_anchor=False)),
    "CautiousDecay": (torch.float32, lambda p: hft.CautiousDecay(_adamw(p), strength=0.5)),
    "DiGraP": (torch.float64, lambda p: hft.DiGraP(_sgd(p), omega_lr=0.1, exclude="free")),
    "DiGraP bfloat16": (torch.bfloat16, lambda p: hft.DiGraP(_adamw(p), omega_lr=0.1, gradient="exact")),
}

#: Pure optimizers by name, made of the anchor. Their state is kept as its leaves in order, as docs/checkpoints.md says.
PURE: dict[str, Callable[[Any], hft.Optimizer]] = {
    "ftp": lambda w0: hft.ftp(hft.adamw(lr=0.05), w0, radius_lr=0.05, gradient="exact"),
    "digrap": lambda w0: hft.digrap(hft.sgd(lr=0.05, momentum=0.9), w0, omega_lr=0.1),
    "spd": lambda w0: hft.spd(hft.adam(lr=0.05), w0),
    "projected": lambda w0: hft.hyper(
        hft.projected(hft.sgd(lr=0.05), w0), by=hft.damped(hft.adam(lr=0.05), 0.5), over="radius"
    ),
    "clipped": lambda w0: hft.clipped(hft.scheduled(hft.rmsprop(lr=0.05), lr=lambda t: 0.9**t), max_norm=1.0),
}


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def gradients(step: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    drawn = {name: torch.randn(shape, generator=g, dtype=torch.float64) + 0.3 for name, shape in SHAPES.items()}
    return {name: x.to(dtype) for name, x in drawn.items()}


def play(params: Params, opt: Any, first: int, steps: int) -> dict[str, Tensor]:
    """Steps in place; the weights that come out."""
    for t in range(first, first + steps):
        for name, g in gradients(t, params["weight"].dtype).items():
            params[name].grad = g
        opt.step()
    return {name: p.detach().clone() for name, p in params.items()}


def unfold(opt: hft.Optimizer, params: Any, state: Any, first: int, steps: int) -> tuple[Any, Any]:
    for t in range(first, first + steps):
        params, state = opt.update(gradients(t, torch.float64), state, params)
    return params, state


def parameters(values: dict[str, Tensor]) -> Params:
    return {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}


def record() -> dict[str, Any]:
    """What each run has at its checkpoint, and the weights it ends with."""
    found: dict[str, Any] = {}
    for name, (dtype, make) in DROP_IN.items():
        params = parameters(weights(dtype))
        opt = make(params)
        there = play(params, opt, 0, BEFORE)
        saved = tree.map_tree(lambda x: x.clone() if isinstance(x, Tensor) else x, opt.state_dict())
        found[name] = {"weights": there, "state": saved, "end": play(params, opt, BEFORE, AFTER)}
    for name, make in PURE.items():
        start = weights(torch.float64)
        opt = make({key: w for key, w in start.items() if key != "free"})
        params, state = unfold(opt, start, opt.init(start), 0, BEFORE)
        end, _ = unfold(opt, params, state, BEFORE, AFTER)
        found[name] = {"weights": params, "state": tree.leaves(state), "end": end}
    return found


if __name__ == "__main__":
    file = Path(sys.argv[1])
    if file.exists():
        raise SystemExit(f"{file} exists; a committed checkpoint is not written again")
    torch.save(record(), file)
