"""The radius gradients that are compared, all at one point of a run and all of the same loss at the same weights: how
alike they are, and what they cost.

From a point, K training steps are made with the radii held as they were there: the last K of them are what a full
hypergradient goes back through. The closed forms of FTP are those of the last step.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperopt_ftp as hft
from experiments.common.bilevel_loop import Batch, Losses
from experiments.common.memory import peak_above
from hyperopt_ftp.anchored import radius_gradient, row_norm
from hyperopt_ftp.types import PaperOrExact

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Segment:
    """The steps from a point on: weights and states before each step that a depth begins with."""

    optimizer: hft.Optimizer  # projected, radii held
    batches: Sequence[Batch]  # of its steps; the one after them is in `outer`
    params: dict[int, Weights]  # by step
    states: dict[int, Any]
    end: Weights
    deviation: Weights  # of the last step, unprojected, by layer
    outer: dict[str, Callable[[Weights], Tensor]]  # name of the loss -> loss

    @property
    def radius(self) -> dict[str, Tensor]:
        return self.optimizer.hparams["radius"]


@dataclass
class Compared:
    """Radius gradients by loss and kind, in the order of the layers; what each took."""

    layers: list[str]
    gradients: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    mib: dict[str, float] = field(default_factory=dict)


def walk(
    base: hft.Optimizer,
    anchor: Weights,
    radius: dict[str, Tensor],
    params: Weights,
    base_state: Any,
    losses: Losses,
    batches: Sequence[Batch],
    outer: dict[str, Callable[[Weights], Tensor]],
    depths: Sequence[int],
) -> Segment:
    """Make the steps, and keep what each depth begins with."""
    optimizer = hft.projected(base, anchor, radius=radius)
    state = optimizer.init(params)._replace(base=base_state)
    kept_params, kept_states, moved = {}, {}, params
    for k, batch in enumerate(batches):
        if len(batches) - k in depths:
            kept_params[k], kept_states[k] = params, state
        grads = torch.func.grad(losses.train)(params, batch)
        if k == len(batches) - 1:
            moved, _ = base.update(grads, state.base, params)
        params, state = optimizer.update(grads, state, params)
    deviation = {name: moved[name] - w0 for name, w0 in anchor.items()}
    return Segment(optimizer, batches, kept_params, kept_states, params, deviation, outer)


def closed_form(segment: Segment, loss: str, gradient: PaperOrExact) -> dict[str, Tensor]:
    """FTP's: from the deviation of the last step, which FTP has at hand, and the gradient, which training takes."""
    g = torch.func.grad(segment.outer[loss])(segment.end)
    return {
        name: radius_gradient(g[name], c, row_norm(c), segment.radius[name].to(c.dtype), gradient)
        for name, c in segment.deviation.items()
    }


def full(segment: Segment, losses: Losses, loss: str, depth: int) -> dict[str, Tensor]:
    """Through the last `depth` steps, second derivatives of the training loss included."""
    first = len(segment.batches) - depth
    _, found, _ = hft.hypergradient(
        segment.optimizer, losses.train, segment.outer[loss], segment.params[first], segment.batches[first:],
        over="radius", state=segment.states[first],
    )  # fmt: skip
    return found["radius"]


def compare(segment: Segment, losses: Losses, depths: Sequence[int]) -> Compared:
    """Every kind of gradient of every loss, one after the other, timed."""
    device = segment.end[next(iter(segment.end))].device
    done = Compared(list(segment.deviation))
    for loss in segment.outer:
        done.gradients[loss] = {}
        kinds: dict[str, Callable[[], dict[str, Tensor]]] = {
            gradient: lambda g=gradient, x=loss: closed_form(segment, x, g) for gradient in ("paper", "exact")
        }
        kinds |= {f"K={depth}": lambda k=depth, x=loss: full(segment, losses, x, k) for depth in depths}
        for kind, work in kinds.items():
            begin = time.perf_counter()
            found, mib = peak_above(device, work)
            key = f"{loss}, {kind}"
            done.seconds[key], done.mib[key] = time.perf_counter() - begin, mib
            done.gradients[loss][kind] = [found[name].item() for name in done.layers]
    return done


class Agreement(NamedTuple):
    """Of a vector h with a reference r."""

    cosine: float  # <h, r> / (|h| |r|) over the layers
    signs: float  # share of layers with the same sign: the radius is moved the same way (Adam is scale-free)
    ratio: float  # |h| / |r|


def agreement(h: Sequence[float], reference: Sequence[float]) -> Agreement:
    """NaN where a norm is 0.

    >>> agreement([1.0, -1.0], [2.0, 0.0])
    Agreement(cosine=0.7071067811865475, signs=0.5, ratio=0.7071067811865476)
    """
    own, other = math.hypot(*h), math.hypot(*reference)
    if own == 0 or other == 0:
        return Agreement(math.nan, math.nan, math.nan)
    inner = math.fsum(a * b for a, b in zip(h, reference, strict=True))
    same = sum(_sign(a) == _sign(b) for a, b in zip(h, reference, strict=True))
    return Agreement(inner / own / other, same / len(h), own / other)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
