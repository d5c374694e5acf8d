"""The update of an optimizer, looked at when it first runs: some updates would give a wrong derivative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import tree
from ...calls import did_you_mean, few, shown
from ...types import Params, State
from ..core.leaves import detached, floats, is_float, requiring_grad
from ..core.torch_private import under_transform
from .calls import read_knobs, watched_calls
from .graphs import loses_derivative, refuse_outer_tensors
from .messages import UPDATE, writes
from .operations import watched_operations
from .verdict import Needs, Verdict

Update: TypeAlias = Callable[[Params, State, Params, dict[str, Any]], tuple[Params, State]]

#: Updates of each kind that are looked at: the state that the first one gets is made by init.
LOOKS = 2


class GuardedUpdate:
    """``update(grads, state, params, hparams)``, or an error where it is no update, or a derivative would be wrong.

    It must not write into its arguments. If anything is differentiated, it must not read the number of an hparam that
    a derivative is asked for. Where a node hides the graph, it must not use a tensor that a derivative is taken in and
    that it is not given. The first updates of each kind are checked: plain, with a graph, and under a transform. Later
    ones are looked at for numbers that are read of hparams.

    ``looks``: updates of each kind that are looked at in a training, until the verdict has them.
    """

    def __init__(self, unguarded: Update, verdict: Verdict, needs: Needs, looks: int = LOOKS) -> None:
        self.unguarded: Update = unguarded
        self._verdict, self._needs, self._looks = verdict, needs, looks
        self._looked: Counter[str] = Counter()

    def __call__(self, grads: Params, state: State, params: Params, hparams: dict[str, Any]) -> tuple[Params, State]:
        kind = "transform" if under_transform() else "graph" if torch.is_grad_enabled() else "plain"
        if self._looked[kind] < self._looks and kind not in self._verdict.updates:
            return self._inspect(kind, grads, state, params, hparams)
        looks = self._needs.derived and kind != "transform"
        knobs = requiring_grad(hparams) if looks and self._verdict.reads else []
        outer = self._needs.closed and self._needs.inside_function
        with ExitStack() as stack:
            if outer:
                given = tree.tensors((grads, state, params, hparams))
                stack.enter_context(refuse_outer_tensors(UPDATE, kind != "graph", given))
            if knobs:
                stack.enter_context(read_knobs(UPDATE, knobs, (grads, state, params)))
            found = _explained(self.unguarded, grads, state, params, hparams)
        if kind == "graph" and self._needs.closed:
            lost = loses_derivative(UPDATE, floats(found), requiring_grad((grads, state, params, hparams)))
            if lost is not None:
                raise lost
        return found

    def _inspect(
        self, kind: str, grads: Params, state: State, params: Params, hparams: dict[str, Any]
    ) -> tuple[Params, State]:
        needs, verdict = self._needs, self._verdict
        derived = needs.derived and (not needs.of_captured or bool(requiring_grad((grads, state, params))))
        if kind == "plain":
            grads, state, params = detached((grads, state, params))
        elif kind == "graph" and derived:  # a first gradient may have none, and what is lost of later ones counts
            grads = tree.map_tree(_leaf, grads)
        given = tree.tensors((grads, state, params))
        knobs = requiring_grad(hparams)
        # Leaves that a node makes of the state may be counts, whose numbers anybody may take.
        known = [*knobs, *requiring_grad((grads, params) if needs.closed else given)]
        others = requiring_grad(state) if needs.closed else []
        with ExitStack() as stack:
            if needs.closed and (kind == "plain" or needs.inside_function):
                stack.enter_context(refuse_outer_tensors(UPDATE, kind != "graph", [*knobs, *given]))
            operations = None
            if derived and kind != "transform":
                operations = stack.enter_context(watched_operations(UPDATE, knobs, collectives=True))
            calls = watched_calls(UPDATE, knobs, known, operations, ignored=others)
            if derived:
                stack.enter_context(calls)
            else:
                stack.enter_context(_unwritten([*given, *tree.tensors(hparams)]))
            found = _explained(self.unguarded, grads, state, params, hparams)
            _check_result(found, params)
        lost = loses_derivative(UPDATE, floats(found), [*knobs, *given]) if kind == "graph" else None
        if needs.closed and lost is not None:
            raise lost
        verdict.refusal = verdict.refusal or lost
        self._looked[kind] = self._looks if calls.warned else self._looked[kind] + 1
        if self._looked[kind] == self._looks and not calls.warned:  # else the next training is warned of again
            verdict.updates.add(kind)
        return found


@contextmanager
def _unwritten(given: list[Tensor]) -> Iterator[None]:
    """Refuse writes into tensors that the caller has, which would train from other ones the next time."""
    counted = [x for x in given if not x.is_inference()]  # others have no version
    before = [x._version for x in counted]
    yield
    for x, version in zip(counted, before, strict=True):
        if x._version != version:
            raise writes(UPDATE, "", x)


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
