"""Exact reverse mode through K steps, one step's graph at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from ..types import Params, State
from .inner import Inner, Result, floats, under_transform
from .replay import Clock, Mark, offloaded, refuse_mutation

__all__ = ["Unroll"]


class _Kept(NamedTuple):
    """Where step k began."""

    params: Params
    state: State
    mark: Mark


class _Gradient(NamedTuple):
    """The training gradient at fresh leaves, with its graph: what a Hessian-vector product needs."""

    params: list[Tensor]
    tuned: list[Tensor]
    grads: list[Tensor]


@dataclass(frozen=True)
class Unroll:
    """Reverse mode through all steps, second-order terms included (backpropagation through the optimizer).

    With ``p_{k+1}, s_{k+1} = update(g_k, s_k, p_k; h)`` and ``g_k = d train_loss / d p_k``, the adjoints walk back::

        (gbar, sbar, pbar, hbar) = vjp of update at step k with (lambda_p, lambda_s)
        lambda_p <- pbar + H_k gbar,   lambda_s <- sbar,   dL/dh += hbar + (d^2 train_loss / dh dp)^T gbar

    where ``H_k gbar`` is a Hessian-vector product. One step's graph lives at a time, so the peak is that graph plus the
    params and state of each step; a gradient is computed twice. The result has no graph of its own; under a
    ``torch.func`` transform the same walk is made of ``torch.func.vjp``, can be differentiated again, and keeps all.

    Args:
        truncate: differentiate the last ``truncate`` steps only. ``None``: all.
        checkpoint: keep params and state of every n-th step and recompute those between (``"sqrt"``: n = sqrt(K)); 1
            keeps every step. ``False``: keep the graphs of all gradients and recompute nothing: fastest, most memory.
        offload: what is kept lies on the CPU.

    Raises:
        ValueError: an option outside what is listed, or fewer batches than ``truncate``.
        RuntimeError: a training loss that writes into tensors in place (BatchNorm's statistics): a step that is
            computed twice would write twice.

    Random numbers (dropout) are drawn as in a plain loop, and are the same where a step is computed again.

    >>> import torch, hyperopt_ftp as hft
    >>> def loss(p, x): return ((p - x) ** 2).sum()
    >>> w, data = torch.zeros(1, dtype=torch.float64), [torch.ones(1, dtype=torch.float64)] * 3
    >>> value, grads, _ = hft.hypergradient(hft.sgd(lr=0.1), loss, lambda p: loss(p, data[0]), w, data, over="lr")
    >>> round(grads["lr"].item(), 6)                    # d (1 - 2 lr)^6 / d lr = -12 (1 - 2 lr)^5
    -3.93216
    """

    truncate: int | None = None
    checkpoint: int | str = 1
    offload: bool = False

    def __post_init__(self) -> None:
        if self.truncate is not None and (isinstance(self.truncate, bool) or self.truncate < 1):
            raise ValueError(f"truncate must be None or a number of steps >= 1, got {self.truncate!r}")
        ok = self.checkpoint == "sqrt" or (
            isinstance(self.checkpoint, int) and (self.checkpoint >= 1 or self.checkpoint is False)
        )
        if not ok:
            raise ValueError(f"checkpoint must be a number of steps >= 1, 'sqrt' or False, got {self.checkpoint!r}")

    def through_steps(self, inner: Inner, tuned: dict[str, Any]) -> Result:
        steps = len(inner.batches)
        if self.truncate is not None and steps < self.truncate:
            raise ValueError(f"batches has {steps} steps, fewer than truncate = {self.truncate}")
        first = steps - self.truncate if self.truncate else 0
        return _walk_under_transform(inner, tuned, first) if under_transform() else self._walk(inner, tuned, first)

    def _walk(self, inner: Inner, tuned: dict[str, Any], first: int) -> Result:
        steps = len(inner.batches)
        keep_graphs = self.checkpoint is False
        every = max(1, math.isqrt(steps - first)) if self.checkpoint == "sqrt" else int(self.checkpoint) or 1
        tuned = tree.map_tree(Tensor.detach, tuned)
        clock = Clock(inner.params)
        # At the first step nothing before it is asked for: its Hessian serves hyperparameters of the loss only.
        loss_tuned = any(name.split(".")[0] == "loss" for name in tuned)

        def curved(k: int) -> bool:
            return k > first or loss_tuned

        kept: dict[int, _Kept] = {}
        graphs: dict[int, _Gradient] = {}

        with torch.no_grad():
            params = tree.map_tree(Tensor.detach, inner.params)
            state = tree.map_tree(Tensor.detach, inner.begin(tuned))
        for k in range(steps):
            if k >= first and (k - first) % every == 0:
                kept[k] = _Kept(offloaded(params, self.offload), offloaded(state, self.offload), clock.mark())
            keep = k >= first and (keep_graphs or not curved(k))
            params, state, graph = _step(inner, params, state, k, tuned, keep, curved=curved(k), watch=k == 0)
            if graph is not None:
                graphs[k] = graph

        leaves, put = floats(params)
        leaves = [x.detach().requires_grad_() for x in leaves]
        with torch.enable_grad():
            value = inner.outer(put(leaves))
            back_p = _pull([value], [None], leaves)
        final = params, state
        back_s: list[Tensor | None] = [None] * len(floats(state)[0])
        sums: list[Tensor | None] = [None] * len(tree.leaves(tuned))
        del params, state, leaves

        for k in range(steps - 1, first - 1, -1):
            start = kept.pop(k) if k in kept else self._recompute(inner, tuned, kept, k, clock)
            params, state = offloaded((start.params, start.state), self.offload, back_to=inner.params)
            if k in graphs:
                graph = graphs.pop(k)
            else:
                graph = clock.again(start.mark, lambda p=params, k=k: _gradient(inner, p, k, tuned))
            back_p, back_s, more = _back(inner, graph, params, state, tuned, back_p, back_s, curved(k))
            sums = [_add(a, b) for a, b in zip(sums, more, strict=True)]
            del graph, params, state, start
        if first == 0 and inner.state is None:
            sums = _through_init(inner, tuned, back_s, sums)
        values, rebuild = tree.flatten(tuned)
        grads = rebuild([torch.zeros_like(x) if s is None else s for x, s in zip(values, sums, strict=True)])
        return value.detach(), grads, final

    def _recompute(self, inner: Inner, tuned: Any, kept: dict[int, _Kept], k: int, clock: Clock) -> _Kept:
        """Run forward again from the last step kept before k, and keep the steps up to k."""
        base = max(j for j in kept if j < k)
        params, state = offloaded((kept[base].params, kept[base].state), self.offload, back_to=inner.params)

        def run() -> None:
            nonlocal params, state
            for j in range(base, k):
                params, state, _ = _step(inner, params, state, j, tuned)
                kept[j + 1] = _Kept(offloaded(params, self.offload), offloaded(state, self.offload), clock.mark())

        clock.again(kept[base].mark, run)
        return kept.pop(k)


def _step(
    inner: Inner, params: Params, state: State, k: int, tuned: Any, keep: bool = False, curved: bool = False,
    watch: bool = False,
) -> tuple[Params, State, _Gradient | None]:  # fmt: skip
    """Step k without a graph, except (``curved``) that of a gradient which is to be kept."""
    with refuse_mutation(watch):
        graph = _gradient(inner, params, k, tuned, create_graph=keep and curved)
    put = floats(params)[1]
    with torch.no_grad():
        params, state = inner.update(put([g.detach() for g in graph.grads]), state, params, tuned)
    return params, state, graph if keep else None


def _gradient(inner: Inner, params: Params, k: int, tuned: Any, create_graph: bool = True) -> _Gradient:
    leaves, put = floats(params)
    leaves = [x.detach().requires_grad_() for x in leaves]
    knobs, rebuild = tree.flatten(tuned)
    knobs = [x.detach().requires_grad_(create_graph) for x in knobs]
    with torch.enable_grad():
        loss = inner.loss(put(leaves), k, rebuild(knobs))
        if not loss.requires_grad:
            return _Gradient(leaves, knobs, [torch.zeros_like(x) for x in leaves])
        grads = torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return _Gradient(leaves, knobs, list(grads))


def _back(
    inner: Inner, graph: _Gradient, params: Params, state: State, tuned: Any,
    back_p: Sequence[Tensor | None], back_s: Sequence[Tensor | None], curved: bool,
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """Adjoints before step k from those after it, and the step's part of the hypergradient."""
    p_leaves, put_p = floats(params)
    s_leaves, put_s = floats(state)
    knobs, rebuild = tree.flatten(tuned)
    columns = [[x.detach().requires_grad_() for x in column] for column in (graph.grads, p_leaves, s_leaves, knobs)]
    g, p, s, h = columns
    with torch.enable_grad():
        new_p, new_s = inner.update(put_p(g), put_s(s), put_p(p), rebuild(h))
    outputs = [*floats(new_p)[0], *floats(new_s)[0]]
    pulled = _pull(outputs, [*back_p, *back_s], [*g, *p, *s, *h])
    ends = [len(g), len(g) + len(p), len(g) + len(p) + len(s)]
    bar_g, bar_p, bar_s, bar_h = (pulled[a:b] for a, b in zip([0, *ends], [*ends, len(pulled)], strict=True))
    del new_p, new_s, outputs
    if not curved:
        return bar_p, bar_s, bar_h
    second = _pull(graph.grads, bar_g, [*graph.params, *graph.tuned])
    bar_p = [_add(a, b) for a, b in zip(bar_p, second[: len(p)], strict=True)]
    bar_h = [_add(a, b) for a, b in zip(bar_h, second[len(p) :], strict=True)]
    return bar_p, bar_s, bar_h


def _through_init(
    inner: Inner, tuned: Any, back_s: Sequence[Tensor | None], sums: list[Tensor | None]
) -> list[Tensor | None]:
    knobs, rebuild = tree.flatten(tuned)
    knobs = [x.detach().requires_grad_() for x in knobs]
    with torch.enable_grad():
        state = inner.begin(rebuild(knobs))
    return [_add(a, b) for a, b in zip(sums, _pull(floats(state)[0], back_s, knobs), strict=True)]


def _pull(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Vector-Jacobian product; ``None`` is zero. A scalar output may go without a cotangent."""
    pairs = [
        (y, v)
        for y, v in zip(outputs, cotangents, strict=True)
        if y.requires_grad and (v is not None or (len(outputs) == 1 and y.ndim == 0))
    ]
    if not pairs:
        return [None] * len(inputs)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [v for _, v in pairs], allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _walk_under_transform(inner: Inner, tuned: dict[str, Any], first: int) -> Result:
    """The same walk out of ``torch.func.vjp``: nests in grad, vmap and jvp, and keeps every graph."""
    params, state = inner.params, inner.begin(tuned)
    starts = []
    for k in range(len(inner.batches)):
        starts.append((params, state))
        params, state = inner.step(params, state, k, tuned)
    value, pull = torch.func.vjp(inner.outer, params)[:2]
    back_p = pull(torch.ones_like(value))[0]
    back_s = [torch.zeros_like(x) for x in floats(state)[0]]
    grads = tree.map_tree(torch.zeros_like, tuned)
    for k in range(len(inner.batches) - 1, first - 1, -1):
        p_k, s_k = starts[k]
        s_leaves, put = floats(s_k)

        def step(
            p: Params, s: list[Tensor], h: dict[str, Any], k: int = k, put: Any = put
        ) -> tuple[Params, list[Tensor]]:
            new_p, new_s = inner.step(p, put(s), k, h)
            return new_p, floats(new_s)[0]

        back = torch.func.vjp(step, p_k, s_leaves, tuned)[1]
        back_p, back_s, more = back((back_p, back_s))
        grads = tree.map_tree(torch.add, grads, more)
    if first == 0 and inner.state is None:
        back = torch.func.vjp(lambda h: floats(inner.begin(h))[0], tuned)[1]
        grads = tree.map_tree(torch.add, grads, back(back_s)[0])
    return value, grads, (params, state)
