"""State by its specs: kernels take it in one order, and a base's own state is the base's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft
from hyperopt_ftp.anchored.ftp import FTP_SPECS
from hyperopt_ftp.kernels.layers import Layers
from hyperopt_ftp.torch_optim.backends import layers_of
from hyperopt_ftp.torch_optim.store import Columns

#: What ``Layers`` calls the columns of FTP's state.
COLUMNS = {
    "deviation": "deviations",
    "row_norm": "norms",
    "radius": "radii",
    "radius_exp_avg": "radius_exp_avgs",
    "radius_exp_avg_sq": "radius_exp_avg_sqs",
    "radius_step": "radius_steps",
}


def test_kernels_take_the_state_in_the_order_of_its_specs():
    assert tuple(COLUMNS[spec.name] for spec in FTP_SPECS) == Layers._fields[4:10]
    named = {spec.name: [torch.tensor(float(i))] for i, spec in enumerate(FTP_SPECS)}
    layers = layers_of(Columns([], [], [], [], list(named.values()), []))
    for name, field in COLUMNS.items():
        assert getattr(layers, field) is named[name]


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
                    state["step"] = state.get("step", 0) + 1
                    state["note"] = ("last", state["step"])
                    p.add_(p.grad, alpha=-group["lr"] / state["step"])


WRAPPERS = {
    "FTP": lambda base: hft.FTP(base, radius_lr=0.05),
    "MARSSP": lambda base: hft.MARSSP(base, radius=0.05),
    "L2SP": lambda base: hft.L2SP(base, strength=0.1),
    "DiGraP": lambda base: hft.DiGraP(base),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_base_that_counts_in_python_is_left_to_itself(wrap):
    """Its state is neither read nor changed, and a resumed run is the same to the last bit."""

    def run(p: torch.nn.Parameter, opt: Any, steps: range) -> torch.Tensor:
        for t in steps:
            p.grad = torch.full_like(p, 0.3 + t) * torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.2, -0.3]])
            opt.step()
        return p.detach().clone()

    def fresh() -> tuple[torch.nn.Parameter, Any]:
        p = torch.nn.Parameter(torch.ones(2, 3))
        return p, wrap(Counting([p]))

    p, opt = fresh()
    there = run(p, opt, range(4))
    saved = copy.deepcopy(opt.state_dict())
    assert opt.state[p]["step"] == 4
    assert type(opt.state[p]["step"]) is int
    assert opt.state[p]["note"] == ("last", 4)
    straight = run(p, opt, range(4, 7))
    again, second = fresh()
    second.load_state_dict(saved)
    again.data.copy_(there)
    assert torch.equal(run(again, second, range(4, 7)), straight)
