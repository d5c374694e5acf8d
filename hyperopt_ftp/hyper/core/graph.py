"""The nodes of an autograd graph, and the leaves that it ends in."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node


def nodes_below(*nodes: Node | None, until: Container[Node] = ()) -> list[Node]:
    """Some nodes of a graph and all below them, each once, down to and with those of ``until``."""
    stack, found = [*nodes], dict[Node, None]()  # in the order of their discovery
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found[node] = None
            if node not in until:
                stack += map(_NODE, node.next_functions)
    return [*found]


def is_freed(tensors: Iterable[Any]) -> bool:
    """Whether a backward pass has freed the graph that one of some tensors was made by, as far as its end shows."""
    return any(isinstance(x, Tensor) and x.grad_fn is not None and _node_is_freed(x.grad_fn) for x in tensors)


def _node_is_freed(node: Node) -> bool:
    rows, some = [node], 0
    while rows and (some := some + 1) < 30:  # nodes that save no tensor do not tell
        node = rows.pop(0)
        try:
            if any(isinstance(getattr(node, name), (Tensor, tuple)) for name in _saved(type(node))):
                return False
        except RuntimeError:
            return True
        rows += [below for below, _ in node.next_functions if below is not None]
    return False


@lru_cache
def _saved(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


_NODE = itemgetter(0)  # of a pair with the number of its input


def leaf_of(node: Node) -> Tensor | None:
    """The leaf whose gradient a node would accumulate."""
    leaf = getattr(node, "variable", None)
    return leaf if isinstance(leaf, Tensor) else None


def made_from(tensors: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that graphs end in: those that were given, and other leaves; for a leaf, itself."""
    leaves = [x for x in tensors if x.grad_fn is None and x.requires_grad]
    return leaves + ends_below([x.grad_fn for x in tensors], given)


def ends_below(nodes: Sequence[Node | None], given: Sequence[Tensor]) -> list[Tensor]:
    ends: dict[Node, Tensor] = {x.grad_fn: x for x in given if x.grad_fn is not None}
    found = [ends[node] if node in ends else leaf_of(node) for node in nodes_below(*nodes, until=ends)]
    return [x for x in found if x is not None]
