"""Derivatives of a loss in every layer's radius, all at the same weights: how alike they are, and what they cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Batch, Batches, Losses
from experiments.common.errors import InputError
from experiments.common.memory import peak_above
from experiments.common.small_networks import cross_entropy, mlp, mlp_params
from experiments.hypergradients.config import Config
from experiments.hypergradients.problems import Problem
from experiments.hypergradients.training import CPU, base_of
from hyperopt_ftp.anchored import radius_gradient, row_norm

Weights = dict[str, Tensor]
Outer = Callable[[Weights], Tensor]


def measured(
    base: hft.Optimizer, radius: Any, loss: Callable[..., Tensor], params: Weights, base_state: Any, anchor: Weights,
    batches: Sequence[Batch], depths: Sequence[int], outers: Mapping[str, Outer], tolerance: float,
) -> dict[str, dict[str, dict]]:  # fmt: skip
    """Make the steps with the radii held; at their end, of each outer loss, FTP's closed forms, which are those of the
    last step, and the derivatives through the last K steps, each timed."""
    optimizer, moved = hft.projected(base, anchor, radius=radius), params
    points = [(params, optimizer.init(params)._replace(base=base_state))]
    for batch in batches:
        params, state = points[-1]
        grads = torch.func.grad(loss)(params, batch)
        moved = base.update(grads, state.base, params)[0]
        points.append(optimizer.update(grads, state, params))
    end, radii = points[-1][0], optimizer.hparams["radius"]

    def closed(outer: Outer, form: Any) -> Weights:
        g, c = torch.func.grad(outer)(end), {name: moved[name] - w0 for name, w0 in anchor.items()}
        return {name: radius_gradient(g[name], c[name], row_norm(c[name]), radii[name], form) for name in anchor}

    def full(outer: Outer, depth: int) -> Weights:
        first, state = points[-1 - depth]
        return hft.hypergradient(optimizer, loss, outer, first, batches[-depth:], "radius", state=state)[1]["radius"]

    found: dict[str, dict[str, dict]] = {}
    for name, outer in outers.items():
        works = {form: partial(closed, outer, form) for form in ("paper", "exact")}
        works |= {f"K={depth}": partial(full, outer, depth) for depth in depths}
        found[name] = {}
        for kind, work in works.items():
            begin = time.process_time()
            slopes, mib = peak_above(CPU, work)
            cost = {"seconds": round(time.process_time() - begin, 3), "mib": round(mib)}
            found[name][kind] = cost | {"values": [slope.item() for slope in slopes.values()]}
        one, exact = (found[name][kind]["values"] for kind in ("K=1", "exact"))
        if not (error := math.dist(one, exact)) <= tolerance * math.hypot(*one):
            raise InputError(f"FTP's exact form is {error:.1e} from the derivative of one step, {math.hypot(*one):.1e}")
    return found


def check_in_float64() -> None:
    """FTP's exact form is the derivative of one step, to the last digits, or nothing here is worth a look."""
    drawn = torch.Generator().manual_seed(0)
    anchor = {name: w.double() for name, w in mlp_params((6, 8, 3), drawn).items()}
    data = [(torch.randn(5, 6, generator=drawn).double(), torch.randint(3, (5,), generator=drawn)) for _ in range(6)]
    base, loss = hft.adamw(lr=0.01), cross_entropy(mlp)
    measured(
        base, 0.02, loss, anchor, base.init(anchor), anchor, data[:5], (1,), {"": lambda p: loss(p, data[5])}, 1e-12
    )


def agreement(h: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Cosine over the layers, share of equal signs, and ratio of the norms.

    >>> agreement([1.0, -1.0], [2.0, 0.0])
    [0.7071, 0.5, 0.7071]
    """
    own, other = math.hypot(*h), math.hypot(*reference)
    same = sum((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in zip(h, reference, strict=True))
    values = (
        math.fsum(a * b for a, b in zip(h, reference, strict=True)) / (own * other or 1.0),
        same / len(h),
        own / (other or 1.0),
    )
    return [float(f"{value:.4g}") for value in values]


def compared(problem: Problem, config: Config, seed: int, stage: int) -> dict:
    """After so many steps with FTP, by outer loss and kind: agreement with the deepest derivatives, and cost."""
    model, params, anchor = problem.begin()
    losses, base, deepest = Losses(model, problem.task), base_of(config, config.steps), config.depths[-1]
    batches, held_out = (
        Batches(problem.task.parts[part], config.batch_size, stage + 1, seed + k, CPU)
        for k, part in enumerate(("train", "validation"))
    )
    ftp = hft.ftp(base, anchor)
    state = ftp.init(params)
    for step in range(stage - deepest):
        params, state = ftp.update(torch.func.grad(losses.train)(params, batches[step]), state, params)
    outers: dict[str, Outer] = {
        "training": lambda p: losses.train(p, batches[stage]),
        "validation": lambda p: losses.held_out(p, held_out[stage]),
    }
    ahead = [batches[step] for step in range(stage - deepest, stage)]
    found = measured(
        base, state.radius, losses.train, params, state.base, anchor, ahead, config.depths, outers, tolerance=1e-5
    )
    references = {outer: kinds[f"K={deepest}"]["values"] for outer, kinds in found.items()}
    for kinds in found.values():
        for one in kinds.values():
            values = one.pop("values")
            one |= {outer: agreement(values, reference) for outer, reference in references.items()}
    return found
