"""What a checkpoint brings, made ready for the optimizer that loads it, or an error before anything has changed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..calls import warn_caller
from ..hparams import is_number
from .checks.names import names_in
from .checks.saved import check_maker, check_order, check_state
from .execution import store
from .movers.given import Given
from .movers.mover import Mover

#: State of torch's optimizers that is one number for a parameter. They keep the rest in the dtype of the weights, and
#: can do nothing in another. Of others we do not know: float32 moments of 16-bit weights, for instance.
TORCHS_NUMBERS = frozenset({"step", "mu_product", "eta", "mu"})


def without_anchors(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint that leaves them out."""
    state = {
        key: {name: x for name, x in entries.items() if name != "anchor"} if isinstance(entries, dict) else entries
        for key, entries in saved["state"].items()
    }
    return {**saved, "state": state}


def maker(opt: Optimizer, mover: Mover) -> str:
    """What a checkpoint says of its maker. A class derived outside the package loads what its parent made."""
    title = next(c.__name__ for c in type(opt).__mro__ if c.__module__.startswith(f"{__package__}."))
    return f"{title}({type(mover.optimizer).__name__})" if isinstance(mover, Given) else title


def make_ready(opt: Optimizer, mover: Mover, state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Loaded groups and state are made ready to use, or an error says why they cannot be.

    Args:
        opt: what loads them.
        mover: what moves its weights.
        state: what torch has made of the checkpoint.
        saved: the checkpoint.
    """
    if "param_names" in opt.param_groups[0]:
        check_order(names_in(opt.param_groups), names_in(state["param_groups"]))
    for old, new in zip(opt.param_groups, state["param_groups"], strict=True):
        _take_options(opt, mover, saved, old, new)
    _restore(mover, state, saved)
    hold = mover.hold
    for old, new in zip(opt.param_groups, state["param_groups"], strict=True):
        names = new.get("param_names")
        hold.anchors.check(names, new["params"], new["constrained"])
        needed = ("step", *mover.moments(new)) if mover.whole else ()
        names = names or names_in(opt.param_groups, old)
        for p, name, constrained in zip(new["params"], names, new["constrained"], strict=True):
            found = state["state"].get(p, {})
            shapes = store.shapes(hold.specs, p, new.get("norm", "mars"))
            check_state(p, name, found, shapes, needed, mover.kinds)
            if constrained and hold.is_initialized(found):
                hold.anchors.restore(p, name, found, opt.state.get(p, {}))


def warn_of_another_anchor(opt: Optimizer, mover: Mover, saved: Mapping[str, Any]) -> None:
    """Loaded weights that an optimizer without an anchor has fine-tuned are about to become their own."""
    if not mover.hold.anchors.is_start or any(group.get("made_by") for group in saved["param_groups"]):
        return
    pairs = (pair for group in opt.param_groups for pair in zip(group["params"], group["constrained"], strict=True))
    if any(opt.state.get(p) for p, constrained in pairs if constrained):
        warn_caller(
            f"the checkpoint is of an optimizer without an anchor, so {maker(opt, mover)} takes the weights as they "
            "are at its first step for the anchor; give the pre-trained ones: anchor=pretrained.state_dict()"
        )


def _take_options(
    opt: Optimizer, mover: Mover, saved: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    """Check a loaded group's options, and fill in those that are of this machine (``foreach``, ``fused``)."""
    numbers = {name for name, value in opt.defaults.items() if is_number(value)}
    check_maker(saved, new, maker(opt, mover), numbers - mover.hold.options.keys())
    for key in (*opt.defaults, "constrained"):  # absent in a checkpoint of the plain base
        if key in old:
            new.setdefault(key, old[key])
    new["made_by"] = old["made_by"]
    for key in ("foreach", "fused"):  # of this machine and these tensors, not of the run
        if key in old:
            new[key] = old[key]
    if "param_names" in old:
        new["param_names"] = old["param_names"]
    mover.check_options(opt, new)
    flags = new["constrained"]
    if not isinstance(flags, list) or [type(value) for value in flags] != [bool] * len(new["params"]):
        raise ValueError(f"the checkpoint's constrained must be a bool for each parameter, got {flags!r}")


def _restore(mover: Mover, loaded: dict[str, Any], saved: dict[str, Any]) -> None:
    """State in the dtype and device that were chosen, where torch casts it to those of the parameter; sharded as
    that is, where another number of processes saved it."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = ((group, p) for group in loaded["param_groups"] for p in group["params"])
    kinds = {"step": "count", **mover.kinds}
    for key, (group, p) in zip(ids, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            now = loaded["state"][p][name]
            cast = mover.flagged and not mover.own and name not in {*kinds, *TORCHS_NUMBERS, "anchor"}
            if isinstance(value, Tensor) and now.dtype != value.dtype and not cast:
                now = value.to(now.device)
            if name == "anchor":
                now = now.to(mover.hold.anchors.device or now.device)
            loaded["state"][p][name] = store.shard(now, p, kinds.get(name), group.get("norm", "mars"))
