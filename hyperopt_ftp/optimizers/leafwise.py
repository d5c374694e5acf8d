"""What every optimizer of the package shares: a rule for one tensor, applied to each leaf in working precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree

__all__ = [
    "NO_PARAMS",
    "check_grads",
    "check_lr",
    "check_params",
    "check_state",
    "for_each",
    "leafwise",
    "no_steps",
    "safe_sqrt",
    "zeros",
]

#: How a pure optimizer is called, for those who expect a class of torch.optim.
NO_PARAMS = (
    "a pure optimizer gets no params here, but in init(params) and update(grads, state, params); FTPAdamW and FTPSGD "
    "are classes like torch.optim's"
)


def leafwise(
    rule: Callable[..., tuple[Tensor, ...]], params: Any, grads: Any, moments: Sequence[Any], hparams: Sequence[Any]
) -> tuple[Any, ...]:
    """``rule(w, g, *moments, *hparams) -> (w, *moments)`` for every leaf.

    16-bit weights are computed in float32, and their moments are kept there; the new weight has the dtype of the old
    one. An hparam is one 0-d tensor for all leaves, or a tree of the parameters' structure, see :func:`for_each`.
    """

    def one(p: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        w = tree.working(p)
        new, *state = rule(w, g.to(w.dtype), *rest)
        return (new.to(p.dtype), *(x.to(w.dtype) for x in state))

    columns = [check_grads(grads, params)]
    columns += [tree.aligned(moment, params, "state") for moment in moments]
    columns += [for_each(hparam, params) for hparam in hparams]
    if not columns[0]:
        return (params, *moments)
    return tree.unzip_map(one, params, *columns)


def for_each(hparam: Any, params: Any) -> list[Tensor]:
    """The hparam of each leaf of ``params``, which may not make a weight larger than it is.

    Raises:
        ValueError: a shape or a structure that does not fit; what fits is in the text.
    """
    values = tree.broadcast(hparam, params)
    if isinstance(hparam, Tensor) and hparam.ndim == 0:
        return values
    if isinstance(hparam, Tensor) and not isinstance(params, Tensor):
        raise ValueError(f"a hyperparameter has the shape {tuple(hparam.shape)}; {_FITTING}")
    for x, w in zip(values, tree.leaves(params), strict=True):
        pairs = zip(x.shape[::-1], w.shape[::-1], strict=False)
        if x.ndim > w.ndim or any(a not in (1, b) for a, b in pairs):
            raise ValueError(
                f"a hyperparameter has the shape {tuple(x.shape)}, its parameter {tuple(w.shape)}; {_FITTING}"
            )
    return values


_FITTING = (
    "give a 0-d tensor, or a tree in the structure of the parameters, of tensors that are 0-d or broadcast to the "
    "shape of their parameter"
)


def zeros(params: Any) -> Any:
    """A tree of zeros in working precision."""
    return tree.map_tree(lambda p: torch.zeros_like(tree.working(p)), params)


def check_lr(lr: Any) -> None:
    """``TypeError`` for parameters, which a class of torch.optim takes where a pure optimizer takes lr."""
    for x in tree.leaves(lr):
        if isinstance(x, (Iterator, torch.nn.Module)) or (isinstance(x, torch.nn.Parameter) and x.ndim):
            raise TypeError(f"lr must be a number or a 0-d floating-point tensor, got {type(lr).__name__}; {NO_PARAMS}")


def check_params(params: Any) -> None:
    """``params`` are floating-point tensors that have values, or stand for some while a program is traced."""
    for name, leaf in tree.named(params):
        if leaf is None:
            raise TypeError(f"params must be a pytree of tensors, but {name!r} is None; leave it out")
        if not isinstance(leaf, Tensor):
            if not name:
                raise TypeError(
                    f"params must be a pytree of tensors, got a {type(leaf).__name__}; of a module take dict(module."
                    "named_parameters()), and torch.func.functional_call(module, params, (x,)) in the loss"
                )
            raise TypeError(f"params must be a pytree of tensors, but {name!r} is a {type(leaf).__name__}")
        if not leaf.is_floating_point():
            raise TypeError(
                f"params must be floating-point (float16, bfloat16, float32, float64), but {name!r} is {leaf.dtype}"
            )
        if leaf.device.type == "meta":
            raise ValueError(f"parameter {name!r} has no values: it is on the meta device")


def check_grads(grads: Any, params: Any) -> list[Tensor]:
    """Leaves of ``grads`` in the order of those of ``params``: a dense tensor of its parameter's shape for each."""
    values = tree.aligned(grads, params, "grads")
    for g, w in zip(values, tree.leaves(params), strict=True):
        if not isinstance(g, Tensor) or g.shape != w.shape or g.layout != torch.strided:
            raise _wrong_gradient(values, params)
    return values


def _wrong_gradient(values: list[Any], params: Any) -> Exception:
    for g, (name, w) in zip(values, tree.named(params), strict=True):
        if g is None:
            return TypeError(f"the gradient of {name!r} is None; leave the parameter out, or give zeros")
        if not isinstance(g, Tensor):
            return TypeError(f"grads must be a pytree of tensors, but {name!r} is a {type(g).__name__}")
        if g.layout != torch.strided:
            return TypeError(f"the gradient of {name!r} is sparse ({g.layout}); give its to_dense()")
        if g.shape != w.shape:
            return ValueError(
                f"the gradient of {name!r} has the shape {tuple(g.shape)}, its parameter {tuple(w.shape)}"
            )
    raise AssertionError


def check_state(kind: type, state: Any) -> None:
    """``TypeError`` unless ``state`` is of the class that an optimizer's ``init`` returns."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init or update returned, got {type(state).__name__}; the order is "
            "update(grads, state, params, hparams)"
        )


def no_steps() -> Tensor:
    """Number of updates done; a tensor, so that a compiled or vmapped update does not depend on a Python number."""
    return torch.zeros((), dtype=torch.int64)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is defined as 0: one dead unit must not turn every hypergradient into NaN."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())
