"""What every optimizer of the package shares: a rule for one tensor, applied to each leaf in working precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree

__all__ = ["check_params", "leafwise", "no_steps", "safe_sqrt", "zeros"]


def leafwise(
    rule: Callable[..., tuple[Tensor, ...]], params: Any, grads: Any, moments: Sequence[Any], hparams: Sequence[Any]
) -> tuple[Any, ...]:
    """``rule(w, g, *moments, *hparams) -> (w, *moments)`` for every leaf.

    16-bit weights are computed in float32, and their moments are kept there; the new weight has the dtype of the old
    one. An hparam is one tensor for all leaves, or a tree of the parameters' structure.
    """

    def one(p: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        w = tree.working(p)
        new, *state = rule(w, g.to(w.dtype), *rest)
        return (new.to(p.dtype), *(x.to(w.dtype) for x in state))

    columns = [tree.aligned(grads, params, "grads")]
    columns += [tree.aligned(moment, params, "state") for moment in moments]
    columns += [tree.spread(hparam, params) for hparam in hparams]
    if not columns[0]:
        return (params, *moments)
    return tree.unzip_map(one, params, *columns)


def zeros(params: Any) -> Any:
    """A tree of zeros in working precision."""
    return tree.map_tree(lambda p: torch.zeros_like(tree.working(p)), params)


def check_params(params: Any) -> None:
    for name, leaf in tree.by_path(params).items():
        if not isinstance(leaf, Tensor):
            raise TypeError(f"params must be a pytree of tensors, but {name!r} is a {type(leaf).__name__}")
        if not leaf.is_floating_point():
            raise TypeError(
                f"params must be floating-point (float16, bfloat16, float32, float64), but {name!r} is {leaf.dtype}"
            )


def no_steps() -> Tensor:
    """Number of updates done; a tensor, so that a compiled or vmapped update does not depend on a Python number."""
    return torch.zeros((), dtype=torch.int64)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is defined as 0: one dead unit must not turn every hypergradient into NaN."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())
