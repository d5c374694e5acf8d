"""Checks of a graph: captured tensors that a derivative is taken in, and once-differentiable functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function, once_differentiable
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from ... import tree
from ..core.graph import ends_below, made_from, nodes_below
from ..core.torch_private import level_of, top_level
from .messages import Subject, captured


def captured_leaf(outputs: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor | None:
    """A leaf among some tensors, or in their graphs down to what was ``given``, that was not given."""
    names = {id(x) for x in given}
    return next((x for x in made_from(outputs, given) if id(x) not in names), None)


def loses_derivative(who: Subject, outputs: Sequence[Tensor], given: Sequence[Tensor]) -> ValueError | None:
    """The error for such a leaf."""
    leaf = captured_leaf(outputs, given)
    return None if leaf is None else captured(who, leaf)


#: What ``once_differentiable`` puts in the place of a backward: one code for all.
_ONCE: Any = once_differentiable(lambda ctx: None)  # pyright: ignore[reportArgumentType]


def refuse_once_differentiable(loss: Tensor, params: Sequence[Tensor] | None = None) -> None:
    """Raise if a loss uses a ``torch.autograd.Function`` whose backward is marked ``once_differentiable``.

    torch raises only if the backward pass reaches the mark; otherwise it takes the function for linear (torch 2.13).
    Functions of torch are among them: ``rsample`` of Beta and Dirichlet.

    Args:
        loss: of a step.
        params: functions of none of these are allowed: no gradient in the params goes through them, and their
            derivative is taken once. ``None``: all are refused, for a backward pass that is differentiated again.
    """
    ids = {id(x) for x in params or ()}
    for node in nodes_below(loss.grad_fn):
        for function in _functions_of(node):
            through = params is None or any(id(x) in ids for x in ends_below([node], params))
            if through and _is_once(function.backward):
                raise RuntimeError(
                    f"train_loss, or the optimizer, has no second derivative ({function.__name__} is a "
                    "torch.autograd.Function whose backward is once_differentiable); use operations that have one, or "
                    "strategy=hft.ZeroOrder(...), which needs none"
                )


def _is_once(backward: Any) -> bool:
    """Whether it is marked, also below other decorators."""
    while backward is not None and getattr(backward, "__code__", None) is not _ONCE.__code__:
        backward = getattr(backward, "__wrapped__", None)
    return backward is not None


def _functions_of(node: Node) -> list[Any]:
    """The ``Function`` of a node; under a transform, the wrapped one, which its backward calls."""
    function = getattr(node, "_forward_cls", None)
    if function is None:
        return []
    cells = [cell.cell_contents for cell in getattr(function.backward, "__closure__", None) or ()]
    return [function, *(x for x in cells if isinstance(x, type) and issubclass(x, Function))]


def refuse_own_backwards(loss: Tensor) -> None:
    """Raise if a loss uses a ``torch.autograd.Function``.

    In a program torch may differentiate its forward instead of calling its backward, or take the backward for a
    constant, without an error (torch 2.13).
    """
    for node in nodes_below(loss.grad_fn):
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            if name == "Remat":
                raise RuntimeError(
                    "a step with hft.remat in it cannot be compiled: what a program keeps of a layer is for the "
                    "compiler to choose; leave out hft.remat (after remat_layers: del layer.forward), or compile=True"
                )
            raise RuntimeError(
                f"a step cannot be compiled: train_loss goes through {name}, a torch.autograd.Function, whose backward "
                "torch.compile would not differentiate, or not even call. Write it in operations of torch (a "
                "straight-through estimate of f(x) is x + (f(x) - x).detach()), or leave out compile=True"
            )


def refuse_cuts(cuts: Iterable[str]) -> None:
    for how in cuts:
        raise RuntimeError(
            f"a step cannot be compiled: train_loss takes something for constant by {how}, which a program would "
            "differentiate; take detach(), or leave out compile=True"
        )


class refuse_outer_tensors(TorchFunctionMode):  # a context manager
    """Raise if the code inside uses a tensor of an outer transform.

    ``leaves_too``: or one that requires grad and is none of the ``known``.

    Inside an ``autograd.Function`` outer transforms are switched off, so such a tensor would count as a constant.
    """

    def __init__(self, who: Subject, leaves_too: bool = False, known: Sequence[Tensor] = ()) -> None:
        self._leaves_too, self._who, self._known = leaves_too, who, {id(x) for x in known}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        level = top_level()
        for x in tree.leaves((args, kwargs)):
            if isinstance(x, Tensor):
                inner = level_of(x)
                # A level above the present one is none that the code inside has opened.
                outer = inner == -1 and self._leaves_too and x.requires_grad and id(x) not in self._known
                if inner > level or outer:
                    raise captured(self._who, x)
        return func(*args, **(kwargs or {}))
