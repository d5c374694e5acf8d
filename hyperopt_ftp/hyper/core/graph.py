"""The nodes of an autograd graph, and the leaves that it ends in."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import Tensor
from torch.autograd.graph import Node


def nodes_below(*nodes: Node | None, until: Container[Node] = ()) -> list[Node]:
    """Some nodes of a graph and all below them, each once, down to and with those of ``until``."""
    seen: set[Node] = set()
    stack, found = [*nodes], []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        if node not in until:
            stack += [after for after, _ in node.next_functions]
    return found


def leaf_of(node: Node) -> Tensor | None:
    """The leaf whose gradient a node would accumulate."""
    leaf = getattr(node, "variable", None)
    return leaf if isinstance(leaf, Tensor) else None


def made_from(x: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a tensor's graph ends in: those that were given, and other leaves; for a leaf, itself."""
    return [x] if x.grad_fn is None else ends_below(x.grad_fn, given)


def ends_below(node: Node, given: Sequence[Tensor]) -> list[Tensor]:
    ends: dict[Node, Tensor] = {x.grad_fn: x for x in given if x.grad_fn is not None}
    found = [ends[node] if node in ends else leaf_of(node) for node in nodes_below(node, until=ends)]
    return [x for x in found if x is not None]
