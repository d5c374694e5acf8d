"""What a derivative through training is made of: where training starts, where it ends, and a strategy between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol

from torch import Tensor

from .. import tree
from ..types import HParams, Params, State, StateT, TreeT

if TYPE_CHECKING:
    from .steps import Steps


class Start(NamedTuple):
    """Everything that K steps of training are a function of; also a tree of its cotangents, by part."""

    hparams: HParams  # the optimizer's by name, and under "loss" the loss's own
    params: Params
    state: State
    batches: Any = None  # a sequence with one entry for each step


if TYPE_CHECKING:

    class Trained(NamedTuple, Generic[TreeT, StateT]):
        """The class below with the types of its parts, as :class:`~hyperopt_ftp.Optimizer` has them."""

        params: TreeT
        state: StateT
        losses: Any

else:

    class Trained(NamedTuple):
        """Where training ended."""

        params: Params
        state: State
        losses: Any  # a tensor of shape (K,): the training loss before each step; never differentiated


class Strategy(Protocol):
    """How K steps of training are differentiated. Any object with these two methods can be passed as ``strategy``.

    ``run`` trains, and keeps what ``pullback`` needs. ``pullback`` is linear in the cotangents. Without a
    ``torch.func`` transform both run under ``no_grad`` and may use ``torch.autograd`` on leaves of their own. Under a
    transform, a strategy with the attribute ``exact = True`` (its derivative is that of the steps themselves) is left
    out and the steps are differentiated as they are; any other is run again in each backward pass, and has to be made
    of ``torch.func`` or of plain tensor functions.
    """

    def run(self, steps: Steps, start: Start) -> tuple[Trained, Any]:
        """Where training ends (``steps.loop(start)`` is the plain way), and whatever ``pullback`` is to be given."""
        ...

    def pullback(self, steps: Steps, residual: Any, cotangents: Trained) -> Start:
        """Derivatives of ``<cotangents, (params, state)>`` in the start; ``None`` for a part, or a tensor, is zero.

        ``cotangents.params`` and ``cotangents.state`` have the structure of what was trained, with ``None`` in place of
        integers; ``cotangents.losses`` is ``None``. Where ``steps.wanted`` is False nothing is asked for.
        """
        ...


def check_object(strategy: Any) -> None:
    if isinstance(strategy, type):
        raise TypeError(f"strategy must be an object, got the class {strategy.__name__}; write {strategy.__name__}()")


def check_strategy(strategy: Any) -> None:
    check_object(strategy)
    missing = [name for name in ("run", "pullback") if not callable(getattr(strategy, name, None))]
    if missing:
        hint = " (it needs no loss: it runs inside hyper)" if hasattr(strategy, "through") else ""
        raise TypeError(
            "strategy must have the methods run(steps, start) and pullback(steps, residual, cotangents), as Unroll, "
            f"Forward, Implicit and ZeroOrder do; {type(strategy).__name__} has none by the name of {missing[0]}{hint}"
        )


def check_trained(strategy: Any, result: Any) -> tuple[Trained, Any]:
    """What ``run`` returned, or a ``TypeError``."""
    name = type(strategy).__name__
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Trained):
        raise TypeError(f"{name}.run must return (Trained(params, state, losses), residual), got {_kind(result)}")
    return result


def cotangent_leaves(strategy: Any, start: Start, found: Any) -> list[Tensor | None]:
    """The leaves of what ``pullback`` returned in the order of ``start``'s, each of its shape or ``None``."""
    name = type(strategy).__name__
    if not isinstance(found, Start):
        raise TypeError(f"{name}.pullback must return Start(hparams, params, state, batches), got {_kind(found)}")
    leaves: list[Tensor | None] = []
    for part, values, given in zip(Start._fields, start, found, strict=True):
        if part == "batches" and not isinstance(values, (list, tuple)):
            continue  # read one by one, and constant
        if given is None:
            leaves += [None] * len(tree.leaves(values))
            continue
        try:
            row = tree.aligned(given, values)
        except ValueError:
            raise ValueError(
                f"{name}.pullback must return {part} in the structure of start.{part}, or None; got {_kind(given)}"
            ) from None
        for value, cotangent in zip(tree.leaves(values), row, strict=True):
            if cotangent is None:
                continue
            if not isinstance(cotangent, Tensor) or cotangent.shape != value.shape:
                got = tuple(cotangent.shape) if isinstance(cotangent, Tensor) else type(cotangent).__name__
                raise ValueError(
                    f"{name}.pullback returned {got} for a tensor of {part} with shape {tuple(value.shape)}; a "
                    "cotangent has the shape of its tensor"
                )
        leaves += row
    return leaves


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {list(value)[:5]}"
    return f"a {type(value).__name__}"
