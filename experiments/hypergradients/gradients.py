"""Derivatives of a loss in every layer's radius, all at the same weights: how alike they are, and what they cost.

Before each stage the radii are held for as many steps as the deepest derivative goes back through. FTP's closed forms
are those of the last of them.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Batch, Batches, Losses
from experiments.common.errors import InputError
from experiments.common.memory import peak_above
from experiments.common.small_networks import cross_entropy, mlp, mlp_params
from experiments.hypergradients.config import Config
from experiments.hypergradients.problems import CPU, Problem
from experiments.hypergradients.training import base_of
from hyperopt_ftp.anchored import radius_gradient, row_norm

Weights = dict[str, Tensor]
Outer = Callable[[Weights], Tensor]


def kinds(
    optimizer: hft.Optimizer, base: hft.Optimizer, loss: Callable[..., Tensor], start: tuple[Weights, Any],
    batches: Sequence[Batch], depths: Sequence[int], outers: dict[str, Outer], anchor: Weights,
) -> dict[tuple[str, str], Callable[[], Weights]]:  # fmt: skip
    """Make the steps from `start` on with the radii held; at their end, for each outer loss, ways to its derivative."""
    points, moved = [start], start[0]
    for batch in batches:
        params, state = points[-1]
        grads = torch.func.grad(loss)(params, batch)
        moved = base.update(grads, state.base, params)[0]
        points.append(optimizer.update(grads, state, params))
    end, radius = points[-1][0], optimizer.hparams["radius"]

    def closed(outer: Outer, form: str) -> Weights:
        g, c = torch.func.grad(outer)(end), {name: moved[name] - w0 for name, w0 in anchor.items()}
        return {name: radius_gradient(g[name], c[name], row_norm(c[name]), radius[name], form) for name in anchor}

    def full(outer: Outer, depth: int) -> Weights:
        params, state = points[-1 - depth]
        return hft.hypergradient(optimizer, loss, outer, params, batches[-depth:], "radius", state=state)[1]["radius"]

    found: dict[tuple[str, str], Callable[[], Weights]] = {}
    for name, outer in outers.items():
        found |= {(name, form): lambda o=outer, f=form: closed(o, f) for form in ("paper", "exact")}
        found |= {(name, f"K={depth}"): lambda o=outer, k=depth: full(o, k) for depth in depths}
    return found


def check_one_step(exact: Sequence[float], full: Sequence[float], tolerance: float) -> None:
    """FTP's exact form is the derivative of one step, or nothing else here is worth a look."""
    error = math.dist(exact, full) / (math.hypot(*full) or 1.0)
    if not error <= tolerance:
        raise InputError(f"FTP's exact form is {error:.1e} away from the derivative of one step; at most {tolerance:g}")


def check_in_float64() -> None:
    """The same on a small network, to the last digits."""
    drawn = torch.Generator().manual_seed(0)
    anchor = {name: w.double() for name, w in mlp_params((6, 8, 3), drawn).items()}
    data = [(torch.randn(5, 6, generator=drawn).double(), torch.randint(3, (5,), generator=drawn)) for _ in range(6)]
    base, loss = hft.adamw(lr=0.01), cross_entropy(mlp)
    optimizer = hft.projected(base, anchor, radius=0.02)
    start = anchor, optimizer.init(anchor)
    made = kinds(optimizer, base, loss, start, data[:5], (1,), {"next": lambda p: loss(p, data[5])}, anchor)
    check_one_step(*([x.item() for x in made["next", kind]().values()] for kind in ("exact", "K=1")), 1e-12)


def agreement(h: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Cosine over the layers, share of equal signs, and ratio of the norms.

    >>> agreement([1.0, -1.0], [2.0, 0.0])
    [0.7071, 0.5, 0.7071]
    """
    own, other = math.hypot(*h), math.hypot(*reference)
    inner = math.fsum(a * b for a, b in zip(h, reference, strict=True))
    same = sum((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in zip(h, reference, strict=True))
    values = inner / (own * other or 1.0), same / len(h), own / (other or 1.0)
    return [float(f"{value:.4g}") for value in values]


def compared(problem: Problem, config: Config, seed: int, stage: int) -> dict:
    """After so many steps with FTP, by outer loss and kind: agreement with the deepest derivatives, and cost."""
    model, params, anchor = problem.begin()
    losses, base, deepest = Losses(model, problem.task), base_of(config, config.steps), config.depths[-1]
    batches = Batches(problem.task.parts["train"], config.batch_size, stage + 1, seed, CPU)
    held_out = Batches(problem.task.parts["validation"], config.batch_size, stage + 1, seed + 1, CPU)
    ftp = hft.ftp(base, anchor)
    state = ftp.init(params)
    for step in range(stage - deepest):
        params, state = ftp.update(torch.func.grad(losses.train)(params, batches[step]), state, params)
    held = hft.projected(base, anchor, radius=state.radius)
    start = params, held.init(params)._replace(base=state.base)
    outers: dict[str, Outer] = {
        "training": lambda p: losses.train(p, batches[stage]),
        "validation": lambda p: losses.held_out(p, held_out[stage]),
    }
    ahead = [batches[step] for step in range(stage - deepest, stage)]
    return measured(kinds(held, base, losses.train, start, ahead, config.depths, outers, anchor), outers, deepest)


def measured(made: dict[tuple[str, str], Callable[[], Weights]], outers: dict[str, Outer], deepest: int) -> dict:
    """Each kind once, timed."""
    values, costs = {}, {}
    for key, work in made.items():
        begin = time.process_time()
        slopes, mib = peak_above(CPU, work)
        costs[key] = {"seconds": round(time.process_time() - begin, 3), "mib": round(mib)}
        values[key] = [x.item() for x in slopes.values()]
    for outer in outers:
        check_one_step(values[outer, "exact"], values[outer, "K=1"], 1e-5)
    return {
        outer: {
            kind: costs[outer, kind]
            | {with_: agreement(values[outer, kind], values[with_, f"K={deepest}"]) for with_ in outers}
            for own, kind in made
            if own == outer
        }
        for outer in outers
    }
