"""The nodes of an autograd graph, and the leaves that it ends in."""

from __future__ import annotations

from collections.abc import Container, Sequence
from operator import itemgetter

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


_NODE = itemgetter(0)  # of a pair with the number of its input


def made_from(tensors: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that graphs end in: those that were given, and other leaves; for a leaf, itself."""
    leaves = [x for x in tensors if x.grad_fn is None and x.requires_grad]
    return leaves + ends_below([x.grad_fn for x in tensors], given)


def ends_below(nodes: Sequence[Node | None], given: Sequence[Tensor]) -> list[Tensor]:
    """The same below some nodes. Of every step a training looks at this, so it is one loop, without calls."""
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
            found.append(leaf)
    return found
