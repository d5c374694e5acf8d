"""Checks of what the drop-in classes are given: bases, groups, flags, parameters. Each comes before a change."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...calls import did_you_mean, few
from ...types import Optimizer
from .names import unwrapped

#: Dtypes of weights and anchors.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_flags(group: dict[str, Any], flags: Sequence[str], optional: Sequence[str] = ()) -> None:
    """A flag is a bool: "no" would count as true. ``optional`` ones may be None."""
    for name in (*flags, *optional):
        value = group[name]
        if not isinstance(value, bool) and not (name in optional and value is None):
            allowed = "True, False or None" if name in optional else "True or False"
            raise TypeError(f"{name} must be {allowed}, got {value!r}")


def check_lean(group: Mapping[str, Any]) -> None:
    """``ValueError`` for a bfloat16 deviation of weights whose master copy it is."""
    narrow = [p.dtype for p in group["params"] if p.dtype != torch.float32] if group.get("lean") else []
    if narrow:
        raise ValueError(
            f"lean=True keeps the deviation in bfloat16 and needs float32 weights, got {narrow[0]}; for 16-bit "
            "weights the deviation is the master copy"
        )


def check_base(base: Any, title: str, refused: type) -> None:
    """An error for what the class ``title`` cannot go around; ``refused``: what is anchored already."""
    if not isinstance(base, torch.optim.Optimizer) or isinstance(base, (torch.optim.LBFGS, refused)):
        got = f"the class {base.__name__} itself" if isinstance(base, type) else type(base).__name__
        if isinstance(base, Optimizer):
            got = "a pure optimizer; around that go the pure rules: hft.PureOptimizer(params, hft.ftp(base, anchor))"
        elif not isinstance(base, torch.optim.Optimizer):
            made = base.__name__ if isinstance(base, type) and issubclass(base, torch.optim.Optimizer) else "AdamW"
            got += f"; write {title}(torch.optim.{made}(params, lr=...))"
        raise TypeError(
            f"{title} wraps a torch.optim.Optimizer that steps once for each gradient (not LBFGS, not an anchored "
            f"one), got {got}"
        )
    name = type(base).__name__
    if not isinstance(getattr(base, "defaults", None), dict):
        raise TypeError(f"{name} has no defaults, which every torch.optim.Optimizer has: {title} cannot go around it")
    if hasattr(base, "step_was_skipped") or hasattr(base, "toggle_model"):  # Accelerate's, Lightning's
        raise TypeError(
            f"{name} is what a training library makes of an optimizer, and may leave out steps: give {title} the "
            f"optimizer inside it, and {title}(...) to the library"
        )
    pure = getattr(base, "_optimizer", None)
    if isinstance(pure, Optimizer) and pure.weights_in_state:
        raise ValueError(
            f"{title} cannot go around a PureOptimizer of a schedule-free optimizer: that goes on from weights in its "
            "state, and what is done to the parameters is lost. Take another one, or the torch optimizer of the "
            "package schedulefree, which is held where it is deployed"
        )
    if isinstance(pure, Optimizer) and pure.maximize:
        raise ValueError(
            f"{title} cannot go around a PureOptimizer with maximize=True, since it minimizes: negate the loss"
        )
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{name} evaluates the loss at several points in one step, by a closure: {title} cannot go around it. If "
            f"{name} takes a base itself, as SAM does, give it one of this package"
        )


def check_group_options(group: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise for a misspelt option, which would have no effect. Keys of schedulers and others are allowed."""
    for key in sorted(group.keys() - set(known) - {"params", "param_names"}, key=str):
        inside = [name for name in known if str(name).startswith(f"{key}.")]
        if inside:
            raise ValueError(f"a group has the option {key!r}, which nothing reads; write its entries, {few(inside)}")
        if key in ("exclude", "anchor") and "constrained" in known:
            raise ValueError(f"a group has no {key}, the optimizer has; in a group say constrained=False, or True")
        meant = did_you_mean(key, known, 0.85) if len(str(key)) > 1 else ""  # some bases count in "k"
        if meant:
            raise ValueError(f"a group has the option {key!r}, which nothing reads{meant}")


def check_no_gradient(title: str, numbers: Mapping[str, Any]) -> None:
    """A step writes in place, so it has no derivative in numbers either."""
    for name, value in numbers.items():
        parts = value if isinstance(value, (tuple, list)) else [value]
        if any(isinstance(x, Tensor) and x.requires_grad for x in parts):
            raise ValueError(
                f"{name} requires a gradient, but a step of {title} has no derivative: pass it detached, or train "
                "with a pure optimizer by hft.train, through which backward() goes"
            )


def refuse_modules(params: Any) -> None:
    """In place of torch's errors for a module, a dict or nothing where parameters go."""
    if params is None or isinstance(params, (torch.nn.Module, Mapping)):
        given = "None" if params is None else type(params).__name__
        given = f"a module, {given}" if isinstance(params, torch.nn.Module) else given
        raise TypeError(f"the parameters to optimize are {given}: give model.named_parameters()")


def check_params(params: Sequence[Tensor], named: bool, known: Sequence[Any]) -> None:
    """Parameters of a new group: real and floating, each once, under names of their own.

    Args:
        params: of the group.
        named: whether they have names.
        known: names or indices of all parameters of the optimizer, these last.
    """
    where: dict[Tensor, Any] = {}
    names = known[len(known) - len(params) :]
    for p, name in zip(params, names, strict=True):
        check_dtype(p, name)
        if p in where:
            raise ValueError(f"parameter {name!r} is parameter {where[p]!r} again; give each tensor once")
        where[p] = name
    if not named:
        return
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"names of parameters must be strings, got {wrong[0]!r}")
    twice = [name for name, count in Counter(map(unwrapped, known)).items() if count > 1]
    if twice:
        raise ValueError(
            f"two parameters are called {twice[0]!r}; names must differ; prefix those of each model, or of "
            "each part: (f'head.{n}', p)"
        )


def check_dtype(p: Tensor, name: Any) -> None:
    if p.dtype not in DTYPES:
        hint = "keep torch.view_as_real of it as the parameter, and view_as_complex in the model"
        hint = hint if p.is_complex() else "leave frozen and quantised weights out"
        raise TypeError(
            f"parameters must be float16, bfloat16, float32 or float64, got {p.dtype} for parameter {name!r}; {hint}"
        )


def check_shapes(p: Tensor, name: Any, state: dict[str, Any], whole: Collection[str]) -> None:
    """State that was made by the steps so far still fits; ``whole`` names what has the shape of the weights."""
    for key in whole:
        value = state.get(key)
        if isinstance(value, Tensor) and value.shape != p.shape:
            raise RuntimeError(
                f"parameter {name!r} has the shape {tuple(p.shape)} now and had {tuple(value.shape)} at the steps "
                "before; build a new optimizer after weights are resized"
            )


def check_gradient(p: Tensor, name: Any, constrained: bool) -> None:
    """A gradient is a real tensor like its parameter, and dense where that is constrained."""
    grad = p.grad
    assert grad is not None
    if grad.shape != p.shape:
        raise RuntimeError(
            f"the gradient of parameter {name!r} has the shape {tuple(grad.shape)}, and the parameter "
            f"{tuple(p.shape)}; call zero_grad() after weights are resized"
        )
    if constrained and grad.layout != torch.strided:
        raise RuntimeError(
            f"gradients must be dense, got {grad.layout} for parameter {name!r}; make the embedding with sparse=False, "
            "exclude it, or give it another optimizer"
        )
    if not grad.is_floating_point():
        raise RuntimeError(f"gradients must be real and floating, got {grad.dtype} for parameter {name!r}")
    if grad.device != p.device:
        raise RuntimeError(
            f"the gradient of parameter {name!r} is on {grad.device}, the parameter on {p.device}; move the model "
            "before the optimizer is built"
        )
