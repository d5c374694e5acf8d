"""TorchOpt, both ways: its optimizers as ours, and ours as its transformations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tree
from .calls import explained
from .hparams import as_tensor, complete, concrete, domains_of, is_number
from .optimizers.leafwise import check_grads, check_state, no_steps
from .optimizers.needs_weights import moves
from .types import Optimizer, check_optimizer


class BridgeState(NamedTuple):
    """State of an optimizer from TorchOpt."""

    step: Tensor  # shape (), int64: updates done
    base: Any  # TorchOpt's own


@explained()
def from_torchopt(factory: Callable[..., Any], **hparams: Any) -> Optimizer[BridgeState]:
    """An optimizer of TorchOpt as an :class:`Optimizer`: ``from_torchopt(torchopt.adam, lr=1e-3)``.

    ``update`` calls ``factory`` anew with the hyperparameters it gets, and TorchOpt's ``update`` with
    ``inplace=False``. So it is pure, and differentiable where TorchOpt is.

    Args:
        factory: ``torchopt.adam``, ``torchopt.sgd``, ... or any function that returns a gradient transformation.
        hparams: its keyword arguments. Numbers and pairs of numbers become hparams, including the factory's defaults.
            Everything else (booleans, schedules, masks) does not.

    Raises:
        TypeError: a derivative in, or a vmap over, a hyperparameter that TorchOpt takes as a plain number only; the
            message names it. Construction finds these by trying each.

    >>> import torch, torchopt, hyperopt_ftp as hft
    >>> opt = hft.from_torchopt(torchopt.sgd, lr=0.5)
    >>> w = torch.ones(2)
    >>> opt.update(torch.ones(2), opt.init(w), w)[0]
    tensor([0.5000, 0.5000])
    """
    if not callable(factory):
        raise TypeError(
            f"factory must be a function such as torchopt.adam, got a {type(factory).__name__}; give the function and "
            "its arguments apart: from_torchopt(torchopt.adam, lr=0.1)"
        )
    given = {
        n: p.default for n, p in inspect.signature(factory).parameters.items() if p.default is not p.empty
    } | hparams
    numbers = {name: value for name, value in given.items() if is_number(value)}
    structure = {name: value for name, value in given.items() if name not in numbers}
    default = {name: tree.map_tree(as_tensor, value) for name, value in numbers.items()}
    title = getattr(factory, "__name__", type(factory).__name__)
    open_to = {n for n in default if _differentiates(factory, structure, default, n)}

    def build(hparams: Any) -> Any:
        h = complete(hparams, default)
        values = {}
        for name, value in h.items():
            if name in open_to and any(not concrete(x) or x.requires_grad for x in tree.leaves(value)):
                values[name] = value
                continue
            fixed = [x for x in tree.leaves(value) if not concrete(x) or x.requires_grad]
            if fixed:
                raise TypeError(
                    f"TorchOpt's {title} takes {name} as a plain number: it cannot be differentiated in, vmapped over "
                    f"or tuned; open are {sorted(open_to)}"
                )
            values[name] = tree.map_tree(lambda x: x.item(), value)
        try:
            return factory(**structure, **values)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            batched = sorted(n for n, v in values.items() if any(isinstance(x, Tensor) for x in tree.leaves(v)))
            raise TypeError(
                f"TorchOpt's {title} looks at the value of its arguments: it cannot be vmapped over {batched}; "
                "loop instead"
            ) from error

    def init(params: Any, hparams: Any = None) -> BridgeState:
        return BridgeState(no_steps(), build(hparams).init(params))

    def update(grads: Any, state: BridgeState, params: Any, hparams: Any = None) -> tuple[Any, BridgeState]:
        check_state(BridgeState, state)
        check_grads(grads, params)
        transformation = build(hparams)
        if not concrete(state.step) or state.step > 0:
            _warm_up(transformation)
        updates, inner = transformation.update(grads, state.base, params=params, inplace=False)
        new = tree.map_tree(lambda p, u: p if u is None else (p + u).to(p.dtype), params, updates)
        return new, BridgeState(state.step + 1, inner)

    return Optimizer(init, update, default, domains=domains_of(default))


@explained()
def to_torchopt(optimizer: Optimizer) -> Any:
    """An :class:`Optimizer` as TorchOpt's ``GradientTransformation``, for ``torchopt.chain`` and its wrappers.

    Its ``update(grads, state, params=None, inplace=True)`` returns ``new params - params``, for
    ``torchopt.apply_updates``. A leaf that is ``None``, or whose gradient is, gives ``None``. Nothing is changed in
    place.

    As in TorchOpt, ``params`` may be left out if the optimizer does not need their values (no weight decay, no anchor,
    no copy of them). Each such update checks this, which takes some time.

    With ``inplace=True``, TorchOpt's default, and gradients without a graph, params are detached, as in TorchOpt.
    Otherwise the state of a ``torchopt.Optimizer`` would keep the graphs of all steps. The new state then shares no
    memory with the params, since that class writes into both.

    Args:
        optimizer: any optimizer of the package, with its own hparams.

    Raises:
        ValueError: an update without ``params`` of an optimizer that needs their values.

    >>> import torch, torchopt, hyperopt_ftp as hft
    >>> chained = torchopt.chain(torchopt.clip.clip_grad_norm(1.0), hft.to_torchopt(hft.sgd(lr=1.0)))
    >>> w = {"w": torch.zeros(2)}
    >>> updates, _ = chained.update({"w": torch.tensor([3.0, 4.0])}, chained.init(w), params=w)
    >>> updates["w"]
    tensor([-0.6000, -0.8000])
    """
    check_optimizer("optimizer", optimizer)
    try:
        from torchopt.base import GradientTransformation
    except ImportError as error:
        raise ImportError("to_torchopt needs the package torchopt: pip install torchopt") from error

    def init(params: Any) -> Any:
        return optimizer.init(_present(params, params))

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
        if params is not None and any(p is None for p in tree.leaves(params)):
            there = (_present(params, x) for x in (updates, params))
            moved, state = update(next(there), state, params=next(there), inplace=inplace)
            found = iter(tree.leaves(moved))
            return tree.map_tree(lambda p: None if p is None else next(found), params), state
        given, values = (updates, params), inplace and not _has_graph(updates, params)
        if params is None:
            moved, state = moves(optimizer.update, updates, state)
        else:
            params = tree.map_tree(Tensor.detach, params) if values else params
            new, state = optimizer.update(updates, state, params)
            moved = tree.map_tree(_difference, new, params, updates)
        return moved, tree.unshared(state, given) if values else state

    return GradientTransformation(init=init, update=update)


def _present(params: Any, values: Any) -> Any:
    """``values`` with ``()``, which holds no leaf, where ``params`` has ``None``, which is none to TorchOpt."""
    return tree.map_tree(lambda p, x: () if p is None else x, params, values)


def _difference(new: Tensor, p: Tensor, g: Tensor | None) -> Tensor | None:
    """``None`` for a leaf that has no gradient, and that nothing has moved for another reason."""
    return None if g is None and new is p else new - p


def _has_graph(grads: Any, params: Any) -> bool:
    given, known = ([x for x in tree.leaves(values) if x is not None] for values in (grads, params))
    return any(g.requires_grad for g in given) or not all(map(concrete, [*given, *known]))


def _warm_up(transformation: Any) -> None:
    """One update on nothing: TorchOpt's momentum remembers in a closure whether it has been called before."""
    nothing = {"": torch.zeros(())}
    transformation.update(nothing, transformation.init(nothing), params=nothing, inplace=False)


def _differentiates(factory: Callable[..., Any], structure: dict[str, Any], default: dict[str, Any], name: str) -> bool:
    """Whether two steps of the optimizer can be differentiated in one hyperparameter."""
    others = {n: tree.map_tree(lambda x: x.item(), v) for n, v in default.items() if n != name}

    def run(value: Any) -> Tensor:
        opt = factory(**structure, **others, **{name: value})
        w = torch.ones(2, dtype=torch.float64)
        state = opt.init(w)
        for _ in range(2):
            updates, state = opt.update(w + 0.5, state, params=w, inplace=False)
            w = w + updates
        return w.sum()

    try:
        slopes = tree.leaves(torch.func.grad(run)(default[name]))
    except Exception:  # TorchOpt refuses in many ways: TypeError, ValueError, RuntimeError
        return False
    return all(bool(x.isfinite().all()) for x in slopes)
