"""The state of an optimizer of torch as that of the pure optimizer with the same rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import explained, few, shown
from ...types import Optimizer, Params, State

#: Classes of torch whose states have the entries of the pure optimizer with their name in small letters.
_KNOWN = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop",
    "SGD",
)  # fmt: skip


@explained("state_from(torch_optimizer, params)")
def state_from(optimizer: torch.optim.Optimizer, params: Params | None = None) -> State:
    """The state of a ``torch.optim`` optimizer, for the pure optimizer of the same rule: :func:`train` continues there.

    Give the pure one the same hyperparameters: they are in the groups of ``optimizer``, not in its state. The way back
    is ``PureOptimizer(params, pure, state=run.state)``.

    Args:
        optimizer: of the class Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, ASGD, Muon, NAdam, RAdam, RMSprop,
            Rprop or SGD of torch, no class derived of them. (Of a :class:`PureOptimizer` it is ``opt.pure_state()``.)
        params: a tree of parameters of ``optimizer``, in the structure that ``train`` is given. ``None``: a dict by the
            names with which it was made.

    Returns:
        A copy, in the structure of ``pure.init(params)``.

    Raises:
        TypeError: an optimizer of another class.
        ValueError: no names, and no params; params that the optimizer has not.

    SGD and RMSprop without momentum keep no buffer in torch, so a derivative in a momentum of 0 begins anew. NAdam and
    ASGD keep numbers in torch's default dtype.

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> def loss(p, x): return (p["w"] - x).square().sum()
    >>> opt, x = torch.optim.Adam([("w", w)], lr=0.1), torch.ones(1, dtype=torch.float64)
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     loss({"w": w}, x).backward()
    ...     opt.step()
    >>> run = hft.train(hft.adam(lr=0.1), loss, {"w": w.detach()}, [x], state=hft.state_from(opt))
    >>> run.state.step, round(run.params["w"].item(), 4)
    (tensor(3), 0.2984)
    """
    name = type(optimizer).__name__
    if name not in _KNOWN or getattr(torch.optim, name) is not type(optimizer):
        known = ", ".join(_KNOWN)
        raise TypeError(f"state_from knows {known} of torch (a PureOptimizer has pure_state()), got {shown(optimizer)}")
    factory = getattr(import_module(__name__.partition(".")[0]), name.lower())
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    if params is None:
        if not all("param_names" in group for group in optimizer.param_groups):
            raise ValueError("the optimizer has no names of its parameters; give params=dict(model.named_parameters())")
        params = {n: p for g in optimizer.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}
    leaves, rebuild = tree.flatten(params)
    wrong = [name for name, p in tree.named(params) if not isinstance(p, Tensor) or p not in group_of]
    if wrong:
        raise ValueError(f"params {few(wrong)} are no parameters of the optimizer; give those themselves, not copies")
    rows = [_of_one(factory, group_of[p], optimizer.state.get(p, {}), p) for p in leaves]
    columns = {name: [getattr(row, name) for row in rows] for name in rows[0]._fields}
    trees = {name: () if column[0] == () else rebuild(column) for name, column in columns.items()}
    if "step" in trees and len({int(x) for x in columns["step"]}) == 1:
        trees["step"] = columns["step"][0]
    return type(rows[0])(**trees)


def _of_one(factory: Callable[..., Optimizer], group: dict[str, Any], entries: dict[str, Any], p: Tensor) -> Any:
    """That of one parameter: what torch has not made yet is as at the beginning."""
    options = {name: group[name] for name in inspect.signature(factory).parameters if name in group}
    fresh = factory(**options).init(p.detach())
    if "momentum_buffer" in entries and "step" in fresh._fields:  # SGD's, which asks whether this is the first step
        entries = {**entries, "step": int(isinstance(entries.get("momentum_buffer"), Tensor))}
    known = {name: torch.as_tensor(entries[name]) for name in fresh._fields if entries.get(name) is not None}
    return fresh._replace(**{name: x.detach().to(getattr(fresh, name), copy=True) for name, x in known.items()})
