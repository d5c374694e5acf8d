"""Bases that do more than torch's own, classes to go around them, and a run of one parameter."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch

import hyperopt_ftp as hft

GRADIENT = torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.2, -0.3]], dtype=torch.float64)


class Slow(torch.optim.Optimizer):
    """Lookahead (arXiv 1907.08610): an optimizer inside, whose groups it shows, and slow weights of its own.

    As several packages write it: without the constructor of torch, with a state_dict of another form.
    """

    def __init__(self, inside: torch.optim.Optimizer, every: int = 3) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.inside, self.every, self.count = inside, every, 0
        self.defaults = inside.defaults
        self.state: Any = defaultdict(dict)
        for group in inside.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    @property
    def param_groups(self) -> Any:
        return self.inside.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inside.step()
        self.count += 1
        if self.count % self.every == 0:
            for p, state in self.state.items():
                state["slow"].lerp_(p, 0.5)
                p.copy_(state["slow"])

    def state_dict(self) -> Any:
        slow = [dict(state) for state in self.state.values()]
        return {"slow": slow, "inside": self.inside.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: Any) -> None:
        if len(state_dict["slow"]) != len(self.state):
            raise ValueError("other parameters")
        self.inside.load_state_dict(state_dict["inside"])
        for state, saved in zip(self.state.values(), state_dict["slow"], strict=True):
            state.clear()
            state.update({key: value.clone() for key, value in saved.items()})
        self.count = state_dict["count"]


class Averaged(torch.optim.Optimizer):
    """Schedule-free gradient descent (arXiv 2405.15682): trains y, deploys the average x."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": False, "k": 0})

    def _to(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = training

    def train(self) -> None:
        self._to(True)

    def eval(self) -> None:
        self._to(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode")
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", p.clone())
                    x = p.lerp(z, 1 - 1 / group["beta"])
                    z.sub_(p.grad, alpha=group["lr"])
                    x.lerp_(z, 1 / group["k"])
                    p.copy_(x.lerp(z, 1 - group["beta"]))


class Kept(Averaged):
    """Deploys a copy, and trains on as if it were not there: no projection of what is deployed can hold it."""

    def _to(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for p in group["params"]:
                    state = self.state[p]
                    if training and "y" in state:
                        p.data.copy_(state.pop("y"))
                    elif not training and "z" in state:
                        state["y"] = p.detach().clone()
                group["train_mode"] = training


class Replacing(torch.optim.Optimizer):
    """Gradient descent that gives each parameter new memory at each step."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def weights() -> torch.nn.Parameter:
    """A matrix of ones."""
    return torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))


def run(p: torch.nn.Parameter, opt: Any, steps: range) -> torch.Tensor:
    """Where steps along growing gradients, known by their numbers, lead."""
    for t in steps:
        p.grad = GRADIENT * (1 + 0.3 * t)
        opt.step()
    return p.detach().clone()


WRAPPERS = {
    "FTP": lambda base: hft.FTP(base, radius_lr=0.05),
    "MARSSP": lambda base: hft.MARSSP(base, radius=0.05),
    "L2SP": lambda base: hft.L2SP(base, strength=0.1),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
