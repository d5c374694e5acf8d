"""Moving weights by any torch optimizer, which is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..checks.arguments import check_base
from ..execution.hold import Hold
from .modes import Modes
from .mover import Mover, Work


class Given(Mover):
    """Any :class:`torch.optim.Optimizer` that steps once for each gradient. Groups and state are those of the base.

    A step reads nothing of the base's state. What the base writes or reads with its own ``state_dict`` and
    ``load_state_dict`` goes through them. A base with two modes (schedule-free) is held in the mode that ``eval()``
    deploys.
    """

    own: bool = False

    def __init__(self, optimizer: Optimizer, hold: Hold) -> None:
        super().__init__(hold)
        self.optimizer: Optimizer = optimizer
        # Adafactor and Muon say "torch.optim" alone. Others' flags are their own: a default of foreach=True is no wish.
        classes = [c for c in type(optimizer).__mro__ if c is not Optimizer]
        self.flagged: bool = any(f"{c.__module__}.".startswith("torch.optim.") for c in classes)
        method = getattr(optimizer, "_init_group", None)
        #: How many lists torch's method that makes a group's state fills; ``None``: there is no such method.
        self._columns: int | None = None if method is None else len(inspect.signature(method).parameters) - 1
        self._shared: Any = None
        self.modes: Modes = Modes(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}  # an optimizer shares its own when it is made again

    def groups(self, title: str, refused: type) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Copies of groups and defaults, to be checked in a wrapper of the class ``title``."""
        base, options = self.optimizer, self.hold.options
        check_base(base, title, refused)
        for group in base.param_groups:
            if isinstance(group.get("constrained"), list):  # one bool for each parameter: as a wrapper leaves it
                maker = group.get("made_by")
                raise ValueError(f"the base of {title} is inside another optimizer already ({maker}); make a new base")
        taken = [name for name in (*options, "constrained", "made_by") if name in base.defaults]
        if taken:
            raise ValueError(
                f"{title} keeps {taken} in the groups, where {type(base).__name__} has options of these names"
            )
        groups = [{**group} for group in base.param_groups]
        for group in groups:
            if "param_names" in group:
                group["params"] = list(zip(group["param_names"], group["params"], strict=True))
        return groups, {**base.defaults, **options}

    def take(self, opt: Optimizer) -> None:
        """Once all is checked, the optimizer has the very groups, defaults and state of the base: whoever else holds
        them, such as an optimizer inside the base, goes on with them."""
        base = self.optimizer
        self._merge(opt.param_groups)
        base.defaults.update(opt.defaults)
        opt.param_groups, opt.defaults, opt.state = base.param_groups, base.defaults, base.state

    def _merge(self, groups: list[dict[str, Any]]) -> None:
        for mine, theirs in zip(groups, self.optimizer.param_groups, strict=True):
            theirs.update((key, value) for key, value in mine.items() if key != "params")

    def add(self, opt: Optimizer, group: Any, add_checked: Callable[[Any], None]) -> None:
        """Add a checked group: a base may make state for it, or pass the group on."""
        if isinstance(group, dict) and isinstance(group.get("params"), Iterator):
            group["params"] = list(group["params"])
        shared = opt.param_groups
        opt.param_groups = list(shared)
        try:
            add_checked({**group} if isinstance(group, dict) else group)
            checked = opt.param_groups[-1]
        finally:
            opt.param_groups = shared
        self.share(opt)
        self.optimizer.add_param_group(group)
        added = opt.param_groups[-1]
        for name, value in checked.items():  # what the base has put in is as it wants it
            added.setdefault(name, value)
        added["constrained"] = checked["constrained"]

    def check_ready(self, opt: Optimizer) -> None:
        self._check_shared(opt)
        self.modes.check()

    def share(self, opt: Optimizer) -> None:
        """The base goes on with the optimizer's groups and state, which may have been swapped in since a step."""
        self._check_shared(opt)
        self.attach(opt)

    def _check_shared(self, opt: Optimizer) -> None:
        if self.optimizer.param_groups is not opt.param_groups or self.optimizer.state is not self._shared:
            raise RuntimeError(
                f"the base's state was loaded without its wrapper; call load_state_dict on {type(opt).__name__}(...) "
                "itself"
            )

    def attach(self, opt: Optimizer) -> None:
        if self._shared is opt.state and self.optimizer.param_groups is opt.param_groups:
            return
        try:
            if self.optimizer.param_groups is not opt.param_groups:
                self.optimizer.param_groups = opt.param_groups
            if self.optimizer.state is not opt.state:
                self.optimizer.state = opt.state
        except AttributeError as error:
            raise RuntimeError(
                f"{type(self.optimizer).__name__} keeps groups and state in an optimizer of its own, so that others "
                "cannot be put in their place; use load_state_dict"
            ) from error
        self._shared = opt.state

    def switch(self, opt: Optimizer, mode: Literal["train", "eval"]) -> None:
        if self.modes.exist:
            self.share(opt)
            getattr(self.optimizer, mode)()

    def begin_group(self, group: dict[str, Any]) -> None:
        # Torch's bases take an empty state for a first step: the base's state is made before ours.
        if self._columns is not None:
            self.optimizer._init_group(group, *([] for _ in range(self._columns)))  # pyright: ignore

    # -- saving and loading -------------------------------------------------------------------------------------

    @property
    def _saves(self) -> bool:
        """Whether the base writes checkpoints in a form of its own, by its method or by hooks on it."""
        return _overrides(self.optimizer, "state_dict") or _hooked(self.optimizer, "state_dict")

    @property
    def _loads(self) -> bool:
        name = "load_state_dict"
        return self._saves or _overrides(self.optimizer, name) or _hooked(self.optimizer, name)

    def state_dict(self, opt: Optimizer, found: dict[str, Any]) -> dict[str, Any]:
        if not self._saves:
            return found
        self.share(opt)
        state, ours = opt.state, self.ours
        together = {p: entries for p, entries in state.items() if isinstance(p, Tensor)}
        try:
            for p in together:
                del state[p]
            state.update(_stripped(together, ours))
            base = self.optimizer.state_dict()
        finally:
            state.update(together)
        kept = {key: _only(entries, ours) for key, entries in found["state"].items() if isinstance(entries, dict)}
        return {**found, "state": kept, "base": base}

    def load(self, state: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        base, ours, name = self.optimizer, self.ours, type(self.optimizer).__name__
        if _overrides(base, "state_dict") and "base" not in saved:
            raise ValueError(
                f"the checkpoint has no entry 'base', what {name} writes by its own state_dict. Was it made by {name} "
                "alone? Then load it into that before it is wrapped. Or rewritten by torch.distributed.checkpoint, "
                "which keeps state and param_groups alone?"
            )
        before = [(entries, dict(entries)) for entries in _written(base)]
        try:
            if not self._loads:
                base.__setstate__(dict(state))
                return state
            own = self._saves and "base" in saved
            theirs = saved["base"] if own else {**saved, "state": _stripped(saved["state"], ours)}
            base.load_state_dict(theirs)
            self._merge(state["param_groups"])
            for p, entries in state["state"].items():
                if isinstance(p, Tensor):
                    base.state[p].update(_only(entries, ours))
        except Exception as error:
            for entries, old in before:
                entries.clear()
                entries.update(old)
            raise ValueError(
                f"the checkpoint does not suit {name}, which cannot load it ({error!r}); was it made around another "
                "base?"
            ) from error
        return {**state, "state": base.state, "param_groups": base.param_groups}

    # -- a step -------------------------------------------------------------------------------------------------

    def step(self, collect: Callable[[], Work]) -> None:
        state, fresh = self.optimizer.state, self._fresh()
        saved: list[tuple[list[Tensor], Tensor]] = []
        raw: dict[Tensor, Any] = {}
        small = [i for i, spec in enumerate(self.hold.specs) if spec.kind in ("scalar", "count")]
        try:
            with self.modes.deployed():
                work = collect()
                parts = list(chain(*work.values()))
                for columns in (part.columns.state for part in parts):
                    saved += [(columns[i], torch.stack(columns[i])) for i in small]
                before = [backend.before_(mine) for backend, mine in work.items()]
            for part, (grads, _) in zip(parts, chain(*before), strict=True):
                for p, grad in zip(part.columns.weights, grads, strict=False):
                    old: Any = p.grad
                    p.grad = grad.to(old.dtype)  # where this is an error there is nothing to restore
                    raw[p] = old
            self._step_base(fresh.keys())
        except BaseException:
            for column, values in saved:
                torch._foreach_copy_(column, list(values.unbind()))
            _roll_back(state, fresh)
            raise
        finally:
            for p, grad in raw.items():
                p.grad = grad
        held = [p for part in parts for p in part.columns.weights] if self.modes.exist else []
        self.modes.check_follows(held)
        with self.modes.deployed(held):
            for (backend, mine), known in zip(work.items(), before, strict=True):
                backend.after_(mine, known)

    def _step_base(self, first: Collection[Tensor]) -> None:
        """The base alone. It detects a first step by its state, so ours is hidden if it has none of its own.

        So it may skip a parameter at first, for instance if gradients are not finite.
        """
        if self._columns is not None:
            self.optimizer.step()
            return
        ours, state = self.ours, self.optimizer.state
        entries = [(p, s) for p, s in state.items() if isinstance(p, Tensor) and s]
        hidden = {p: _only(s, ours) for p, s in entries if p in first or s.keys() <= ours}
        for p, found in hidden.items():
            for name in found:
                del state[p][name]
            if not state[p]:
                del state[p]
        try:
            self.optimizer.step()
        finally:
            for p, found in hidden.items():
                state[p].update(found)

    def _fresh(self) -> dict[Tensor, dict[str, Any]]:
        """State, as it is now, of parameters that are about to be initialized."""
        stepped = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = {p: self.optimizer.state.get(p, {}) for p in stepped}
        return {p: dict(state) for p, state in found.items() if not self.hold.is_initialized(state)}


def _roll_back(state: dict[Any, Any], fresh: dict[Tensor, dict[str, Any]]) -> None:
    """Undo what was made for a step that the base refused."""
    for p, before in fresh.items():
        state[p].clear()
        state[p].update(before)
        if not before:
            del state[p]


def _overrides(optimizer: Optimizer, method: str) -> bool:
    return getattr(getattr(optimizer, method), "__func__", None) is not getattr(Optimizer, method)


def _hooked(optimizer: Optimizer, method: str) -> bool:
    return any(getattr(optimizer, f"_optimizer_{method}_{when}_hooks", None) for when in ("pre", "post"))


def _written(base: Optimizer) -> Iterator[dict[Any, Any]]:
    """What a base may write into when it loads: attributes, groups and state, its own and of optimizers inside it."""
    optimizers = [base]
    for optimizer in optimizers:
        inside = [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
        optimizers += [value for value in inside if value not in optimizers]
        yield from (vars(optimizer), optimizer.state, *optimizer.param_groups)
        yield from (entries for entries in optimizer.state.values() if isinstance(entries, dict))


def _only(entries: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name in names}


def _stripped(state: Mapping[Any, Any], ours: Collection[str]) -> dict[Any, Any]:
    """What the base has put into ``state``: a parameter of which it keeps nothing has no entry."""
    found = {}
    for key, entries in state.items():
        is_dict = isinstance(entries, Mapping)
        left = {name: value for name, value in entries.items() if name not in ours} if is_dict else entries
        if not is_dict or left or not entries:
            found[key] = left
    return found
