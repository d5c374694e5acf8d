"""The nodes of an autograd graph, and the leaves that it ends in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

_NODE = itemgetter(0)  # of a pair with the number of its input


def nodes_below(*nodes: Node | None) -> list[Node]:
    """Some nodes of a graph and all below them, each once."""
    stack, found = [*nodes], dict[Node, None]()  # in the order of their discovery
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found[node] = None
            stack += map(_NODE, node.next_functions)
    return [*found]


def freed(tensors: Iterable[Any]) -> list[Node]:
    """Of the nodes that have made some tensors, those of graphs that a backward pass has freed."""
    nodes = [x.grad_fn for x in tensors if isinstance(x, Tensor) and x.grad_fn is not None]
    return [node for node in nodes if _is_freed(node)]


def _is_freed(node: Node) -> bool:
    some, rest = 0, [node]
    while rest and (some := some + 1) < 30:  # the first that saves tensors tells; it is near
        node = rest.pop(0)
        try:
            saved = [getattr(node, name) for name in _saved(type(node))]
            if any(isinstance(x, Tensor) for row in saved for x in (row if isinstance(row, tuple) else [row])):
                return False
        except RuntimeError as error:  # or a saved tensor was changed in place
            return "second time" in str(error)
        rest += [below for below, _ in node.next_functions if below is not None]
    return False


@lru_cache
def _saved(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


def made_from(tensors: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that graphs end in: those that were given, and other leaves; for a leaf, itself."""
    ends = [_behind(x, given) for x in tensors if x.requires_grad]
    return [x for x in ends if x.grad_fn is None] + ends_below([x.grad_fn for x in ends], given)


def ends_below(nodes: Sequence[Node | None], given: Sequence[Tensor]) -> list[Tensor]:
    """The same below some nodes. Of every step a training looks at this, so it is one loop, without calls."""
    if not nodes:  # of most calls inside a step; a guard's mode sees each look at `given`
        return []
    ends: dict[Node, Tensor] = {x.grad_fn: x for x in given if x.grad_fn is not None}
    stack, seen, found = [*nodes], set[Node](), list[Tensor]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends:
            found.append(ends[node])
        elif below := node.next_functions:
            stack += map(_NODE, below)
        elif isinstance(leaf := getattr(node, "variable", None), Tensor):  # which a node would accumulate a gradient in
            leaf = leaf if getattr(leaf, _SOURCE, None) is None else _behind(leaf, given)
            found.append(leaf) if leaf.grad_fn is None else stack.append(leaf.grad_fn)
    return found


#: The attribute of a leaf that says in whose place it is.
_SOURCE = "_hyperopt_ftp_source"


def stand_in(x: Tensor) -> Tensor:
    """A leaf in the place of a tensor, for a graph of its own, which is known to be made of that one."""
    with torch._C.DisableTorchFunction():  # nobody's code lets it require grad
        leaf = x.detach().requires_grad_()
    setattr(leaf, _SOURCE, x)
    return leaf


def _behind(x: Tensor, given: Sequence[Tensor]) -> Tensor:
    """The tensor that a leaf stands for, unless the leaf itself was given."""
    while (source := getattr(x, _SOURCE, None)) is not None and not any(x is y for y in given):
        x = source
    return x
