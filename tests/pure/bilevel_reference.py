"""One round of `bilevel` written by hand: the steps, their derivative by autograd, the maps, Adam outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_ftp import tree

F64 = torch.float64
UNIT = torch.finfo(F64).eps
#: Units in the last place that an input may be away: a round makes some hundred operations on a number.
ROUNDINGS = 1000
NUDGE = 1e-9  # far above rounding, far below what bends a function
NEAR = 1e-3
BY_LR, EPS = 0.02, 1e-2


class Point(NamedTuple):
    """What a round begins with; trees and lists of tensors."""

    params: dict[str, Tensor]
    moments: list[dict[str, Tensor]]  # of the optimizer: m and v, or the momentum
    tuned: dict[str, Any]
    outer: list[list[Tensor]]  # m and v of Adam outside, by leaf of the tuned
    steps: int  # of the optimizer
    rounds: int  # of Adam outside


class Found(NamedTuple):
    """What K steps give."""

    value: Tensor
    slopes: dict[str, Any]
    params: dict[str, Tensor]
    moments: list[dict[str, Tensor]]
    norms: dict[str, Tensor]  # of the last step's deviations, where there is a ball


class Problem(NamedTuple):
    """What stays the same from round to round."""

    rule: str  # "adam" or "sgd"
    maps: dict[str, str]  # by path of what is tuned
    fixed: dict[str, Any]  # numbers by path
    anchor: dict[str, Tensor] | None  # of the ball
    train_loss: Callable[..., Tensor]
    outer_loss: Callable[..., Tensor]


def fresh_moments(problem: Problem, params: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{k: torch.zeros_like(w) for k, w in params.items()} for _ in range(2 if problem.rule == "adam" else 1)]


def trained(problem: Problem, start: Point, batches: Sequence[Any], held_out: Any) -> Found:
    """K steps, and the hypergradients."""
    leaves = {n: tree.map_tree(lambda x: x.detach().clone().requires_grad_(), x) for n, x in start.tuned.items()}
    numbers = {**problem.fixed, **leaves}
    params, moments, norms = start.params, start.moments, {}
    for k, batch in enumerate(batches, start.steps + 1):
        ws = {name: w if w.requires_grad else w.detach().clone().requires_grad_() for name, w in params.items()}
        loss = problem.train_loss(ws, batch, {"l2": numbers["loss.l2"], "weights": numbers["loss.weights"]})
        grads = dict(zip(ws, torch.autograd.grad(loss, list(ws.values()), create_graph=True), strict=True))
        params, moments = _moved(problem.rule, numbers, ws, grads, moments, k)
        if problem.anchor is not None:
            params, norms = _in_balls(params, problem.anchor, numbers["radius"])
    value = problem.outer_loss(params, held_out)
    flat, rebuild = tree.flatten(leaves)
    grads = torch.autograd.grad(value, flat, allow_unused=True)
    slopes = rebuild([torch.zeros_like(x) if g is None else g for x, g in zip(flat, grads, strict=True)])
    params, moments, norms = tree.map_tree(torch.Tensor.detach, (params, moments, norms))
    return Found(value.detach(), slopes, params, moments, norms)


def has_a_slope(problem: Problem, params: dict[str, Tensor], held_out: Any) -> bool:
    """Whether the outer loss and its gradient in the params are finite."""
    ws = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
    value = problem.outer_loss(ws, held_out)
    grads = torch.autograd.grad(value, list(ws.values()), allow_unused=True)
    return is_finite((value.detach(), [g for g in grads if g is not None]))


def _moved(rule: str, h: dict[str, Any], ws: Any, grads: Any, moments: Any, k: int) -> tuple[Any, Any]:
    if rule == "sgd":
        (b,) = moments
        b = {n: g if k == 1 else h["momentum"] * b[n] + g for n, g in grads.items()}
        return {n: w - h["lr"] * b[n] for n, w in ws.items()}, [b]
    (m, v), b1, b2 = moments, h["betas.0"], h["betas.1"]
    m = {n: b1 * m[n] + (1 - b1) * g for n, g in grads.items()}
    v = {n: b2 * v[n] + (1 - b2) * g**2 for n, g in grads.items()}
    roots = {n: (x / (1 - b2**k)).sqrt() for n, x in v.items()}
    return {n: w - h["lr"] * (m[n] / (1 - b1**k)) / (roots[n] + EPS) for n, w in ws.items()}, [m, v]


def _in_balls(params: Any, anchor: Any, radius: Any) -> tuple[Any, Any]:
    """Rows of a matrix in L1 balls; a vector is one row."""
    c = {k: w - anchor[k] for k, w in params.items()}
    n = {k: x.reshape(x.shape[0] if x.ndim > 1 else 1, -1).abs().sum(1) + 1e-8 for k, x in c.items()}
    s = {k: torch.where(radius[k] < x, radius[k] / x, torch.ones_like(x)) for k, x in n.items()}
    return {k: anchor[k] + (s[k][:, None] if x.ndim > 1 else s[k]) * x for k, x in c.items()}, n


def is_finite(values: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tree.leaves(values))


def outer_step(
    problem: Problem, start: Point, slopes: dict[str, Any], norms: dict[str, Tensor]
) -> tuple[dict[str, Any], list[list[Tensor]]]:
    """One step of Adam on the free values along the slopes that are finite, and what the maps make of them."""
    t, tuned, i = start.rounds + 1, {}, 0
    outer: list[list[Tensor]] = [[], []]
    for name, x in start.tuned.items():
        kind, held = problem.maps[name], not is_finite(slopes[name])
        low, high = BOUNDS.get(name, (-torch.inf, torch.inf))
        new = []
        for leaf, slope in zip(tree.leaves(x), tree.leaves(slopes[name]), strict=True):
            h = torch.zeros_like(leaf) if held else slope
            u = {"clip": leaf, "log": leaf.log(), "logit": leaf.log() - (-leaf).log1p()}[kind]
            g = {"clip": h, "log": h * leaf, "logit": h * leaf * (1 - leaf)}[kind]
            m = 0.9 * start.outer[0][i] + 0.1 * g
            v = 0.999 * start.outer[1][i] + 0.001 * g**2
            u = u - BY_LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            natural = {"clip": u, "log": u.exp(), "logit": 1 / (1 + (-u).exp())}[kind]
            new.append(leaf if held else natural.clamp(low, high))
            outer[0].append(m)
            outer[1].append(v)
            i += 1
        tuned[name] = tree.flatten(x)[1](new)
    if "radius" in tuned:  # at most the largest norm
        tuned["radius"] = {k: torch.minimum(r, norms[k].max()) for k, r in tuned["radius"].items()}
    return tuned, outer


#: Domains: what a tuned value may be.
BOUNDS = {
    "lr": (0.0, torch.finfo(F64).max),
    "betas.0": (0.0, 1 - UNIT / 2),
    "momentum": (0.0, 1 - UNIT / 2),
    "radius": (1e-8, torch.inf),
}


def tolerances(problem: Problem, start: Point, batches: Sequence[Any], held_out: Any, found: Found) -> list[Tensor]:
    """How far rounding may take each leaf of what is found.

    Results of two ways to compute one formula are exact ones of inputs that differ by ``ROUNDINGS`` units. What that
    does to a leaf is measured: by how much it moves when all inputs are nudged at random. Infinity where that says
    nothing: the 1 - b^k of a beta that has come to its bound is made of rounding; and where lr has come to 0, weights
    on the surface of a ball stay there, inside or outside by rounding.
    """
    numbers = {**problem.fixed, **start.tuned}
    if (problem.rule == "adam" and numbers["betas.0"] > 1 - NEAR) or (problem.anchor and numbers["lr"] == 0):
        return [torch.tensor(torch.inf)] * len(tree.leaves(found))
    rng = torch.get_rng_state()
    spread = [torch.zeros((), dtype=F64) for _ in tree.leaves(found)]
    for seed in range(2):
        drawn = torch.Generator().manual_seed(seed)

        def nudged(x: Any, drawn: torch.Generator = drawn) -> Any:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            return x * (1 + NUDGE * (2 * torch.rand(x.shape, generator=drawn, dtype=F64) - 1))

        moved = tree.map_tree(nudged, (start, problem.fixed, problem.anchor, list(batches), held_out))
        torch.set_rng_state(rng)
        other = trained(problem._replace(fixed=moved[1], anchor=moved[2]), moved[0], moved[3], moved[4])
        for i, (a, b) in enumerate(zip(tree.leaves(found), tree.leaves(other), strict=True)):
            spread[i] = torch.maximum(spread[i], (a - b).abs().max())
    torch.set_rng_state(rng)
    # Terms of about 1 may cancel.
    return [ROUNDINGS * UNIT * (s / NUDGE + 1 + x.abs().max()) for s, x in zip(spread, tree.leaves(found), strict=True)]
