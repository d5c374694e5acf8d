"""Two or more state_dicts, entry by entry: what is mixed, what stays, and the mixture of two tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..tree import working

Weights: TypeAlias = Mapping[str, Tensor]


def lerped(w: Tensor, w0: Tensor, share: Any) -> Tensor:
    """``(1 - share) w + share w0``, both ends exact; equal infinite entries stay."""
    wide, far = working(w), w0.to(working(w))
    share = share if isinstance(share, Tensor) else torch.tensor(share, dtype=torch.float64, device="cpu")
    same = wide == far
    mixed = torch.lerp(torch.where(same, 0.0, wide), torch.where(same, 0.0, far), share.to(wide))
    return torch.where(same, wide, mixed).to(w.dtype)


def copied(x: Any) -> Any:
    """A copy, also of a module's extra state that is not a tensor."""
    return x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def detached(weights: Weights) -> dict[str, Any]:
    return {name: w.detach() if isinstance(w, Tensor) else w for name, w in weights.items()}


def shared(weights: Weights, anchor: Weights) -> list[str]:
    """Names of what is mixed: floating-point tensors in both."""
    for given in (weights, anchor):
        if not isinstance(given, Mapping):
            raise TypeError(f"weights and anchor must be dicts of tensors by name, got {type(given).__name__}")
    extra = sorted(anchor.keys() - weights.keys())
    if extra:
        raise ValueError(f"anchor has entries {extra[:5]} that are not in weights; are they of one model?")
    found = []
    for name, w0 in anchor.items():
        w = weights[name]
        if not isinstance(w, Tensor) or not isinstance(w0, Tensor):
            continue
        if w0.shape != w.shape:
            raise ValueError(
                f"anchor entry {name!r} has shape {tuple(w0.shape)}, its weights {tuple(w.shape)}; leave out a head "
                "that is new"
            )
        if w.is_floating_point() and w0.is_floating_point():
            found.append(name)
    return found
