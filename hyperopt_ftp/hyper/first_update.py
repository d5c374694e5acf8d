"""The first update of an optimizer is looked at while it is made: what it may not do gives a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..calls import did_you_mean, shown
from ..types import Params, State
from .functorch import under_transform
from .leaves import floats, fresh, is_float
from .mutation import refuse_mutation, writes
from .numbers import refuse_numbers
from .strangers import leaves_of, refuse_outer_leaves, refuse_outer_tensors

WHAT = "the optimizer"
Update = Callable[[Params, State, Params, dict[str, Any]], tuple[Params, State]]


def checked(
    update: Update, grads: Params, state: State, params: Params, hparams: dict[str, Any], derived: bool, apart: bool
) -> tuple[Params, State]:
    """``update(grads, state, params, hparams)``, looked at where it is ``derived``; or an error that says what an
    update is called with and returns."""
    try:
        look = partial(looked_at, update, apart=apart) if derived else update
        found = look(grads, state, params, hparams)
    except KeyError as error:
        name = error.args[0] if error.args else None
        there = f"its hparams have {list(hparams)}{did_you_mean(name, hparams)}"
        there += f", its state {list(state)}" if isinstance(state, dict) else ""
        raise ValueError(f"optimizer.update looks for {name!r}: {there}") from error
    if not isinstance(found, tuple) or len(found) != 2 or not _is_like(found[0], params):
        swapped = isinstance(found, tuple) and len(found) == 2 and _is_like(found[1], params)
        raise TypeError(
            "optimizer.update(grads, state, params, hparams) must return (params, state), the params in the structure "
            f"that it was given; got {'(state, params)' if swapped else shown(found)}"
        )
    return found


def _is_like(new: Any, params: Params) -> bool:
    try:
        rows = tree.aligned(new, params)
    except ValueError:
        return False
    return all(isinstance(x, Tensor) and x.shape == p.shape for x, p in zip(rows, tree.leaves(params), strict=True))


def looked_at(
    update: Update, grads: Params, state: State, params: Params, hparams: dict[str, Any], apart: bool
) -> tuple[Params, State]:
    """``update(grads, state, params, hparams)``, or an error where a derivative through it would be wrong.

    An update may not write into what it is given, use a tensor that a derivative is taken in and that it is not given,
    or take the number of an hparam that a derivative is asked for.

    Args:
        update: of the optimizer.
        grads, state, params, hparams: its arguments; hparams that a derivative is asked for require grad.
        apart: inside an ``autograd.Function``, with the transforms around it switched off.
    """
    if under_transform():  # nothing that is given requires grad
        with refuse_outer_tensors(True, WHAT) if apart else nullcontext(), refuse_numbers((), (), WHAT):
            return update(grads, state, params, hparams)
    own = not torch.is_grad_enabled()  # leaves for this look alone
    if own:
        grads, state, params = fresh((grads, state, params))[1]
    else:  # a first gradient may have no graph, and what is lost of later ones would not be seen
        grads = tree.map_tree(_with_graph, grads)
    given = [x for x in tree.leaves((grads, state, params)) if isinstance(x, Tensor)]
    knobs = [x for x in floats(hparams) if x.requires_grad]
    known = [*knobs, *(leaf for x in given if x.requires_grad for leaf in leaves_of(x))]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if apart:
            stack.enter_context(refuse_outer_tensors(what=WHAT))
        stack.enter_context(refuse_mutation(knobs, WHAT, given, collectives=True))
        stack.enter_context(refuse_numbers(knobs, known, WHAT))
        try:
            new = update(grads, state, params, hparams)
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            raise writes(WHAT, "", None) from error
    refuse_outer_leaves(floats(new), [*knobs, *given])
    return fresh(new, False)[1] if own else new


def _with_graph(x: Any) -> Any:
    return x.detach().requires_grad_() if is_float(x) and not x.requires_grad else x
