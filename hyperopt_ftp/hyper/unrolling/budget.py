"""What fits: graphs that are kept unasked; and the plan that keeps a run within so many bytes, of which one step is
measured."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ... import tree
from ...dtensors import local
from ...types import Offload, Params, State
from ..core.inputs import TrainInputs
from ..core.leaves import OptionalTensors, floats
from ..core.memory import Meter, bytes_of, changed
from ..core.problem import InnerProblem
from ..core.replay import Replay, fingerprint
from .eager import EagerSteps
from .plans import Plan, backward_schedule, kept, points_of_every, points_of_tree, root_of, with_graphs
from .points import Checkpoints, Link

#: Bytes of the graphs that are kept unasked.
SMALL = 2**27


def graphs_fit(problem: InnerProblem, inputs: TrainInputs, left: int) -> bool:
    """Whether the graphs of the last ``left`` steps are kept unasked, by the bytes that the loss made in a step.

    A gradient with its graph takes about four times that, and an update about eight tensors for each param.
    """
    if not isinstance(inputs.batches, (list, tuple)):
        return False  # each step may be given the same memory, and a graph does not copy it
    left += problem.before
    if left == 1:
        return True
    weights = sum(local(x).numel() * tree.working(x).element_size() for x in floats(inputs.params))
    (each,) = problem.agreed([4 * (problem.guards.verdict.bytes_made if problem.guards else 0) + 8 * weights])
    return left * each <= SMALL


class Sizes(NamedTuple):
    """Bytes of what a run holds, beyond what was there before."""

    steps: int
    hvps: int  # steps whose gradient is differentiated: all, or all but the first
    fixed: int  # whatever the plan: where training ends, cotangents of params, a few numbers of each step
    first: int  # the first point, which may be the caller's own
    point: int  # each other one
    beside: int  # each where the one before it is kept too, which may hold some of its tensors
    link: int  # each that is kept as a gradient
    first_state: int  # of the first point, whose state is not dropped on the way through its step
    graph: int  # the graph of a step's gradient
    made: int  # at the peak of making it
    back: int  # at the peak of going back through it, the graph apart
    adjoints: int  # those that go back from step to step
    batch: int  # the cotangent of each batch


def peak_of(sizes: Sizes, plan: Plan) -> int:
    """The most that is held at once."""
    graphs, points = min(plan.graphs, sizes.hvps), kept(plan.parts, 0, sizes.steps)
    point = sizes.beside if len(points) == sizes.steps else sizes.point

    def all_of(points: list[int]) -> int:
        """Bytes of these but the first, the last of which is in use, and no link then."""
        links = len(plan.linked(points[:-1]))
        return (len(points) - 1 - links) * point + links * sizes.link

    in_last_step = max(sizes.made, sizes.graph) + sizes.link * (points[-1] in plan.linked(points))
    peak = all_of(points) + max(graphs - 1, 0) * sizes.graph + in_last_step
    for done, (k, live, _) in enumerate(backward_schedule(plan.parts, 0, sizes.steps)):
        held = all_of(live) + done * sizes.batch + (sizes.adjoints if done else 0)
        held += max(graphs - done, 0) * sizes.graph + (0 if k else sizes.first_state)
        peak = max(peak, held + (sizes.back if done < graphs else max(sizes.made, sizes.graph + sizes.back)))
    return sizes.fixed + sizes.first + peak


def affordable(memory: int, sizes: Sizes, links: bool) -> tuple[Plan, int]:
    """The plan that recomputes least within ``memory`` bytes, and its peak. ``links``: whether points may be links."""
    steps = sizes.steps
    fitting = bisect_right(range(steps + 1), memory, key=lambda n: peak_of(sizes, with_graphs(steps, n)))
    if fitting:
        plan = with_graphs(steps, fitting - 1)
    else:
        strides = range(2, max(2, root_of(steps)) + 1)
        # Points get fewer up to sqrt(K).
        at = bisect_left(strides, -memory, key=lambda n: -peak_of(sizes, points_of_every(n, links)))
        plan = points_of_every(strides[at], links) if at < len(strides) else points_of_tree(links)
    peak = peak_of(sizes, plan)
    if peak > memory:
        others = with_graphs(steps, 0), points_of_every(max(2, root_of(steps)), links)
        least = min(peak, *(peak_of(sizes, other) for other in others))
        raise ValueError(
            f"memory={memory} bytes are too few: with the fewest points kept, {steps} steps need {least}; give that or "
            "more, or take smaller batches or fewer steps (truncate=)"
        )
    return plan, peak


def sizes_of(steps: EagerSteps, inputs: TrainInputs, k: int, params: Params, state: State, offload: Offload) -> Sizes:
    """Bytes of step k, which is run once as if it were in the middle of others, forward with its graph and back."""
    count = len(inputs.batches) - k
    hvps = count if steps.needs_hvp(k) else count - 1
    kind = tree.leaves(params)[0].device.type
    size = partial(bytes_of, kind=kind)
    points, replay = Checkpoints(inputs, points_of_every(1), k, offload), Replay()
    probe = steps.beginning(k - 1)
    probe.keep_graphs(count)
    given = floats(params), floats(state)
    back_p: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[0]]
    back_s: OptionalTensors = [torch.zeros_like(tree.working(x)) for x in given[1]]

    def measured() -> Sizes:
        with Meter(kind) as meter:
            new_params, new_state, loss = probe.forward(k, points, params, state)
            made = meter.peak()
            moved, new = changed((params, state), (new_params, new_state))
            graph = meter.live() - size(new)  # which is part of the next point
            notes = size((fingerprint(loss, floats(new_params)), loss.clone()))
            rng, ending = size(replay.now()), size(moved)
            stored, beside, link = (size(points.stored(Link(part, replay.now()))) for part in (moved, new, given[0]))
            dropped = {id(x) for x in changed(new_state, state)[1]}
            copied = tree.map_tree(lambda x: x.clone() if isinstance(x, Tensor) and id(x) in dropped else x, state)
            points.visit(k, params, copied)  # of which the state goes before the peak
            del new_params, new_state, moved, new, copied
            held = meter.live()
            meter.peak()
            with replay.autocast(on=False):
                new_p, new_s, more, of_batch = probe.back(k, points, back_p, back_s)
            back = meter.peak() - held
        return Sizes(
            steps=count,
            hvps=hvps,
            fixed=ending + size(given[0]) + count * notes,
            first=stored if steps.first else rng,  # the start is the caller's
            point=stored,
            beside=beside,
            link=link,
            first_state=0 if steps.first else held - graph,
            graph=graph + rng,
            made=made,
            back=back,
            adjoints=size((new_p, new_s)) + 2 * size(more),
            batch=size(of_batch),
        )

    return replay.again(measured)
