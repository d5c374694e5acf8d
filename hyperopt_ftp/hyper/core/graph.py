"""The nodes of an autograd graph, and the leaves that it ends in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node


def nodes_below(*nodes: Node | None, until: Sequence[Tensor] = ()) -> list[Node]:
    """Some nodes of a graph and all below them, each once, down to the nodes of ``until``."""
    seen: set[Node] = {x.grad_fn for x in until if x.grad_fn is not None}
    stack, found = [*nodes], []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        stack += [after for after, _ in node.next_functions]
    return found


def leaf_of(node: Node) -> Tensor | None:
    """The leaf whose gradient a node would accumulate."""
    leaf = getattr(node, "variable", None)
    return leaf if isinstance(leaf, Tensor) else None


def leaves_of(x: Tensor) -> list[Tensor]:
    """The leaves that a tensor's graph ends in; for a leaf, itself."""
    return [x] if x.grad_fn is None else leaves_below(x.grad_fn)


def leaves_below(node: Node) -> list[Tensor]:
    return [leaf for leaf in map(leaf_of, nodes_below(node)) if leaf is not None]
