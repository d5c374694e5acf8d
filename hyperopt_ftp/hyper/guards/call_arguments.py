"""Checks of the arguments of train and related functions, before anything runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from inspect import CO_VARARGS
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from ... import tree
from ...calls import warn_caller
from ...hparams import as_tensor, complete
from ...types import HParams, Optimizer, Params
from ..core.problem import without_loss
from ..core.torch_private import tracked, under_transform

_IS_META = attrgetter("is_meta")


def check_hparams(optimizer: Optimizer, hparams: HParams | None) -> dict[str, Any]:
    """The complete hparams of the optimizer, and those of the loss, if given."""
    if not isinstance(hparams, dict) or "loss" not in hparams:
        return complete(hparams, optimizer.hparams)
    of_optimizer = without_loss(hparams)
    given = hparams["loss"]
    if not all(isinstance(x, Tensor) for x in tree.leaves(given)):
        for name, value in tree.named(given):
            if not isinstance(value, (Tensor, int, float)):
                kind = type(value).__name__
                raise TypeError(f"hparams['loss'] must hold tensors or numbers, but {name!r} is a {kind}")
        given = tree.map_tree(as_tensor, given)
    return {**complete(of_optimizer, optimizer.hparams), "loss": given}


def check_loss(name: str, value: Any) -> None:
    if type(value).__module__ == "torch.nn.modules.loss":
        raise TypeError(
            f"{name} is called with params, not with outputs and targets as {type(value).__name__}() is: write a "
            "function that calls the model, by torch.func.functional_call(model, params, (x,))"
        )
    if not callable(value):
        raise TypeError(f"{name} must be a function that returns a scalar tensor, got {type(value).__name__}")


def check_arguments(name: str, function: Callable[..., Any], count: int, own: bool) -> None:
    """Raise if a loss cannot take the given ``hparams["loss"]``, or needs them and they are missing."""
    check_loss(name, function)
    least, most = argument_counts(function)
    if most < count:
        raise ValueError(f"{name} is called as {name}(params, batch), but takes {most} argument{'s'[: most != 1]}")
    if own and most < count + 1:
        raise ValueError(f"hparams has an entry 'loss', and {name} has no argument for it: it is argument {count + 1}")
    if not own and least == count + 1:
        raise ValueError(
            f"{name} has {least} arguments, the last for the loss's hparams, but hparams has no entry 'loss'"
        )


def argument_counts(function: Callable[..., Any]) -> tuple[float, float]:
    """The smallest and the largest number of positional arguments of a function."""
    if type(function) is FunctionType and not hasattr(function, "__wrapped__"):
        code = function.__code__  # inspect takes as long as a small training step
        most = math.inf if code.co_flags & CO_VARARGS else code.co_argcount
        return code.co_argcount - len(function.__defaults__ or ()), most
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, math.inf
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    return len([p for p in positional if p.default is p.empty]), most


def check_protocol(optimizer: Optimizer) -> None:
    for name, count, call in (
        ("init", 2, "init(params, hparams)"),
        ("update", 4, "update(grads, state, params, hparams)"),
    ):
        least, most = argument_counts(getattr(optimizer, name))
        if not least <= count <= most:
            takes = f"{least if least > count else most} argument{'s'[: most != 1]}"
            raise TypeError(f"optimizer.{name} is called as {call}, but takes {takes}")


def check_batches(batches: Any) -> Any:
    if isinstance(batches, Tensor) and batches.ndim > 0:
        return check_batches(list(batches.unbind()))
    tensors = isinstance(batches, tuple) and all(isinstance(x, Tensor) and x.ndim > 0 for x in batches)
    if tensors and len({x.shape for x in batches}) > 1 == len({len(x) for x in batches}):
        steps = len(batches)
        raise TypeError(
            f"batches is a tuple of {steps} tensors of one length, which can be read in two ways: write list(batches) "
            f"for {steps} steps, of one tensor each, or list(zip(*batches)) for a step with each of their rows, as "
            "(xs[k], ys[k])"
        )
    whole = isinstance(batches, (dict, str, Tensor))
    if whole or not is_sequence(batches):
        hint = "use list(...)"
        if isinstance(batches, dict):
            hint = "give a list with one dict for each step: [{name: x[k] for name, x in batches.items()} for k in ...]"
        hint = "give the batches, not their number" if isinstance(batches, int) else hint
        raise TypeError(f"batches must be a sequence, it is read again; got {type(batches).__name__}; {hint}")
    if len(batches) == 0:
        raise no_batches()
    return list(batches) if isinstance(batches, (list, tuple, torch.nn.ParameterList)) else batches


def is_sequence(batches: Any) -> bool:
    """Whether it can be indexed: a list, a tensor, a data set."""
    return hasattr(batches, "__len__") and hasattr(batches, "__getitem__")


def no_batches() -> ValueError:
    return ValueError("batches is empty: there is no step to differentiate through")


def check_leaves(leaves: Sequence[Any]) -> bool:
    """Whether one was made under inference mode."""
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    for x in filter(_IS_META, tensors):
        if not isinstance(x, FakeTensor):
            raise ValueError(f"a tensor of shape {tuple(x.shape)} has no values: it is on the meta device")
    refuse_complex(tensors)
    if forward_ad._current_level >= 0 and not under_transform():
        raise ValueError("inside torch.autograd.forward_ad.dual_level tangents would be lost; use torch.func.jvp")
    return any(map(Tensor.is_inference, tensors))


def refuse_inference() -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError("there are no gradients under torch.inference_mode(); leave it, or take values by hft.train")


def refuse_complex(tensors: Sequence[Tensor]) -> None:
    for x in filter(Tensor.is_complex, tensors):
        if tracked(x):
            raise ValueError(
                f"a complex tensor of shape {tuple(x.shape)} requires grad: derivatives are taken in real ones; pass "
                "torch.view_as_real of it, and view_as_complex inside"
            )


def warn_of_frozen(optimizer: Optimizer, params: Params) -> None:
    leaves = tree.leaves(params)
    if {*map(type, leaves)} == {Tensor}:
        return
    parameters = [x for x in leaves if isinstance(x, torch.nn.Parameter)]
    if not parameters or {x.requires_grad for x in parameters} != {True, False}:  # all frozen: on purpose
        return
    parts = getattr(optimizer, "parts", None)
    where = parts(params) if parts else {}
    # A part without hparams is hft.frozen(), which leaves it alone.
    alone = {path for path, part in where.items() if not tree.entry(optimizer.hparams, part)}
    for path, x in tree.named(params):
        if isinstance(x, torch.nn.Parameter) and not x.requires_grad and path not in alone:
            warn_caller(
                f"params has {path!r}, a parameter with requires_grad=False, beside some that require grad, and "
                "training moves all params; to leave it alone give {n: p for n, p in net.named_parameters() if "
                "p.requires_grad}, with the rest inside the module, or an hft.partition with hft.frozen(); to train "
                "it, give its detach()"
            )
            return


def check_scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0 or value.is_complex():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        hint = "reduce it, for instance by .mean()"
        if isinstance(value, Tensor) and value.is_complex():
            got, hint = f"{got} and complex numbers", "take its .real or .abs()"
        elif isinstance(value, (int, float)):
            hint = "return the tensor, without .item()"
        elif not isinstance(value, Tensor):
            hint = "return the loss alone"
        raise ValueError(f"{name} must return a scalar tensor (shape ()), got {got}; {hint}")
    return value
