"""Refused: tensors that a loss or an optimizer uses beside its arguments, and that a derivative is taken in.

And, where steps are compiled, functions with a backward of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function, once_differentiable
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from .. import tree
from .functorch import level_of, top_level


class Stranger(ValueError):
    """A loss or an optimizer uses a tensor that a derivative is taken in and that is none of its arguments."""


def refuse_strangers(loss: Tensor, known: Sequence[Tensor], what: str = "train_loss") -> int:
    """Raise where the graph of a loss ends in a leaf that is none of the known ones.

    Returns:
        A number that tells graphs of different operations, or of the same on other leaves, apart.
    """
    names = {id(x): i for i, x in enumerate(known)}
    if loss.is_leaf and id(loss) not in names:
        raise Stranger(stranger(loss, what))
    kinds: list[Any] = []
    for node in _nodes(loss.grad_fn):
        kinds.append(type(node))
        if not node.next_functions:
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, Tensor):
                if id(leaf) not in names:
                    raise Stranger(stranger(leaf, what))
                kinds.append(names[id(leaf)])
    return hash(tuple(kinds))


def refuse_outer_leaves(outputs: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Raise where what an optimizer returns depends on a leaf that it was not given, itself or in a graph."""
    known = {id(x) for x in given}
    for x in outputs:
        if x.is_leaf and x.requires_grad and id(x) not in known:
            raise Stranger(stranger(x, "the optimizer"))
    for node in _nodes(*(x.grad_fn for x in outputs), until=given):
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            raise Stranger(stranger(leaf, "the optimizer"))


#: What ``once_differentiable`` puts in the place of a backward: one code for all.
_ONCE: Any = once_differentiable(lambda ctx: None)  # pyright: ignore[reportArgumentType]


def refuse_once(loss: Tensor, params: Sequence[Tensor] | None = None) -> None:
    """Raise where a loss goes through a ``torch.autograd.Function`` whose backward is marked ``once_differentiable``.

    torch raises only where it meets the mark on the way back, and takes the function for linear where the way ends
    before it (torch 2.13). Its own are among them: ``rsample`` of Beta and Dirichlet.

    Args:
        loss: of a step.
        params: functions of none of these are left alone: a gradient in the params does not go through them, and its
            derivative once. ``None``: all are refused, as where a backward pass is differentiated again.
    """
    ids = {id(x) for x in params or ()}
    for node in _nodes(loss.grad_fn):
        for function in _functions_of(node):
            if _is_once(function.backward) and (params is None or any(id(x) in ids for x in _ends(node))):
                raise RuntimeError(
                    f"train_loss, or the optimizer, has no second derivative ({function.__name__} is a "
                    "torch.autograd.Function whose backward is once_differentiable); use operations that have one, or "
                    "strategy=hft.ZeroOrder(...), which needs none"
                )


def _is_once(backward: Any) -> bool:
    """Whether it is marked, below other decorators too."""
    while backward is not None and getattr(backward, "__code__", None) is not _ONCE.__code__:
        backward = getattr(backward, "__wrapped__", None)
    return backward is not None


def _functions_of(node: Node) -> list[Any]:
    """The ``Function`` of a node; under a transform, that which torch has wrapped: its backward calls it."""
    function = getattr(node, "_forward_cls", None)
    if function is None:
        return []
    cells = [cell.cell_contents for cell in getattr(function.backward, "__closure__", None) or ()]
    return [function, *(x for x in cells if isinstance(x, type) and issubclass(x, Function))]


def refuse_own_backwards(loss: Tensor) -> None:
    """Raise where a loss goes through a ``torch.autograd.Function``.

    In a program torch may derive such a function from its forward, or take its backward for a constant, and says
    nothing (torch 2.13).
    """
    for node in _nodes(loss.grad_fn):
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            raise RuntimeError(
                f"a step cannot be compiled: train_loss goes through {name}, a torch.autograd.Function, whose backward "
                "torch.compile would not differentiate, or not even call. Write it in operations of torch (a "
                "straight-through estimate of f(x) is x + (f(x) - x).detach()), or leave out compile=True"
            )


def refuse_cut_graphs(outputs: Sequence[Tensor]) -> None:
    """Raise where a graph goes through DTensor's ``to_local``, ``full_tensor`` or ``from_local``.

    Their backward is not differentiable as often as a derivative of a derivative through training needs, and says
    nothing (torch 2.13).
    """
    for output in outputs:
        for node in _nodes(output.grad_fn):
            if type(node).__name__ in ("_ToTorchTensorBackward", "_FromTorchTensorBackward"):
                raise RuntimeError(
                    "a derivative of the derivative was asked for (create_graph=True), and train_loss makes plain "
                    "tensors of DTensors, or the other way, by full_tensor, to_local or from_local, which torch does "
                    "not differentiate as often; use hft.data_parallel(loss) in their place"
                )


def refuse_captured(loss: Tensor, copies: Sequence[Tensor], batch: Sequence[Tensor]) -> None:
    """Raise where the loss of one of several processes depends on more than its arguments, by its graph up to them."""
    arguments = {id(x) for x in (*copies, *batch)}
    leaves = [getattr(node, "variable", None) for node in _nodes(loss.grad_fn, until=[*copies, *batch])]
    for x in (*leaves, loss if loss.is_leaf and loss.requires_grad else None):
        if x is not None and id(x) not in arguments:
            raise ValueError(
                f"the loss of data_parallel uses a tensor of shape {tuple(x.shape)} that requires grad and is none of "
                "its arguments: each process would have its own part of the derivative. Pass it as a param or an "
                "hparam of the loss, the third argument; or hold it fixed by detach()"
            )


def leaves_of(x: Tensor) -> list[Tensor]:
    """The leaves that a tensor's graph ends in; a leaf's own is itself."""
    return [x] if x.grad_fn is None else _ends(x.grad_fn)


def _ends(node: Node) -> list[Tensor]:
    ends = (getattr(below, "variable", None) for below in _nodes(node))
    return [leaf for leaf in ends if isinstance(leaf, Tensor)]


def _nodes(*nodes: Node | None, until: Sequence[Tensor] = ()) -> Iterator[Node]:
    """Nodes and all below them, each once, as far as some tensors that they are made of."""
    seen: set[Node] = {x.grad_fn for x in until if x.grad_fn is not None}
    stack = [*nodes]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack += [after for after, _ in node.next_functions]


class own_leaves(TorchFunctionMode):  # a context manager
    """Notes what the code inside lets require grad, as a gradient penalty does: a derivative in it is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad
        result = func(*args, **kwargs)
        if func in _LETS_REQUIRE_GRAD and not before:
            self.found.append(args[0])
        elif kwargs.get("requires_grad") and isinstance(result, Tensor):
            self.found.append(result)
        return result


_LETS_REQUIRE_GRAD = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # pyright: ignore


class refuse_outer_tensors(TorchFunctionMode):  # a context manager
    """Raise where the code inside uses a tensor of a transform further out.

    ``leaves_too``: or one that requires grad and is none of the ``known``.

    Inside an ``autograd.Function`` the transforms around it are switched off: such a tensor would count as a constant.
    """

    def __init__(self, leaves_too: bool = False, what: str = "train_loss", known: Sequence[Tensor] = ()) -> None:
        self._leaves_too, self._what, self._known = leaves_too, what, {id(x) for x in known}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        level = top_level()
        for x in tree.leaves((args, kwargs)):
            if isinstance(x, Tensor):
                inner = level_of(x)
                # A level above the present one is none that the code inside has opened.
                outer = inner == -1 and self._leaves_too and x.requires_grad and id(x) not in self._known
                if inner > level or outer:
                    raise ValueError(stranger(x, self._what))
        return func(*args, **(kwargs or {}))


def stranger(x: Tensor, what: str) -> str:
    return (
        f"{what} uses a tensor of shape {tuple(x.shape)} that a derivative is taken in (it requires grad, or a "
        "torch.func transform tracks it) and that is no argument of train: its derivative would be lost. Pass it in "
        "hparams['loss'], as a param or in the batch (for an optimizer: in its hparams); or hold it fixed by detach() "
        "or requires_grad_(False)"
    )
