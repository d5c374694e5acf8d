"""Exact forward mode: the derivative of params and state is carried along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .inner import Inner, Result, floats

__all__ = ["Forward"]


@dataclass(frozen=True)
class Forward:
    """Forward mode through all steps: memory does not depend on their number.

    With ``z = (params, state)`` and one tangent for each scalar in the tuned hyperparameters h::

        dz/dh <- (d step / dz) dz/dh + d step / dh          after K steps:  dL/dh = <dL/dp, dp/dh>

    Each tangent costs about as much as the training itself and one copy of params and state (``vmap`` over
    ``torch.func.jvp``): the choice for a handful of hyperparameters and many steps. Second-order terms are included. It
    nests in ``torch.func`` transforms.

    The training loss must be made of operations that have forward-mode derivatives. In a loss with random numbers, all
    tangents see the same ones.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> _, grads, _ = hft.hypergradient(
    ...     hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr", strategy=hft.Forward()
    ... )
    >>> round(grads["lr"].item(), 6)
    -3.93216
    """

    def through_steps(self, inner: Inner, tuned: dict[str, Any]) -> Result:
        knobs, rebuild = tree.flatten(tuned)
        basis = _basis(knobs)

        def jvp(function: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any, Any]:
            """Value, one derivative for each tangent, and what is not differentiated."""

            def one(*tangent: Any) -> tuple[Any, Any, Any]:
                return torch.func.jvp(function, primals, tangent, has_aux=True)  # pyright: ignore[reportReturnType]

            value, slope, rest = torch.func.vmap(one, randomness="same")(*tangents)
            # What does not depend on the tangent comes back expanded, without memory of its own.
            return tree.map_tree(lambda x: x[0], value), slope, tree.map_tree(lambda x: x[0], rest)

        def begin(h: list[Tensor]) -> tuple[list[Tensor], Any]:
            values, _ = floats(inner.begin(rebuild(h)))
            return values, ()

        params, put_p = floats(inner.params)
        _, put_s = floats(inner.begin(tuned))
        d_params = [x.new_zeros((len(basis[0]), *x.shape)) for x in params]
        state, d_state, _ = jvp(begin, (knobs,), (basis,))
        counts = put_s(state)

        for k in range(len(inner.batches)):
            put = floats(counts)[1]

            def step(p: list[Tensor], s: list[Tensor], h: list[Tensor], k: int = k, put: Any = put) -> Any:
                new_p, new_s = inner.step(put_p(p), put(s), k, rebuild(h))
                return (floats(new_p)[0], floats(new_s)[0]), new_s

            (params, state), (d_params, d_state), counts = jvp(step, (params, state, knobs), (d_params, d_state, basis))

        def outer(p: list[Tensor]) -> tuple[Tensor, Any]:
            return inner.outer(put_p(p)), ()

        value, slopes, _ = jvp(outer, (params,), (d_params,))
        grads, at = [], 0
        for x in knobs:
            grads.append(slopes[at : at + x.numel()].reshape(x.shape).to(x.dtype))
            at += x.numel()
        final_state = floats(counts)[1](state)
        return value, rebuild(grads), (put_p(params), final_state)


def _basis(knobs: list[Tensor]) -> list[Tensor]:
    """The unit vectors of all scalars in ``knobs``: for each, shape (scalars, *its shape)."""
    count = sum(x.numel() for x in knobs)
    result, at = [], 0
    for x in knobs:
        unit = torch.zeros(count, x.numel(), dtype=x.dtype, device=x.device)
        unit[at : at + x.numel()] = torch.eye(x.numel(), dtype=x.dtype, device=x.device)
        result.append(unit.reshape(count, *x.shape))
        at += x.numel()
    return result
