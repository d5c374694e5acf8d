"""What a checkpoint brings, made ready for the optimizer that loads it, or an error before anything has changed."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..calls import callers_level
from ..hparams import is_number
from . import store
from .checks import check_maker, check_order, check_state

if TYPE_CHECKING:
    from .optimizer import DropIn


def make_ready(opt: DropIn, state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Loaded groups and state are made ready to use, or an error says why they cannot be."""
    opt._mover.check_saved(saved)
    for old, new in zip(opt.param_groups, state["param_groups"], strict=True):
        _take_options(opt, old, new)
    _restore(opt, state, saved)
    for old, new in zip(opt.param_groups, state["param_groups"], strict=True):
        names, hold = new.get("param_names"), opt._hold
        if hold is not None:
            hold.anchors.check(names, new["params"], new["constrained"])
        entries = ("step", *opt._mover.moments(new)) if opt._mover.whole else ()
        for p, name, constrained in zip(new["params"], names or opt._names(old), new["constrained"], strict=True):
            found = state["state"].get(p, {})
            shapes = store.shapes(hold.specs if hold else (), p, new.get("norm", "mars"))
            check_state(p, name, found, shapes, entries, opt._kinds())
            if hold is not None and constrained and hold.is_initialized(found):
                hold.anchors.restore(p, name, found, opt.state.get(p, {}))
    opt._mover.check_state(state)
    plain = not any(group.get("made_by") for group in saved["param_groups"])
    if plain and opt._hold is not None and opt._hold.anchors.is_start:
        _warn_of_another_anchor(opt, state)


def _warn_of_another_anchor(opt: DropIn, state: dict[str, Any]) -> None:
    """Weights that an optimizer without an anchor has fine-tuned are about to become their own."""
    pairs = (
        pair for group in state["param_groups"] for pair in zip(group["params"], group["constrained"], strict=True)
    )
    if any(state["state"].get(p) for p, constrained in pairs if constrained):
        warnings.warn(
            f"the checkpoint is of an optimizer without an anchor, so {opt._title()} takes the weights as they are at "
            "its first step for the anchor; give the pre-trained ones: anchor=pretrained.state_dict()",
            UserWarning,
            stacklevel=callers_level(),
        )


def needed(opt: DropIn) -> set[str]:
    """Options that a group of a checkpoint has to have: the base's numbers."""
    return {name for name, value in opt.defaults.items() if is_number(value)} - opt._options.keys()


def _take_options(opt: DropIn, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Check a loaded group's options, and fill in those that are of this machine (``foreach``, ``fused``)."""
    check_maker(new, opt._title(), needed(opt))
    for key in (*opt.defaults, "constrained", "made_by"):  # absent in a checkpoint of the plain base
        if key in old:
            new.setdefault(key, old[key])
    for key in ("foreach", "fused"):  # of this machine and these tensors, not of the run
        if key in old:
            new[key] = old[key]
    if "param_names" in old:
        check_order(old["param_names"], new["param_names"])
        new["param_names"] = old["param_names"]
    opt._check_options(new)
    opt._mover.check_weights(opt, new)
    flags = new["constrained"]
    if not isinstance(flags, list) or [type(value) for value in flags] != [bool] * len(new["params"]):
        raise ValueError(f"the checkpoint's constrained must be a bool for each parameter, got {flags!r}")


def _restore(opt: DropIn, loaded: dict[str, Any], saved: dict[str, Any]) -> None:
    """State in the dtype and device that were chosen, where torch casts it to those of the parameter; sharded as
    that is, where another number of processes saved it."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = ((group, p) for group in loaded["param_groups"] for p in group["params"])
    kinds = {"step": "count", **opt._kinds()}
    for key, (group, p) in zip(ids, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            now = loaded["state"][p][name]
            cast = name not in kinds and name != "anchor" and opt._mover.casts(name)
            if isinstance(value, Tensor) and now.dtype != value.dtype and not cast:
                now = value.to(now.device)
            if name == "anchor" and opt._hold is not None:
                now = now.to(opt._hold.anchors.device or now.device)
            loaded["state"][p][name] = store.shard(now, p, kinds.get(name), group.get("norm", "mars"))
