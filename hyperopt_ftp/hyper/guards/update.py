"""The update of an optimizer, checked when it first runs: some updates would give a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...calls import did_you_mean, few, shown
from ...types import Params, State
from ..core.leaves import detached, floats, is_float
from ..core.transforms import under_transform
from .graphs import captured_leaf, refuse_outer_tensors
from .subjects import UPDATE, captured, writes
from .verified import Asked, Verified
from .watched_calls import watched_calls
from .writes import refuse_changed, refuse_writes, versions_of

Update: TypeAlias = Callable[[Params, State, Params, dict[str, Any]], tuple[Params, State]]

#: Updates of each kind that are looked at: the state that the first one gets is made by init.
LOOKS = 2


class GuardedUpdate:
    """``update(grads, state, params, hparams)``, or an error where it is no update, or a derivative would be wrong.

    It must not use a tensor that a derivative is taken in and that it is not given. If anything is differentiated, it
    must not write into its arguments, nor read the number of an hparam that a derivative is asked for. The first update
    of each kind is checked: plain, with a graph, and under a transform.
    """

    def __init__(self, bare: Update, verified: Verified, asked: Asked) -> None:
        self.bare: Update = bare
        self._verified, self._asked = verified, asked

    def __call__(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        kind = "transform" if under_transform() else "graph" if torch.is_grad_enabled() else "plain"
        looked = self._verified.updates[kind]
        if looked < LOOKS:
            self._verified.updates[kind] = 0  # after an error the same training is refused again
            found = self._guarded(kind, grads, state, params, hparams)
            self._verified.updates[kind] = looked + 1
            return found
        looks = self._asked.derived and kind != "transform"
        given = [x for x in tree.leaves((grads, state, params)) if isinstance(x, Tensor)] if looks else []
        versions = versions_of(given)
        found = _explained(self.bare, grads, state, params, hparams)
        refuse_changed(UPDATE, versions)
        return found

    def _guarded(
        self, kind: str, grads: Params, state: State, params: Params, hparams: dict[str, Any]
    ) -> tuple[Params, State]:
        if kind == "plain":
            grads, state, params = detached((grads, state, params))
        elif kind == "graph":  # a first gradient may have none, and what is lost of later ones would not be seen
            grads = tree.map_tree(_leaf, grads)
        given = [x for x in tree.leaves((grads, state, params)) if isinstance(x, Tensor)]
        knobs = [x for x in floats(hparams) if x.requires_grad]
        known = [*knobs, *(x for x in (*floats(grads), *floats(params)) if x.requires_grad)]
        with ExitStack() as stack:
            if kind == "plain" or self._asked.inside_function:
                stack.enter_context(refuse_outer_tensors(UPDATE, kind != "graph", [*knobs, *given]))
            operations = None
            if self._asked.derived and kind != "transform":
                operations = stack.enter_context(refuse_writes(UPDATE, knobs, collectives=True))
            calls = watched_calls(UPDATE, knobs, known, operations)
            if self._asked.derived:
                stack.enter_context(calls)
            found = _explained(self.bare, grads, state, params, hparams)
            _check_result(found, params)
        self._verified.warned |= calls.warned
        leaf = captured_leaf(floats(found), [*knobs, *given]) if kind == "graph" else None
        if leaf is not None:
            raise captured(UPDATE, leaf)
        return found


def _explained(
    update: Update, grads: Params, state: State, params: Params, hparams: dict[str, Any]
) -> tuple[Params, State]:
    try:
        return update(grads, state, params, hparams)
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
        raise writes(UPDATE, "", None) from error


def _check_result(found: Any, params: Params) -> None:
    if not isinstance(found, tuple) or len(found) != 2 or not _is_like(found[0], params):
        swapped = isinstance(found, tuple) and len(found) == 2 and _is_like(found[1], params)
        raise TypeError(
            "optimizer.update(grads, state, params, hparams) must return a tuple (params, state), with params in the "
            f"structure that it was given; got {'(state, params)' if swapped else shown(found)}"
        )


def _is_like(new: Any, params: Params) -> bool:
    structure = tree.Structure(params)
    rows = tree.fitted(new, structure)
    pairs = zip(rows or (), structure.leaves, strict=False)
    return rows is not None and all(isinstance(x, Tensor) and x.shape == p.shape for x, p in pairs)


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_() if is_float(x) and not x.requires_grad else x
