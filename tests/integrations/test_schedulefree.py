"""Schedule-free optimizers against those of their authors, in float64: the weights while training, and the average."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

schedulefree = pytest.importorskip("schedulefree")

PAIRS = {
    "sgd": (hft.schedule_free_sgd, schedulefree.SGDScheduleFree, {"lr": 0.3, "momentum": 0.7}),
    "adamw": (hft.schedule_free_adamw, schedulefree.AdamWScheduleFree, {"lr": 0.1, "betas": (0.7, 0.95)}),
}
CHOICES: dict[str, list[Any]] = {
    "weight_decay": [0, 0.1], "warmup_steps": [0, 3], "r": [0.0, 0.5], "weight_lr_power": [2.0, 1.0],
}  # fmt: skip
OPTIONS = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_authors_package(name: str, options: dict[str, Any]):
    make, peer, own = PAIRS[name]
    w = torch.randn(3, 4, dtype=torch.float64)
    p = torch.nn.Parameter(w.clone())
    theirs, opt = peer([p], **own, **options), make(**own, **options)
    theirs.train()
    state = opt.init(w)
    for _ in range(6):
        g = torch.randn_like(w)
        p.grad = g.clone()
        theirs.step()
        w, state = opt.update(g, state, w)
        torch.testing.assert_close(w, p.detach(), rtol=1e-13, atol=1e-13)
    theirs.eval()
    torch.testing.assert_close(state.average, p.detach(), rtol=1e-13, atol=1e-13)
