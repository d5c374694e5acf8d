"""What the state machine draws, and what it needs to compare bits."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import rule
from torch import Tensor

from ..support import executions

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
SHAPES = [(3, 4), (5,), (4, 3, 2, 2), (), (0, 3), (1, 6), (3, 0), (6, 1)]
FREE = (1, 4)  # places of the parameters that may be excluded
BASES = {
    "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD,
    "around adamw": torch.optim.AdamW, "around rmsprop": torch.optim.RMSprop, "around sgd": torch.optim.SGD,
}  # fmt: skip
EXECUTIONS = st.sampled_from(list(executions.FLAGS))
#: Both flags, so that they also overrule those of the constructor.
FLAGS = {name: {"foreach": None, "fused": None, **flags} for name, flags in executions.FLAGS.items()}
#: Of the class itself, not of its base.
OPTIONS = ("radius_lr", "kappa", "norm", "gradient")
UNSHARED = ("params", "capturable", "differentiable", "decoupled_weight_decay")  # of torch's groups

PLANS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([*BASES, "adamw", "sgd"]),
        "execution": EXECUTIONS,
        "dtype": st.sampled_from([F64, F32, BF16]),
        "seed": st.integers(0, 99),
        "shapes": st.permutations(SHAPES),
        "anchor": st.sampled_from(["start", "zero", "dict", "state_dict", "file"]),
        "anchor_dtype": st.sampled_from([None, BF16]),
        "save_anchor": st.sampled_from([True, False]),
        "exclude": st.sampled_from(["nothing", "pattern", "tensors"]),
        "named": st.booleans(),
        "groups": st.integers(1, 2),
        "lr": st.sampled_from([0.05, 0.001]),
        "tensor_lr": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "maximize": st.booleans(),
        "amsgrad": st.booleans(),
        "momentum": st.sampled_from(
            [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.0, True), (0.5, 0.3, False), (0.0, 0.3, False)]
        ),
        "norm": st.sampled_from(["mars", "l2"]),
        "gradient": st.sampled_from(["paper", "exact"]),
        "kappa": st.sampled_from([1.0, 0.4, 0.0]),
        "radius_lr": st.sampled_from([0.05, 0.01]),
        "capturable": st.booleans(),
        "lean": st.booleans(),
    }
)
GRADIENTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "scale": st.sampled_from([1.0, 1e-6, 1e-3, 30.0, 1e3]),
        "drift": st.sampled_from([0.5, 0.0]),  # with a trend radii grow
        "absent": st.sets(st.integers(0, len(SHAPES) - 1), max_size=3),
        "form": st.sampled_from(["plain", "expanded", "turned", "other dtype"]),
    }
)


def counted(**strategies: Any) -> Callable:
    """A rule that the machine's tally counts. Where it is no step itself, one may follow."""
    if "how" not in strategies:
        strategies["then"] = st.none() | GRADIENTS

    def decorate(function: Callable) -> Callable:
        @rule(**strategies)
        @functools.wraps(function)
        def run(self: Any, then: Any = None, **values: Any) -> None:
            self.tally[function.__name__] += 1
            function(self, **values)
            if then is not None:
                self.only_what_may_change_has_changed()
                self.advance(self.gradients(then))

        return run

    return decorate


def of_a_module(known: dict[str, Tensor]) -> Any:
    """As a module's state_dict, which may also hold what is no parameter of the optimizer."""
    found: Any = OrderedDict(known)
    found._metadata = {}
    return found


def as_laid(x: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=x.dtype, requires_grad=False).copy_(x)
