"""Updates by gradients that are given, not those of a loss: what a combinator makes of them."""

from __future__ import annotations

from typing import Any

import torch

import hyperopt_ftp as hft
from hyperopt_ftp import tree

from .problems import start

F64 = torch.float64
CLOSE = 1e-13  # rounding of a dozen operations a step, over 10 steps of values of order 1


def gradients(steps: int, params: Any = None) -> list[Any]:
    g = torch.Generator().manual_seed(3)
    like = start() if params is None else params
    return [tree.map_tree(lambda p: torch.randn(p.shape, generator=g, dtype=F64), like) for _ in range(steps)]


def run(opt: hft.Optimizer, grads: list[Any], params: Any = None) -> tuple[Any, Any]:
    params = start() if params is None else params
    state = opt.init(params)
    for g in grads:
        params, state = opt.update(g, state, params)
    return params, state
