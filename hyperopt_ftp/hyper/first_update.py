"""The first updates of an optimizer are looked at while they are made: some would give a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import did_you_mean, few, shown
from ..dtensors import local
from ..hparams import concrete
from ..types import Params, State
from .functorch import under_transform
from .leaves import floats, fresh, is_float
from .mutation import refuse_mutation
from .numbers import refuse_numbers
from .refusals import writes
from .strangers import leaves_of, refuse_outer_leaves, refuse_outer_tensors

Update = Callable[[Params, State, Params, dict[str, Any]], tuple[Params, State]]

WHAT = "the optimizer"


def kind_of_update() -> str:
    """Each kind shows other things, so that each is looked at."""
    return "transform" if under_transform() else "graph" if torch.is_grad_enabled() else "plain"


def looked_at(
    update: Update, grads: Params, state: State, params: Params, hparams: dict[str, Any], derived: bool, apart: bool
) -> tuple[Params, State]:
    """``update(grads, state, params, hparams)``, or an error where it is no update, or a derivative would be wrong.

    It may not use a tensor that a derivative is taken in and that it is not given; where it is ``derived``, nor write
    into what it is given, nor take the number of an hparam that a derivative is asked for. No graph is made for the
    look: what only a graph shows is seen where a step is made with one.

    Args:
        update: of the optimizer.
        grads, state, params, hparams: its arguments; hparams that a derivative is asked for require grad.
        derived: whether anything is differentiated.
        apart: inside an ``autograd.Function``, with the transforms around it switched off.
    """
    kind = kind_of_update()
    if kind == "plain":
        grads, state, params = fresh((grads, state, params), False)[1]
    elif kind == "graph":  # a first gradient may have none, and what is lost of later ones would not be seen
        grads = tree.map_tree(_leaf, grads)
    given = [x for x in tree.leaves((grads, state, params)) if isinstance(x, Tensor)]
    knobs = [x for x in floats(hparams) if x.requires_grad]
    known = [*knobs, *(leaf for x in (*floats(grads), *floats(params)) if x.requires_grad for leaf in leaves_of(x))]
    with ExitStack() as stack:
        if kind == "plain" or apart:
            stack.enter_context(refuse_outer_tensors(kind != "graph", WHAT, [*knobs, *given]))
        if derived and kind != "transform":
            stack.enter_context(refuse_mutation(knobs, WHAT, collectives=True))
        if derived:
            stack.enter_context(refuse_numbers(knobs, known, WHAT))
        found = _found(update, grads, state, params, hparams)
    if kind == "graph":
        refuse_outer_leaves(floats(found), [*knobs, *given])
    return found


def refuse_other_updates(first: tuple[Params, State], again: tuple[Params, State]) -> None:
    """Raise where an update of the same arguments has another result."""
    for x, y in zip(map(local, floats(first)), map(local, floats(again)), strict=True):
        if not concrete(x):  # on paper
            return
        slack = torch.finfo(x.dtype).eps ** 0.75 if x.device.type != "cpu" else 0.0  # where sums have no fixed order
        if not torch.allclose(x.detach(), y.detach(), rtol=slack, atol=0.0, equal_nan=True):
            raise RuntimeError(
                "optimizer.update gives another result when a step is computed again, as this strategy does, so its "
                "derivative would be wrong. It must be the same function of its arguments each time: torch's default "
                "random generators are restored, but not one of its own, NumPy's or Python's, nor a counter. Keep such "
                "things in the state, or use hft.Unroll(checkpoint=False), without compile"
            )


def _found(
    update: Update, grads: Params, state: State, params: Params, hparams: dict[str, Any]
) -> tuple[Params, State]:
    """The update, with errors that say what it is called with and returns."""
    try:
        found = update(grads, state, params, hparams)
    except KeyError as error:
        name = error.args[0] if error.args else None
        parts = {"hparams": hparams, "state": state, "params": params}
        there = [f"{part} {few(list(x))}" for part, x in parts.items() if isinstance(x, dict)]
        raise ValueError(
            f"optimizer.update looks for {name!r}, which is not there{did_you_mean(name, hparams)}; there are "
            f"{', '.join(there)}"
        ) from error
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        raise writes(WHAT, "", None) from error
    if not isinstance(found, tuple) or len(found) != 2 or not _is_like(found[0], params):
        swapped = isinstance(found, tuple) and len(found) == 2 and _is_like(found[1], params)
        raise TypeError(
            "optimizer.update(grads, state, params, hparams) must return a tuple (params, state), with params in the "
            f"structure that it was given; got {'(state, params)' if swapped else shown(found)}"
        )
    return found


def _is_like(new: Any, params: Params) -> bool:
    try:
        rows = tree.aligned(new, params)
    except ValueError:
        return False
    return all(isinstance(x, Tensor) and x.shape == p.shape for x, p in zip(rows, tree.leaves(params), strict=True))


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_() if is_float(x) and not x.requires_grad else x
