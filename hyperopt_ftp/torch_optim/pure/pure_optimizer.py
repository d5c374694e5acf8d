"""A ``torch.optim`` optimizer that runs any pure one in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ...calls import check_compile, did_you_mean, explained, few, shown
from ...hyper.guards.calls import watched_calls
from ...hyper.guards.messages import UPDATE
from ...optimizers.averaging import averages
from ...optimizers.partition import partition
from ...optimizers.tuned import warn_of_nan
from ...types import Compile, Optimizer, State, check_optimizer
from ..checks.arguments import check_no_gradient, check_params, refuse_modules
from ..checks.names import names_in, unwrapped
from ..checks.saved import PURE, PURE_STATE, check_checkpoint
from .captured import captured
from .group_numbers import (
    as_number,
    check_groups,
    checked,
    copied,
    domain_or_any,
    equal,
    flat,
    is_tuned,
    names_of,
    owner,
    rebuilt,
    tuned_in,
    without_base,
)

#: Keys of the state.
_STATE, _STARTING = PURE, "starting"


class PureOptimizer(torch.optim.Optimizer):
    """A ``torch.optim`` class that runs any pure optimizer in place on a model's parameters.

    ``step()`` computes ``params, state = optimizer.update(grads, state, params, hparams)`` with the hparams in the
    groups, and writes the result into the parameters. Parameters without a gradient do not change.

    Args:
        params: as in torch.optim: parameters, named parameters, or groups (dicts), which may set hparams. The optimizer
            gets a dict by name, without wrappers' prefixes, or by number (``"0"``) if there are no names.
        optimizer: any pure optimizer.
        compile: compile the update by :func:`torch.compile`: ``True`` for inductor, or the name of another backend. If
            another set of gradients is ``None``, the update is recompiled.
        state: where to start: a state of ``optimizer`` over a dict of these names, as of :func:`train`. It is copied.

    Groups: there is one, or one for each part of a :func:`partition`, in the order of its labels. Several groups in
    ``params`` become the parts of a partition, each with ``optimizer`` as its rule, which sees the parameters of its
    group alone (clipping by the global norm).

    A group holds its part's hparams by name, as 0-d float64 tensors on the CPU: ``"lr"``, ``"betas"``, ``"by.lr"``. The
    prefix ``"base."`` is left out, unless two names would collide. The first group also holds hparams that belong to no
    part. A part without hparams (:func:`frozen`) shows an lr of 0 and no momentum, so ``OneCycleLR`` needs
    ``cycle_momentum=False`` there. LR schedulers of torch, and your own writes, change these numbers; a tree of rates
    (``lr={"w": 0.1}``) or a table (:func:`per_step`) takes :func:`scheduled` instead.

    An hparam that the optimizer tunes itself is part of the state. Its entry in the group shows the present value.
    Writing the starting value again is ignored (a constant scheduler does so); any other write is an error.

    State: ``state["pure"]`` by path, tuned hparams included, and starting values in ``state["starting"]``. A run
    resumed from ``state_dict`` continues bit for bit. Arguments of the optimizer, such as an anchor, are not in it.

    Raises:
        TypeError: an optimizer that is not pure; something that is not a parameter.
        ValueError: a group's option that is not an hparam; several groups for a partition; a state of other parameters;
            tensors inside the optimizer (an anchor) that share memory with the parameters.
        RuntimeError: in ``step``, a write to an hparam that the optimizer tunes itself.

    Warns:
        UserWarning: in the first step, a rule of your own inside :func:`hyper` takes a number of a tensor (``item()``).

    >>> import torch, hyperopt_ftp as hft
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> opt = hft.PureOptimizer([w], hft.hyper(hft.sgd(lr=0.1), by=hft.sgd(lr=0.01), over="lr"))
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     (w**2 / 2).sum().backward()
    ...     opt.step()
    >>> round(opt.hparams()["lr"], 4)  # 0.1 + 0.01 * <0.9, 1>
    0.109
    """

    @explained("the optimizer goes second: PureOptimizer(model.named_parameters(), hft.adam(lr=1e-3))")
    def __init__(
        self, params: Any, optimizer: Optimizer, *, compile: Compile = False, state: State | None = None
    ) -> None:
        check_optimizer("optimizer", optimizer)
        check_compile(compile)
        refuse_modules(params)
        super().__init__(params, {})
        everything = [p for group in self.param_groups for p in group["params"]]
        empty = [i for i, group in enumerate(self.param_groups) if not group["params"]]
        if empty:
            raise ValueError(f"PureOptimizer got no parameters in group {empty[0]}: leave that out")
        named = "param_names" in self.param_groups[0]
        given = names_in(self.param_groups)
        check_params(everything, named, given)
        check_no_gradient("PureOptimizer", {".".join(path): value for path, value in flat(optimizer.hparams)})
        self._names: dict[Tensor, str] = {p: unwrapped(str(name)) for p, name in zip(everything, given, strict=True)}
        self._optimizer: Optimizer = _by_group(optimizer, self.param_groups, self._names)
        shared = captured(self._optimizer, {p.untyped_storage().data_ptr() for p in self._names} - {0})
        if shared is not None:
            raise ValueError(
                f"the optimizer holds a tensor of the shape {tuple(shared.shape)} that shares memory with a parameter, "
                "and would move along; give it a copy: {n: p.detach().clone() for n, p in model.named_parameters()}"
            )
        self._divide(dict(zip(everything, given, strict=True)) if named else {})
        self._update: Callable[..., Any] = (
            torch.compile(
                self._optimizer.update, fullgraph=True, backend=compile if isinstance(compile, str) else "inductor"
            )
            if compile
            else self._optimizer.update
        )
        self._seen: tuple[Any, Any] | None = None  # entries of ``state``, and the tree that they are
        if state is not None:
            weights, hparams = self._weights(), self._given()
            first = self._optimizer.init(weights, hparams)
            if type(state) is not type(first):
                raise TypeError(f"state must be of this optimizer, {type(first).__name__}, got {type(state).__name__}")
            filled = _filled(first, dict(tree.named(state)), weights)
            self._start(hparams)
            self._keep(copied(filled))
            self._report()

    # -- groups -------------------------------------------------------------------------------------------------------

    def _divide(self, given: dict[Tensor, str]) -> None:
        weights = {name: p.detach() for p, name in self._names.items()}
        part_of = self._optimizer.parts(weights) if self._optimizer.parts else dict.fromkeys(weights, "")
        parts = list(dict.fromkeys(part_of.values()))
        values = dict(flat(self._optimizer.hparams))
        inside: list[list[tuple[str, ...]]] = [[] for _ in parts]
        for path in values:
            inside[owner(".".join(path), parts)].append(path)
        self._keys = [names_of(paths, part) for paths, part in zip(inside, parts, strict=True)]
        self.param_groups.clear()
        for part, keys in zip(parts, self._keys, strict=True):
            members = [p for p, name in self._names.items() if part_of[name] == part]
            names = {"param_names": [given[p] for p in members]} if given else {}
            numbers = {key: copied(values[path]) for key, path in keys.items()}
            if part and not any(".".join(path).startswith(f"{part}.") for path in values):
                numbers.setdefault(
                    "lr", torch.zeros((), dtype=torch.float64, device="cpu")
                )  # a frozen part; schedulers want one
            label = {"part": without_base(part.split("."))} if part else {}
            self.param_groups.append({"params": members, **names, **label, **numbers})
        self._known: list[set[str]] = [set(group) for group in self.param_groups]
        self._names = {p: self._names[p] for group in self.param_groups for p in group["params"]}
        self.defaults.update({key: copied(values[path]) for key, path in self._keys[0].items()})
        self._tuned: set[tuple[str, ...]] = {p for p in values if is_tuned(".".join(p), self._optimizer.tunes)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises after construction: the optimizer gets all its parameters at once."""
        if hasattr(self, "_optimizer"):
            raise RuntimeError(
                "PureOptimizer takes no groups later: its optimizer has been made for its parameters. Make a new one, "
                "or give all at once, those that do not move yet without a gradient"
            )
        super().add_param_group(param_group)

    def hparams(self) -> dict[str, Any]:
        """The present hyperparameters by name, tuned ones too; those of a part or group with its label (``"0.lr"``)."""
        values = {**dict(flat(self._given())), **self._present()}
        return {name: as_number(values[path]) for name, path in names_of(list(values), "").items()}

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name, if the optimizer keeps some: :func:`averages`.

        ``torch.func.functional_call(model, opt.averages(), (x,))`` evaluates the model with them.
        """
        weights = self._weights()
        return averages(weights, self._tree(weights, self._given()))

    def _places(self) -> Iterator[tuple[dict[str, Any], str, tuple[str, ...]]]:
        for group, keys in zip(self.param_groups, self._keys, strict=True):
            for key, path in keys.items():
                yield group, key, path

    def _given(self) -> dict[str, Any]:
        check_groups(self.param_groups, self._known)
        values, tuned = {}, self._present()
        for group, key, path in self._places():
            domain = domain_or_any(self._optimizer.domains, ".".join(path))
            values[path] = value = checked(key, group[key], domain, path in tuned)
            shown = (tuned[path], self._state[_STARTING][".".join(path)]) if path in tuned else ()
            if shown and not any(equal(value, x) for x in shown):
                raise RuntimeError(
                    f"{key} was set to {as_number(value)}, but the optimizer tunes it itself (now "
                    f"{as_number(tuned[path])}): a scheduler, or a write, has no effect there. Take a constant "
                    "scheduler, or set the numbers of the level above"
                )
        return rebuilt(self._optimizer.hparams, values)

    def _present(self) -> dict[tuple[str, ...], Any]:
        """Hparams that the optimizer has tuned."""
        if not self._started or not self._tuned:
            return {}
        hparams = self._optimizer.hparams
        values = flat(tuned_in(hparams, self._tree(self._weights(), hparams)))
        return {path: value for path, value in values if path in self._tuned}

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> dict[Any, Any]:
        return self.state  # whose keys need not be tensors

    @property
    def _started(self) -> bool:
        return bool(self._state.get(_STATE))  # a look at ``state["pure"]`` makes an empty one

    def _params(self) -> dict[str, Tensor]:
        """By name, in the order of the groups; a library may have put others in the place of those that were given."""
        if any(p not in self._names for group in self.param_groups for p in group["params"]):
            old = list(self._names.values())
            new = [p for group in self.param_groups for p in group["params"]]
            self._names = dict(zip(new, old, strict=True))
        return {self._names[p]: p for group in self.param_groups for p in group["params"]}

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._params().items()}

    def _tree(self, weights: dict[str, Tensor], hparams: Any) -> Any:
        if not self._started:
            return self._optimizer.init(weights, hparams)
        found = self._state[_STATE]
        if self._seen is None or self._seen[0] is not found:
            template = self._optimizer.init(weights, hparams)
            self._seen = (found, _filled(template, dict(found), weights))
        return self._seen[1]

    def pure_state(self) -> Any:
        """A copy of the state, as that of the pure optimizer over a dict of the parameters by name."""
        return copied(self._tree(self._weights(), self._given()))

    def _start(self, hparams: Any) -> None:
        if self._tuned:
            values = flat(hparams)
            self._state[_STARTING] = {".".join(path): copied(x) for path, x in values if path in self._tuned}

    def _keep(self, state: Any) -> None:
        found = dict(tree.named(state))
        self._state[_STATE], self._seen = found, (found, state)

    # -- torch.optim --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; an error leaves parameters and state as they are. ``closure`` evaluates the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = self._params()
        grads = {name: p.grad for name, p in params.items()}
        if all(g is None for g in grads.values()):
            return loss
        weights, hparams = self._weights(), self._given()
        # A rule of one's own that takes the number of a tuned hparam is warned of: it would not be tuned.
        looked = self._tuned and not self._started and self._update is self._optimizer.update
        with watched_calls(UPDATE) if looked else nullcontext():
            new, state = self._update(grads, self._tree(weights, hparams), weights, hparams)
        if not self._started:
            self._start(hparams)
        self._keep(tree.unshared(state, (weights, grads, hparams)))  # step, zero_grad and schedulers write into these
        for name, w in weights.items():
            if grads[name] is not None and new[name] is not w:
                w.copy_(new[name])
        self._report()
        return loss

    def _report(self) -> None:
        tuned = self._present()
        for group, key, path in self._places():
            if path in tuned:
                value = tuned[path]
                if all(x.is_cpu for x in tree.leaves(value)) and not equal(group[key], value):
                    warn_of_nan({key: value})
                group[key] = copied(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The state of an optimizer with the same arguments. It is checked first, so an error changes nothing."""
        if not isinstance(state_dict, Mapping):
            check_checkpoint(state_dict)

        def check(_: Any, final: dict[str, Any]) -> None:  # what other hooks have made of it
            self._check_saved(final)

        names = [group.get("param_names") for group in self.param_groups]
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, own in zip(self.param_groups, names, strict=True):
            if own is not None:  # the state is by name, so the checkpoint's order may be another
                group["param_names"] = own
        self._seen = None
        self._report()

    def _check_saved(self, saved: dict[str, Any]) -> None:
        check_checkpoint(saved)
        state, groups = saved["state"], saved["param_groups"]
        # A look at the state of a parameter leaves an empty one.
        others = [key for key, entries in state.items() if key not in (_STATE, _STARTING) and entries != {}]
        missing = [key for keys, group in zip(self._keys, groups, strict=False) for key in keys if key not in group]
        here, there = ([group.get("part") for group in some] for some in (self.param_groups, groups))
        if others or missing or here != there:
            what = f"has state of parameters {few(others)}" if others else f"has no {few(missing)} in its groups"
            what = what if others or missing else f"has groups of the parts {there}, here are {here}"
            raise ValueError(f"the checkpoint {what}: it is of another optimizer; load it into one that was made alike")
        found = state.get(_STATE)
        if found is not None and not isinstance(found, Mapping):
            raise ValueError(f"the checkpoint's state['pure'] must be a dict by path, got {shown(found)}; {PURE_STATE}")
        if found:
            weights = self._weights()
            _filled(self._optimizer.init(weights, self._optimizer.hparams), dict(found), weights)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name in _OWN}
        return {"_copied": _Copied(), **super().__getstate__(), **own}


class _Copied:
    """The first of what is pickled: pickle cannot take the functions inside functions of a pure optimizer."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Copied:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a PureOptimizer cannot be pickled, or sent to a process, as its rule is made of functions: send its "
            "state_dict(), and load_state_dict() into one that is built there"
        )


_OWN = ("_names", "_optimizer", "_keys", "_known", "_tuned", "_update", "_seen")


def _by_group(optimizer: Optimizer, groups: list[dict[str, Any]], names: dict[Tensor, str]) -> Optimizer:
    """The optimizer with the hparams that the groups were given; a partition where they are several."""
    made = []
    for group in groups:
        own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        wrong = [key for key in own if key not in optimizer.hparams]
        if wrong:
            known = list(optimizer.hparams)
            raise ValueError(
                f"a group has the option {wrong[0]!r}, but the hparams are {known}{did_you_mean(wrong[0], known)}"
            )
        values = {key: checked(key, value, domain_or_any(optimizer.domains, key)) for key, value in own.items()}
        made.append(optimizer._replace(hparams={**optimizer.hparams, **values}))
    if len(made) == 1:
        return made[0]
    if optimizer.parts:
        raise ValueError(
            f"the optimizer has parts of its own, so the parameters go into one group; got {len(groups)} groups"
        )
    labels = {names[p]: str(i) for i, group in enumerate(groups) for p in group["params"]}
    parted = partition({str(i): one for i, one in enumerate(made)}, labels.__getitem__)
    try:
        parted.init({name: p.detach() for p, name in names.items()})
    except ValueError as error:
        raise ValueError(
            f"{error}. Several groups are the parts of a partition, and the optimizer of each sees its own parameters "
            "alone: where it names others (an anchor, exclude), give one group, and put a partition inside"
        ) from error
    return parted


def _filled(template: Any, found: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A state like ``template``, its dtypes and devices too, with the entries of a state by path.

    One entry may stand for several there: a count of steps, once a gradient was ``None``, is one for each parameter.
    """
    leaves, rebuild = tree.flatten(template)
    values = []
    for (path, _), leaf in zip(tree.named(template), leaves, strict=True):
        whole = path in found
        several = {} if whole else {name: found.pop(f"{path}.{name}") for name in weights if f"{path}.{name}" in found}
        if not whole and not several:
            other = next((name for name in found if name.startswith(path.partition(".")[0])), None)
            hint = f" or has other names of them, as in {other!r}" if other else ""
            raise ValueError(f"the state has no {path!r}: it is of another optimizer or other parameters,{hint}")
        value = found.pop(path) if whole else several
        if isinstance(value, (int, float)):
            value = torch.as_tensor(value)
        if isinstance(value, Tensor) and value.shape != leaf.shape:
            raise ValueError(f"{path!r} has the shape {tuple(value.shape)} in the state, and {tuple(leaf.shape)} here")
        values.append(tree.map_tree(lambda x, leaf=leaf: x.to(leaf) if isinstance(x, Tensor) else x, value))
    if found:
        raise ValueError(f"the state has entries {few(list(found))} that this optimizer has not")
    return rebuild(values)
