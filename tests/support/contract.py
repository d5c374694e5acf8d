"""What torch's contract for optimizers is tested on: a row for each class and base, with the options of its runs."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_ftp as hft

from .executions import FLAGS
from .family import CLASSES

Options = dict[str, Any]


def number(value: float, *shape: int) -> Tensor:
    """A float64 tensor of that value."""
    return torch.full(shape, value, dtype=torch.float64)


ADAMW: dict[str, Options] = {
    "default": {},
    "lr": {"lr": 0.02},
    "decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "amsgrad": {"weight_decay": 0.1, "amsgrad": True},
    "beta1=0": {"betas": (0.0, 0.95), "eps": 1e-6},
    "tensor lr": {"lr": number(0.02)},
    "1-element lr": {"lr": number(0.02, 1), "weight_decay": 0.1},
}
SGD: dict[str, Options] = {
    "default": {},
    "lr": {"lr": 0.02},
    "decay": {"weight_decay": 0.5},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "tensor lr": {"lr": number(0.02), "momentum": 0.9},
    "1-element lr": {"lr": number(0.02, 1), "momentum": 0.9},
}
#: Of torch's alone.
DAMPED: dict[str, Options] = {"dampening": {"momentum": 0.9, "dampening": 0.5}}
#: What FTP's own classes have beside.
OWN: dict[str, Options] = {
    "capturable": {"capturable": True},
    "capturable, tensor lr": {"capturable": True, "lr": number(0.02), "weight_decay": 0.1},
    "capturable, 1-element lr": {"capturable": True, "lr": number(0.02, 1), "weight_decay": 0.1},
    "exact": {"gradient": "exact", "kappa": 0.5},
    "l2": {"norm": "l2"},
    "zero anchor": {"anchor": "zero"},
}
TENSOR_BETAS = {"tensor betas": {"betas": (number(0.9), number(0.99))}}


@dataclass(frozen=True)
class Row:
    """A class, around a base where it needs one.

    Attributes:
        name: what a test is called by.
        make: of parameters and options.
        inputs: options of its runs.
        own: whether the flags are the class's own; else they are the base's.
    """

    name: str
    make: Callable[..., Any]
    inputs: dict[str, Options]
    own: bool = False

    def build(self, params: Any, **options: Any) -> Any:
        return self.make(params, **{"lr": 0.05, **copy.deepcopy(options)})

    def executions(self, options: Options) -> list[str]:
        """torch's foreach takes a learning rate in a tensor on a GPU alone; ours does everywhere."""
        refused = not self.own and isinstance(options.get("lr"), Tensor)
        return [name for name in FLAGS if not (refused and name == "foreach")]

    def ran(self, execution: str) -> str:
        """What a class calls that which its flags, or its base's, choose."""
        title = self.name.split("(")[0].split(" ")[0]
        return execution if self.own or execution == "single" or title in ("FTP", "MARSSP") else "pieces"


def _around(title: str, base: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    return lambda params, **options: CLASSES[title].around(base(params, **options))


ROWS = {
    row.name: row
    for row in (
        Row(
            "FTPAdamW", lambda p, **o: hft.FTPAdamW(p, radius_lr=0.03, **o), ADAMW | OWN | TENSOR_BETAS, own=True
        ),
        Row("FTPSGD", lambda p, **o: hft.FTPSGD(p, radius_lr=0.03, **o), SGD | OWN, own=True),
        *(Row(f"{title} of AdamW", _around(title, torch.optim.AdamW), ADAMW) for title in CLASSES),
        *(Row(f"{name} of SGD", _around(name, torch.optim.SGD), SGD | DAMPED) for name in CLASSES if "(" not in name),
    )
}  # fmt: skip

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
#: Where the base makes no difference.
one_base = pytest.mark.parametrize("row", [r for r in ROWS.values() if not r.name.endswith("SGD")] + [ROWS["FTPSGD"]],
                                   ids=lambda row: row.name)  # fmt: skip


def some_inputs(row: Row, turn: int) -> list[str]:
    """All of a class with flags of its own; of those around a base three in turn, so that each has several of them."""
    names = list(row.inputs)
    return names if row.own else [names[(3 * turn + i) % len(names)] for i in range(3)]


every_input = pytest.mark.parametrize(
    ("row", "options"),
    [
        pytest.param(row, row.inputs[what], id=f"{row.name}-{what}")
        for turn, row in enumerate(ROWS.values())
        for what in some_inputs(row, turn)
    ],
)

#: For properties: a row, and one with each of its inputs.
rows = st.sampled_from([*ROWS.values()])
inputs = st.sampled_from([(row, options) for row in ROWS.values() for options in row.inputs.values()])

#: torch's optimizers that step once for each dense gradient, and what makes them keep more.
TORCHS = {
    name: {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}}.get(name, {})
    for name, made in sorted(vars(torch.optim).items())
    if isinstance(made, type) and name not in ("Optimizer", "LBFGS", "SparseAdam")
}

SHAPES = [(4, 3), (4,), (), (0, 3), (2, 3, 2, 2)]


def parameters(dtype: torch.dtype = torch.float64, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    """The same numbers at each call, whatever the dtype."""
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in shapes]


def again(params: Iterable[Any]) -> list[Any]:
    """Parameters of the same values."""
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def named(params: Iterable[Any]) -> list[tuple[str, Any]]:
    """As named_parameters() has them: ``p0``, ``p1``, ..."""
    return [(f"p{i}", p) for i, p in enumerate(params)]


def step(
    params: Iterable[Any], opt: Any, steps: Iterable[int], absent: Collection[tuple[int, int]] = (), alike: bool = False
) -> None:
    """Gradients by the number of a step, which leaves them as they are.

    Args:
        params: of ``opt``, or some of them.
        opt: makes the steps.
        steps: their numbers.
        absent: steps and parameters without a gradient.
        alike: the same gradient for all, which have one shape.
    """
    for t in steps:
        g = torch.Generator()
        for i, p in enumerate(params):
            if alike or i == 0:
                g.manual_seed(100 + t)
            grad = torch.randn(p.shape, generator=g, dtype=torch.float64) + 0.3
            p.grad = None if (t, i) in absent else torch.empty_like(p).copy_(grad)
        before = [None if p.grad is None else p.grad.clone() for p in params]
        opt.step()
        assert all(g is None or torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


def begun(row: Row, names: bool = False, steps: int = 3, **options: Any) -> tuple[list[Any], Any]:
    """Parameters and their optimizer after some steps."""
    params = parameters()
    opt = row.build(named(params) if names else params, **options)
    step(params, opt, range(steps))
    return params, opt


def through_a_file(content: Any) -> Any:
    """As a program that starts anew reads it, without code."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
