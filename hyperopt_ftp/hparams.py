"""Hyperparameters: their domains, and plain numbers made into checked 0-d tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from . import tree
from .calls import did_you_mean, few, shown


class Domain(NamedTuple):
    """Allowed values of a hyperparameter: ``low <= x <= high``, or ``x < high`` where ``open_high``.

    A tuner keeps it between ``floor`` and ``ceiling`` where these are narrower; a ceiling is open where ``high`` is.
    Where it has ``parts``, the hyperparameter is a tuple of numbers, all in the domain, and these are their names.
    """

    low: float
    high: float
    open_high: bool = False
    floor: float = -math.inf
    ceiling: float = math.inf
    parts: tuple[str, ...] = ()

    def holds(self, x: object) -> bool:
        if not isinstance(x, (int, float)) or x != x:
            return False
        return self.low <= x < self.high if self.open_high else self.low <= x <= self.high

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"

    def clip(self, x: Tensor) -> Tensor:
        """The nearest value that a tuner may give. An open bound, a positive one, becomes the number below it."""
        most, dtype = min(self.high, self.ceiling), torch.finfo(x.dtype)
        if self.open_high:
            most = min(most * (1 - dtype.eps / 2), dtype.max)
        return x.clamp(min=max(self.low, self.floor), max=most)


_ANY = Domain(-math.inf, math.inf)
_FINITE = Domain(0.0, math.inf, open_high=True)

#: One row for each hyperparameter name of the package; its optimizers take theirs from here (:func:`domains_of`).
DOMAINS: dict[str, Domain] = {
    "lr": _FINITE,
    "radius_lr": _FINITE,
    "lr_lr": _FINITE,
    "betas": Domain(0.0, 1.0, open_high=True, parts=("beta1", "beta2")),
    "eps": _FINITE,
    "weight_decay": _FINITE,
    # Momentum of 1 and above is allowed, as in torch, but what learns it would run away there.
    "momentum": Domain(0.0, math.inf, open_high=True, ceiling=1.0),
    "dampening": Domain(-math.inf, math.inf),
    "alpha": Domain(0.0, 1.0),
    "lr_decay": _FINITE,
    "initial_accumulator_value": _FINITE,
    "max_norm": Domain(0.0, math.inf),
    "kappa": Domain(0.0, 1.0),
    "strength": _FINITE,
    "omega": Domain(0.0, 1.0),
    "omega_lr": _FINITE,
    # A fixed radius may be 0 (the anchor itself); FTP's rule keeps a learned one at 1e-8 or above.
    "radius": Domain(0.0, math.inf, floor=1e-8),
}


def domains_of(names: Iterable[str]) -> dict[str, Domain]:
    return {name: DOMAINS[name] for name in names if name in DOMAINS}


def domain_at(domains: Any, path: str) -> Any:
    """The domain of what a path leads to, nested domains where that holds several; ``None``: bounded by nothing."""
    while path and isinstance(domains, Mapping):
        try:
            key, path = tree.key_at(domains, path)
        except KeyError:
            return None
        domains = domains[key]
    return domains


def check_number(name: str, value: Any, domain: Domain | None = None) -> None:
    """``ValueError`` unless ``value`` (a number, or a concrete 0-d tensor) lies in the domain of ``name``."""
    domain = DOMAINS[name] if domain is None else domain
    if isinstance(value, Tensor):
        if value.ndim != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a 0-d floating-point tensor, got shape {tuple(value.shape)}, {value.dtype}"
            )
        if not concrete(value):
            return
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        got = f"the string {shown(value)}" if isinstance(value, str) else type(value).__name__
        raise TypeError(f"{name} must be a number or a 0-d floating-point tensor, got {got}{_as_a_number(value)}")
    if not domain.holds(value):
        raise ValueError(f"{name} must lie in {domain}, got {value}")


def _as_a_number(value: Any) -> str:
    """A hint where it is one in another form: text, a fraction, a number of NumPy."""
    try:
        number = float(value) if isinstance(value, (str, Real)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    return f"; write float({value!r})" if math.isfinite(number) else ""


def check_hparam(name: str, value: Any) -> None:
    domain = DOMAINS[name]
    check_parts(name, value, domain)
    for x in value if domain.parts else [value]:
        check_number(name, x)


def check_parts(name: str, value: Any, domain: Domain) -> None:
    """``ValueError`` unless a hyperparameter of several numbers has as many."""
    if domain.parts and (not isinstance(value, (tuple, list)) or len(value) != len(domain.parts)):
        kind = "pair" if len(domain.parts) == 2 else "tuple"
        raise ValueError(f"{name} must be a {kind} ({', '.join(domain.parts)}), got {shown(value)}")


def _check_place(name: str, value: Any) -> None:
    """``TypeError`` for an optimizer, a schedule or a function in the place of a number."""
    if hasattr(value, "init") and hasattr(value, "update"):
        got, hint = "an optimizer", f"the optimizer goes first, and {name} after it"
    elif hasattr(value, "factor") or callable(value):
        got = "a schedule" if hasattr(value, "factor") else "a function"
        hint = f"a schedule goes around the optimizer: hft.scheduled(optimizer, {name}=schedule)"
    else:
        return
    raise TypeError(f"{name} must be a number or a 0-d floating-point tensor, got {got}; {hint}")


def check_table(name: str, value: Any, domain: Domain | None) -> None:
    """Raise unless ``value`` is a tensor of numbers in the domain, one for each entry of its first dimension."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else shown(value)
        hint = "; write torch.tensor([...])" if isinstance(value, (int, float)) else ""
        raise TypeError(f"the table of {name!r} must be a floating-point tensor of shape (K,), got {got}{hint}")
    if not value.ndim or not len(value):
        raise ValueError(f"the table of {name!r} must have the shape (K,) with K >= 1, got {tuple(value.shape)}")
    if domain is None or not concrete(value):
        return
    wrong = value[~((value >= domain.low) & (value < domain.high if domain.open_high else value <= domain.high))]
    if len(wrong):
        raise ValueError(f"{name} must lie in {domain}, got {wrong[0].item()} in its table")


def check_zero_d(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim:
        got = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a 0-d tensor, got {got}")


def is_number(value: Any) -> bool:
    """Also a pair of numbers, or a 0-d tensor; not a flag."""
    if isinstance(value, tuple):
        return bool(value) and all(map(is_number, value))
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def first_outside(x: Tensor, low: float, high: float) -> float | None:
    """The first entry that is not in ``(low, high)``, where the values of ``x`` are known."""
    wrong = x[~((x > low) & (x < high))] if concrete(x) else x.new_empty(0)
    return wrong[0].item() if len(wrong) else None


def to_tensors(domains: Mapping[str, Domain] = DOMAINS, /, **values: Any) -> dict[str, Any]:
    """Each value checked against its domain, plain numbers as 0-d float64 tensors (float32 would move lr by 5e-8).

    A value may also be a tree of numbers or 0-d tensors in the structure of the parameters, one for each parameter.
    ``domains`` are those of an optimizer whose names have their own meaning. A name without a domain takes any value.

    >>> from hyperopt_ftp.optimizers import to_tensors
    >>> to_tensors(lr=0.1)
    {'lr': tensor(0.1000, dtype=torch.float64)}
    """
    if not isinstance(domains, Mapping):
        raise TypeError(f"to_tensors takes numbers by name, to_tensors(lr=0.1), got {shown(domains)}")
    for name, value in values.items():
        domain = domains.get(name, _ANY)
        if type(value) is float and not domain.parts and domain.holds(value):
            continue  # at once: losses and optimizers are often made anew for each training
        _check_place(name, value)
        check_parts(name, value, domain)
        for leaf in tree.leaves(value):
            check_number(name, leaf, domain)
    return {n: as_tensor(x) if type(x) is float else tree.map_tree(as_tensor, x) for n, x in values.items()}


def as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def complete(given: Any, default: dict[str, Any]) -> dict[str, Any]:
    """``default`` with what is ``given`` in place, plain numbers as tensors; every name must be one of ``default``.

    Tensors pass as they are: what shapes an hparam may have is for its user to say.
    """
    if given is None:
        return default
    if not isinstance(given, dict) or not given.keys() <= default.keys():
        names = sorted(given) if isinstance(given, dict) else type(given).__name__
        extra = [name for name in given if name not in default] if isinstance(given, dict) else []
        paths = [name for name in extra if str(name).split(".")[0] in default]
        hints = "".join(did_you_mean(name, default) for name in extra if name not in paths)
        if paths:
            hints += f"; {few(paths)} are paths: hyperopt_ftp.tree.replaced(hparams, path, value) puts a value there"
        raise ValueError(
            f"hparams must be a dict with names among {sorted(default)}, got {names}{hints}; the rest is the "
            "optimizer's own, and the loss's are under 'loss'"
        )
    found = {**default, **given}  # in the order of the default
    # What holds no numbers stays as it is: each update asks.
    for name, value in given.items():
        if not isinstance(value, Tensor) and not all(isinstance(x, Tensor) for x in tree.leaves(value)):
            found[name] = tree.map_tree(partial(_as_hparam, given), value)
    return found


def _as_hparam(given: dict[str, Any], value: Any) -> Tensor:
    if isinstance(value, Tensor) or is_number(value):
        return as_tensor(value)
    name = next(name for name, leaf in tree.named(given) if leaf is value)
    raise TypeError(f"hparams must hold numbers and tensors, but {name!r} is {shown(value)}")


def concrete(x: Tensor) -> bool:
    """Whether the value of ``x`` may be looked at: not under a torch.func transform, not while tracing."""
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or x.is_meta:
        return False
    return not is_wrapped(x)


def is_scalar(x: Any) -> bool:
    return isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.ndim == 0)


def as_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """``values`` with Python numbers in place of 0-d tensors of the CPU of which nothing but the value is asked.

    These are not differentiated, nor under a transform. Where operations are traced, all stay as they are. What a rule
    computes of such numbers it computes in double precision, also of the number of a float32 tensor.
    """
    traced = torch.compiler.is_compiling() or torch._C._is_tracing() or any(map(torch._C._get_dispatch_mode, _MODES))
    traced = traced or torch._ops._get_dispatch_mode_pre_dispatch(_MODES[1]) is not None
    if traced or forward_ad._current_level >= 0:
        return values
    return [x.item() if _is_plain(x) else x for x in values]


def _is_plain(x: Any) -> bool:
    return type(x) is Tensor and not x.ndim and not x.requires_grad and x.is_cpu and not is_wrapped(x)


_MODES = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY

is_wrapped: Any = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
