"""What a look at a training loss and an update has found, by their code and the shapes that they get."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from ... import tree
from ...hparams import is_wrapped
from ..core.torch_private import differentiated, kinds_of_transforms
from .surroundings import may_read, requires_grad, surroundings


class Needs(NamedTuple):
    """What is asked of a training, and how it is run.

    Attributes:
        derived: whether anything is differentiated; if not, the loss may write and use any kernel.
        closed: whether the derivative is that of the arguments alone, since a node or another process hides the graph:
            a tensor that is captured would lose its derivative, and a step that writes may be made again.
        differentiates_whole_gradient: whether the training gradient is differentiated in all that it depends on: what
            has no second derivative is then refused everywhere in the loss.
        compiled: whether steps run as programs, so that each call is looked at: what another program does may leave no
            trace in the graph.
        tangents: whether these programs carry tangents, which ``no_grad`` does not end.
        constant_gradient: whether training gradients count as constants, or values alone are asked for: what the loss
            detaches is no loss then.
        of_captured: whether a derivative is asked for at most of what loss and update capture: these are judged where
            they turn out to depend on such a tensor.
        inside_function: whether it runs inside an ``autograd.Function``, with the transforms around it switched off.
        plain_loop: whether updates get no other states than those of the plain loop.
    """

    derived: bool = True
    closed: bool = True
    differentiates_whole_gradient: bool = False
    compiled: bool = False
    tangents: bool = False
    constant_gradient: bool = False
    of_captured: bool = False
    inside_function: bool = False
    plain_loop: bool = False


@dataclass
class Verdict:
    """Of a loss and an update that are called in one way.

    Attributes:
        loss: whether the loss has been looked at.
        transformed: whether it has been in a call under a transform.
        updates: the kinds of updates that have been looked at.
        bytes_made: of all tensors that the loss makes in a step.
        draws: whether the loss may draw random numbers of torch, by its first step.
        has_hooks: whether the loss puts hooks on what is saved for the backward pass.
        makes_leaves: whether the loss itself makes tensors require grad.
        captures: whether they may see a tensor that requires grad and is not one of their arguments' leaves.
        reads: whether loss or update may take the number of a tensor in a later call, by their code.
        refusal: why no step may be made again, or be hidden in a node; ``None``: it may.
    """

    loss: bool = False
    transformed: bool = False
    updates: set[str] = field(default_factory=set)
    bytes_made: int = 0
    draws: bool = True
    has_hooks: bool = False
    makes_leaves: bool = False
    captures: bool = True
    reads: bool = True
    refusal: Exception | None = None


def verdict_on(loss: Callable[..., Any], update: Any, needs: Needs, given: Any, seen: bool) -> Verdict:
    """The verdict on earlier calls of such functions, with such a tree of arguments.

    An empty one where not all that they depend on is visible.

    Args:
        update: ``None`` if it is known to be right.
        seen: whether ``given`` has all batches, of which one may hold any object.
    """
    others: list[Any] = []
    outline = _outline(given, others)
    key = surroundings(loss, update, *others)
    return Verdict() if key is None else _known(key, seen, needs, (*kinds_of_transforms(),), outline)


def _outline(x: Any, others: list[Any]) -> Hashable:
    """The structure of a tree, with the kinds of its tensors; what else it holds is added to a list."""
    kind = type(x)
    if isinstance(x, Tensor):
        nested = x.is_nested
        if nested:  # whose size no shape tells
            others.append(_UNSEEN)
        elif x.__dict__:  # what it was given as attributes
            others.append(x.__dict__)
        derived = x.requires_grad or (is_wrapped(x) and differentiated(x))
        return kind, derived, None if nested else x.shape, x.dtype, x.device, x.is_inference()
    children = x if kind in _ROWS else x.values() if kind is dict else tree.children(x)
    if children is None:
        others.append(x)
        return None
    names = tuple(x) if kind is dict or (kind not in _ROWS and isinstance(x, Mapping)) else ()
    return kind, names, *[_outline(child, others) for child in children]


_ROWS, _UNSEEN = (list, tuple), object()


@lru_cache(maxsize=256)
def _known(surroundings: tuple[Hashable, ...], seen: bool, *others: Any) -> Verdict:
    return Verdict(captures=not seen or requires_grad(surroundings), reads=may_read(surroundings))
