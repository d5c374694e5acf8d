"""The memory, the work and the time of each strategy, from a few steps that are run to be measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from .. import tree
from .arguments import loss_at
from .budget import affordable, peak_of
from .checkpoints import Checkpoints
from .costs import Chunk, Work, of_forward, of_implicit, of_unroll, of_zero_order
from .eager import EagerWalk, is_narrow
from .forward import Forward
from .held_state import is_checked
from .implicit import Implicit
from .leaves import chosen, floats, fresh
from .plans import every, walk, with_graphs
from .probe import sizes_of
from .rng import Recorder
from .second_order import twice_differentiable
from .steps import Steps
from .strategy import Start
from .trials import (
    Beginning,
    forward_trial,
    implicit_trial,
    lines,
    medians,
    peak_of_trial,
    unroll_laps,
    zero_order_trial,
)
from .unroll import Unroll
from .zero_order import ZeroOrder

#: Gradients that a Hessian-vector product takes, where there is no clock: of a product of matrices, a gradient has the
#: product and two more; going back through these has two for each of the two, and the two again.
PRODUCT = 2.0

#: Steps after which one more takes no more memory.
STEADY = 3


class Found(NamedTuple):
    """What a strategy will take."""

    memory: int  # bytes at the peak
    work: Work
    time: float  # in gradients; what each strategy's function below returns is seconds, 0 without a clock
    plan: str


def check_known(strategy: Any) -> None:
    if type(strategy) not in _FINDERS:
        raise TypeError(
            "estimate knows what Unroll, Forward, Implicit and ZeroOrder do, got an object of the class "
            f"{type(strategy).__name__}: measure a short run of it"
        )
    if getattr(strategy, "compile", False):
        raise ValueError(
            "compile=True: what a compiled step takes is for the compiler to choose, and a step that is run as it is "
            "written does not tell; estimate the strategy without compile, or measure a short run with it"
        )


def predicted(strategy: Any, steps: Steps, start: Start, clock: bool) -> Found:
    """What a run of all steps would take; ``clock``: whether time can be measured, or tensors have no values."""
    if not clock:
        found = _FINDERS[type(strategy)](strategy, steps, start, clock)
        return found._replace(time=found.work.gradients + PRODUCT * found.work.products)
    before = _gradient(steps, start)
    found = _FINDERS[type(strategy)](strategy, steps, start, clock)
    after = _gradient(steps, start)  # a machine has its moods
    return found._replace(time=found.time * 2 / (before + after))


def _unroll(strategy: Unroll, steps: Steps, start: Start, clock: bool) -> Found:
    count = len(start.batches)
    first = count - (strategy.truncate or count)
    if first < 0:
        raise ValueError(f"batches has {count} steps, fewer than truncate = {strategy.truncate}")
    params, state = start.params, start.state
    with twice_differentiable():
        made = strategy.walk(steps, start, first)
        assert isinstance(made, EagerWalk)  # no program
        sizes = sizes_of(made, start, first, params, state, strategy.offload)
        plan = strategy.planned(count - first)
        if strategy.memory is not None:
            plan = affordable(strategy.memory, sizes)[0]
        dropped = strategy.checkpoint is None and plan.graphs > 0 and not made.small(params, plan.graphs)
        if dropped:
            plan = with_graphs(plan.graphs, 0)
        curved = made.curved(first)
        gone = dropped and not is_narrow(params)
        work = of_unroll(count, first, plan, curved, probed=strategy.memory is not None, dropped=gone)
        if not clock:
            return Found(peak_of(sizes, plan), work, 0.0, plan.words)
        point = Checkpoints(start, every(1), first, strategy.offload).stored(params, state)
        seconds = medians(unroll_laps(made, start, first, point))
    total = first * seconds["forward"]
    for done, (k, _, again) in enumerate(walk(plan.parts, 0, count - first)):
        kind = "first" if k == 0 and not curved else "kept" if done < plan.graphs else "again"
        total += again * seconds["step"] + seconds[f"back, {kind}"]
        total += seconds["forward" if kind == "again" else f"forward, {kind}"]
    return Found(peak_of(sizes, plan), work, total, plan.words)


def _forward(strategy: Forward, steps: Steps, start: Start, clock: bool) -> Found:
    count, numbers = len(start.batches), _numbers(steps, start)
    tangents = numbers[-1].stop
    size = min(strategy.chunk or tangents, tangents)
    chunks = [_chunk(numbers, range(a, min(a + size, tangents)), count) for a in range(0, tangents, size)]
    loop = len(chunks) > 1
    slopes = any(number.kind == "loss" for number in numbers)
    work, beginning = of_forward(count, chunks, slopes, loop), Beginning(steps, start)
    trial = forward_trial(strategy, beginning, size, loop)
    memory = peak_of_trial(_kind(start), partial(trial, min(count, STEADY)))
    time = 0.0
    if clock:
        of_size = {n: forward_trial(strategy, beginning, n, False) for n in {chunk.tangents for chunk in chunks}}
        found = lines({"loop": beginning.loop, **{str(n): trial for n, trial in of_size.items()}})
        time = sum(found[str(chunk.tangents)].at(count) for chunk in chunks) + loop * found["loop"].at(count)
    return Found(memory, work, time, f"{size} tangents at once" if size > 1 else "one tangent at a time")


class _Number(NamedTuple):
    """A tensor that tangents are carried for."""

    kind: str | int  # "hparam", "loss", "param", "state", or the step of a batch
    start: int
    stop: int


def _numbers(steps: Steps, start: Start) -> list[_Number]:
    """All of them in the order of their tangents."""
    wanted = steps.wanted
    rows: list[tuple[str | int, Any, Any]] = []
    rows += [("loss" if x == "loss" else "hparam", start.hparams[x], wanted.hparams[x]) for x in start.hparams]
    rows += [("param", start.params, wanted.params), ("state", start.state, wanted.state)]
    if isinstance(wanted.batches, list):
        rows += [(k, batch, wanted.batches[k]) for k, batch in enumerate(start.batches)]
    found, at = [], 0
    for kind, values, mask in rows:
        for x in chosen(values, mask):
            found.append(_Number(kind, at, at + x.numel()))
            at += x.numel()
    return found


def _chunk(numbers: list[_Number], tangents: range, steps: int) -> Chunk:
    """The steps of a training with these tangents: from where on the params have some, and those before that."""
    kinds = {x.kind for x in numbers if x.start < tangents.stop and tangents.start < x.stop}
    moves, curved, passes = "param" in kinds, 0, 0
    for k in range(steps):
        product = moves or "loss" in kinds or k in kinds
        curved += product or "hparam" in kinds
        passes += product
        moves |= product or "hparam" in kinds or "state" in kinds
    return Chunk(len(tangents), curved, passes)


def _implicit(strategy: Implicit, steps: Steps, start: Start, clock: bool) -> Found:
    count, iterations = len(start.batches), strategy.iterations if strategy.solver != "identity" else 0
    if count < strategy.batches:
        raise ValueError(f"there are {count} steps, fewer than batches = {strategy.batches}")
    checked = is_checked(strategy.solver, floats(start.params), floats(start.state), Recorder())
    work, beginning = of_implicit(count, iterations, strategy.batches, checked), Beginning(steps, start)
    trial, few = implicit_trial(strategy, beginning), strategy.batches
    memory = peak_of_trial(_kind(start), partial(trial, max(few, min(count, STEADY)), min(iterations, STEADY)))
    time = 0.0
    if clock:
        found = lines({"loop": beginning.loop, "solver": partial(trial, few)})
        time = found["loop"].at(count) - found["loop"].at(few) + found["solver"].at(iterations)
    return Found(memory, work, time, f"{few} steps at the end, in one graph" if few > 1 else "one step at the end")


def _zero_order(strategy: ZeroOrder, steps: Steps, start: Start, clock: bool) -> Found:
    count = len(start.batches)
    points = 2 * strategy.samples if strategy.antithetic else strategy.samples + 1
    trial = zero_order_trial(strategy, Beginning(steps, start))
    together = trial(1)
    memory = peak_of_trial(_kind(start), partial(trial, min(count, STEADY)))
    work = of_zero_order(count, points, together)
    time = 0.0
    if clock:
        time = lines({"all": trial})["all"].at(count)
    return Found(memory, work, time, f"{points} trainings at once" if together else "one training at a time")


def _kind(start: Start) -> str:
    return tree.leaves(start.params)[0].device.type


def _gradient(steps: Steps, start: Start) -> float:
    """Seconds of one, taken as anybody would."""
    leaves, at = fresh(start.params)

    def gradient() -> None:
        with torch.enable_grad():
            loss = loss_at(steps.train_loss, at, start.batches[0], start.hparams)
        torch.autograd.grad(loss, leaves, allow_unused=True)

    return medians({"gradient": gradient}, seconds=0.2)["gradient"]


_FINDERS: dict[type, Callable[[Any, Steps, Start, bool], Found]] = {
    Unroll: _unroll,
    Forward: _forward,
    Implicit: _implicit,
    ZeroOrder: _zero_order,
}
